"""One question over HTTP until it is answered or given up: time-outs, retries, and pauses.

Must not know stores, costs or ratings. The key is kept out of every message.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tagsteer.errors import TagsteerError
from tagsteer.judge.retry import Backoff, Failure, failure_of_status
from tagsteer.judge.settings import BYTES_PER_TOKEN, JudgeSettings
from tagsteer.judge.store import Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger("tagsteer.judge")

PATIENCE_S = 600.0
"""The longest wait that a server may ask for; a longer one ends the run, which can be resumed."""

Sleep = Callable[[float], Awaitable[Any]]


class Unanswered(Exception):
    """One question is given up; its text is the reason."""


class Stopped(Exception):
    """The run ends before the question was sent."""


@dataclass
class Usage:
    """What the calls of one judge object took."""

    calls: int = 0
    """Calls that brought a reply."""
    tokens_in: int = 0
    tokens_out: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that brought none, by reason."""


class Caller:
    """Sends questions for one run. `sleep` is asyncio.sleep, or a test's."""

    def __init__(
        self,
        client: AsyncOpenAI,
        settings: JudgeSettings,
        backoff: Backoff,
        sleep: Sleep,
        usage: Usage,
        stop: asyncio.Event,
    ) -> None:
        self._client, self._settings, self._backoff, self._sleep = client, settings, backoff, sleep
        self._usage, self._stop = usage, stop
        self._not_before = 0.0
        self._answered = False
        self._host = urlsplit(settings.base_url).netloc

    async def ask(self, prompt: str) -> Reply:
        """The reply to a prompt. Raises Unanswered, Stopped, or TagsteerError when no call can succeed."""
        tries = 0
        while True:
            await self._pause(self._not_before - asyncio.get_running_loop().time())
            got = await self._send(prompt)
            if isinstance(got, Reply):
                self._answered = True
                self._usage.calls += 1
                self._usage.tokens_in += got.tokens_in
                self._usage.tokens_out += got.tokens_out
                return got
            self._usage.failed[got.reason] += 1
            if got.then == "stop" or (got.then == "doubt" and not self._answered):
                raise TagsteerError(
                    f"{self._host} refuses calls to {self._settings.model!r}, {got.reason}; "
                    "check base_url, model, api_key_env and the account; all answers so far are stored"
                )
            if got.then != "retry":
                raise Unanswered(got.reason)
            tries += 1
            if tries > self._settings.retries:
                raise Unanswered(f"no answer in {tries} tries, the last: {got.reason}")
            await self._pause(self._wait(tries, got))

    def _wait(self, tries: int, failure: Failure) -> float:
        """Seconds until the next try; a wait that the server asks for holds back all other calls too."""
        wait = self._backoff.wait(tries, failure.wait)
        if failure.wait is not None:
            if failure.wait > PATIENCE_S:
                raise TagsteerError(
                    f"{self._host} asks to wait {failure.wait:.0f} s ({failure.reason}); run again then: "
                    "all answers so far are stored"
                )
            self._not_before = max(self._not_before, asyncio.get_running_loop().time() + failure.wait)
        return wait

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the run is stopped: what has not been sent is not sent any more."""
        if seconds > 0 and not self._stop.is_set():
            tasks = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self._stop.wait())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
        if self._stop.is_set():
            raise Stopped

    async def _send(self, prompt: str) -> Reply | Failure:
        """One HTTP call."""
        import openai

        settings = self._settings
        sampling: dict[str, Any] = {settings.token_limit_name: settings.max_tokens}
        if settings.temperature is not None:
            sampling["temperature"] = settings.temperature
        try:
            # The client's time-outs are per read; a server that sends a byte now and then needs one in all.
            async with asyncio.timeout(settings.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=settings.model,
                    messages=[{"role": "user", "content": prompt}],
                    extra_body=settings.extra_body or None,
                    **sampling,
                )
            return self._read(raw.text, prompt)
        except (TimeoutError, openai.APITimeoutError):
            return Failure(f"no answer within {settings.timeout_s:g} s", "retry")
        except openai.APIStatusError as error:
            code, message = self._error_body(error.body)
            return failure_of_status(error.status_code, code, message, error.response.headers)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else "unknown cause"
            return Failure(f"the connection failed ({cause})", "retry")

    def _read(self, text: str, prompt: str) -> Reply | Failure:
        """The reply in a body of HTTP 200, read without trust in its form."""
        try:
            body = json.loads(text)
        except ValueError:
            return Failure("the body is no JSON", "retry")
        if isinstance(body, dict) and body.get("error"):
            # Routers answer 200 and put the real server's failure into the body.
            code, message = self._error_body(body["error"])
            return Failure(f"an error in the body ({code or message or 'unnamed'})", "retry")
        try:
            choice = body["choices"][0]
            content = choice["message"].get("content")
            finish = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            return Failure("the body holds no choices", "retry")
        reply = content if isinstance(content, str) else ""
        usage = body.get("usage")
        counts = [
            usage.get(name) if isinstance(usage, dict) else None
            for name in ("prompt_tokens", "completion_tokens")
        ]
        served_by = f"{self._host} {body.get('model', '')}".strip()
        finish = finish if isinstance(finish, str) else None
        if all(isinstance(count, int) and count >= 0 for count in counts):
            return Reply(reply, finish, counts[0], counts[1], "reply", served_by)  # type: ignore[arg-type]
        if not self._answered:
            log.warning(
                "%s does not count tokens: they and the cost are estimated from the texts' lengths",
                self._host,
            )
        guess = [round(len(part.encode("utf-8", "replace")) / BYTES_PER_TOKEN) for part in (prompt, reply)]
        return Reply(reply, finish, guess[0], guess[1], "estimate", served_by)

    def _error_body(self, body: object) -> tuple[str, str]:
        """(code, message) of a server's error, in one short line each and without the key."""
        inner = body.get("error", body) if isinstance(body, dict) else body
        if not isinstance(inner, dict):
            inner = {"message": inner}
        texts = []
        for name, longest in (("code", 60), ("message", 200)):
            text = " ".join(str(inner.get(name) or "").split()).replace(self._client.api_key, "***")
            texts.append(text if len(text) <= longest else text[: longest - 3] + "...")
        return texts[0], texts[1]
