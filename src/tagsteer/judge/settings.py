"""Settings of a judge behind an OpenAI-compatible server, and what judging with them would cost.

Must not know HTTP or databases' insides. No price is built in: tables of prices go stale, so they are given.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tagsteer.errors import TagsteerError
from tagsteer.judge.rubric import Rubric, load_rubric, question_key
from tagsteer.judge.types import PARTS, JudgeItem

if TYPE_CHECKING:
    from tagsteer.judge.store import JudgementStore

OPENAI = "https://api.openai.com/v1"
REPLY_TOKENS = 130
"""Tokens of a typical reply: gpt-4o-mini's 233,234 replies to AxBench have 558 characters on average."""
BYTES_PER_TOKEN = 4.0
"""Of English text in the tokenizers in use; only estimates rest on it, never a bill."""
MESSAGE_TOKENS = 16
"""Room for the marks that a chat template puts around a message."""


class CostCeilingReached(TagsteerError):
    """The ceiling `max_cost` allows no further call; everything paid for is stored."""


class JudgeSettings(BaseModel):
    """How to reach, ask and pay a judge; in TOML the table [judge]."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base_url: str = OPENAI
    """Address of the API, without /chat/completions."""
    model: str = "gpt-4o-mini"
    """The model's name at the server. AxBench uses gpt-4o-mini."""
    api_key_env: str | None = None
    """Name of the environment variable with the key, "" for none. Unset: OPENAI_API_KEY at OpenAI, none on
    this machine, and an error elsewhere: no key goes to a server that it is not for."""
    temperature: float | None = Field(0.7, ge=0, le=2)
    """AxBench's is 0.7. In TOML `"none"` leaves it out, for models that refuse it."""
    max_tokens: int = Field(512, ge=1)
    """Longest reply; one that is cut there counts as unreadable."""
    token_limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit; OpenAI's reasoning models want max_completion_tokens."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, e.g. {reasoning_effort = "low"}; part of the key of a stored answer."""
    concurrency: int = Field(16, ge=1, le=1024)
    """Calls in flight at most."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds for one call in all."""
    retries: int = Field(5, ge=0)
    """How often a failed call (429, 5xx, time-out, broken connection) is sent again."""
    asks: int = Field(3, ge=1)
    """How many answers are paid for at most when the first cannot be read."""
    price_in_per_million: float | None = Field(None, ge=0)
    """Price of a million tokens sent."""
    price_out_per_million: float | None = Field(None, ge=0)
    """Price of a million tokens received."""
    max_cost: float | None = Field(None, ge=0)
    """Ceiling for all that a store's calls to this model cost, in the unit of the prices. A call is made only
    if its bound still fits; a server that ignores max_tokens, or counts more tokens than a prompt has bytes,
    can exceed it by the calls in flight."""
    few_shot: bool = False
    """Show a worked example for each rating."""

    @model_validator(mode="before")
    @classmethod
    def _no_temperature(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("temperature") == "none":
            return {**data, "temperature": None}
        return data

    @model_validator(mode="after")
    def _check(self) -> JudgeSettings:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url is no address: wanted something like {OPENAI!r}")
        if parts.username or parts.password:
            raise ValueError(
                "base_url holds a user name or password: give the key in the environment, see api_key_env"
            )
        taken = {"model", "messages", "stream", "n", "temperature", "max_tokens", "max_completion_tokens"}
        if clash := sorted(taken & set(self.extra_body)):
            raise ValueError(
                f"extra_body must not set {', '.join(clash)}: there are settings for what can be set"
            )
        try:
            json.dumps(self.extra_body)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body cannot be sent as JSON: {error}") from error
        if self.max_cost is not None and (
            self.price_in_per_million is None or self.price_out_per_million is None
        ):
            raise ValueError("max_cost needs price_in_per_million and price_out_per_million")
        return self

    @property
    def rubric(self) -> Rubric:
        """The rubric asked for."""
        return load_rubric(self.few_shot)

    @property
    def parameters(self) -> dict[str, Any]:
        """What is sent with each question apart from model and text."""
        sent: dict[str, Any] = {self.token_limit_name: self.max_tokens, **self.extra_body}
        return sent if self.temperature is None else {"temperature": self.temperature, **sent}

    def describe(self) -> str:
        """Model, rubric and sampling for tables, e.g. "gpt-4o-mini, rubric axbench-1, temperature 0.7"."""
        heat = "default temperature" if self.temperature is None else f"temperature {self.temperature:g}"
        more = [f"{name} {value}" for name, value in self.extra_body.items()]
        return ", ".join([self.model, f"rubric {self.rubric.version}", heat, *more])

    def key_of(self, prompt: str) -> str:
        """The key under which the answers to a prompt are stored."""
        return question_key(self.model, self.rubric.version, self.parameters, prompt)

    def cost(self, tokens_in: float, tokens_out: float) -> float | None:
        """Price of that many tokens; None when the prices are not given."""
        if self.price_in_per_million is None or self.price_out_per_million is None:
            return None
        return (tokens_in * self.price_in_per_million + tokens_out * self.price_out_per_million) / 1e6

    def cost_bound(self, prompt: str) -> float:
        """Bound for one call's cost: a token per byte of the prompt, and a reply that fills its limit."""
        return self.cost(len(prompt.encode("utf-8", "replace")) + MESSAGE_TOKENS, self.max_tokens) or 0.0

    def api_key(self, environment: Mapping[str, str] | None = None) -> str:
        """The key from the environment; never stored, logged or shown. Errors name the variable."""
        environment = os.environ if environment is None else environment
        host = urlsplit(self.base_url).hostname or ""
        name = self.api_key_env
        if name is None:
            if host == "api.openai.com":
                name = "OPENAI_API_KEY"
            elif _is_here(host):
                name = ""
            else:
                raise TagsteerError(
                    f"which key is for {host}? Set api_key_env to the name of the variable with the "
                    'key, or to "" if the server wants none'
                )
        if not name:
            return "no-key"
        if not environment.get(name, "").strip():
            raise TagsteerError(f"the environment variable {name} is not set: put the key for {host} into it")
        return environment[name].strip()


def _is_here(host: str) -> bool:
    """Whether a host name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Estimate:
    """What judging would take, before anything is spent; tokens are estimated, `cost_bound` is never exceeded
    unless replies have to be asked for again."""

    texts: int
    calls: int
    """Calls still to be paid for: each distinct question once."""
    stored: int
    """Distinct questions that the store can answer already."""
    shared: int
    """Questions that another text asks in the same words; paid for once."""
    tokens_in: int
    tokens_out: int
    cost: float | None
    cost_bound: float | None
    model: str

    def __str__(self) -> str:
        price = (
            "cost unknown: set price_in_per_million and price_out_per_million"
            if self.cost is None
            else f"about {self.cost:.4g}, at most {self.cost_bound:.4g} if each is asked once"
        )
        return (
            f"{self.texts:,} texts: {self.calls:,} calls to {self.model} ({self.stored:,} questions are "
            f"answered already, {self.shared:,} repeat another), about {self.tokens_in:,} tokens in and "
            f"{self.tokens_out:,} out; {price}"
        )


def estimate(
    items: Sequence[JudgeItem], settings: JudgeSettings, store: JudgementStore | None = None
) -> Estimate:
    """Calls, tokens and cost of judging `items`, less what `store` holds; nothing is sent."""
    rubric = settings.rubric
    seen: set[str] = set()
    calls = stored = tokens_in = 0
    bound = 0.0
    for prompt in _prompts(items, rubric):
        key = settings.key_of(prompt)
        if key in seen:
            continue
        seen.add(key)
        if store is not None and store.is_settled(key, settings.asks):
            stored += 1
            continue
        calls += 1
        tokens_in += round(len(prompt.encode("utf-8", "replace")) / BYTES_PER_TOKEN) + MESSAGE_TOKENS // 2
        bound += settings.cost_bound(prompt)
    tokens_out = calls * min(REPLY_TOKENS, settings.max_tokens)
    cost = settings.cost(tokens_in, tokens_out)
    shared = len(items) * len(PARTS) - len(seen)
    return Estimate(
        len(items),
        calls,
        stored,
        shared,
        tokens_in,
        tokens_out,
        cost,
        None if cost is None else bound,
        settings.model,
    )


def _prompts(items: Iterable[JudgeItem], rubric: Rubric) -> Iterable[str]:
    return (rubric.prompt(part, item) for item in items for part in PARTS)
