"""What every judge takes and gives: texts in, three ratings of 0 to 2 out, and why one is missing.

Must not know torch, SAEs, or how a rating is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from tagsteer.errors import TagsteerError

PARTS = ("concept", "instruction", "fluency")
"""The three parts of a rating, in AxBench's order."""


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One text to be judged: the continuation alone, without its prompt. `key` is unique among them."""

    key: str
    concept: str
    instruction: str
    generation: str


@dataclass(frozen=True, slots=True)
class Rating:
    """Ratings from 0 to 2; None is missing, and `reasons[part]` says why."""

    concept: float | None
    instruction: float | None
    fluency: float | None
    reasons: dict[str, str] = field(default_factory=dict)
    judge: str = ""

    @property
    def complete(self) -> bool:
        """Whether no part is missing."""
        return None not in (self.concept, self.instruction, self.fluency)


@runtime_checkable
class Judge(Protocol):
    """A judge of any kind: a server, a local model, recorded replies, an offline model."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def describe(self) -> str:
        """For tables, e.g. "gpt-4o-mini, rubric axbench-1, temperature 0.7"."""
        ...

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """(key, rating) of every item, as they arrive, in any order."""
        ...


def check_keys(items: Sequence[JudgeItem]) -> None:
    """Refuse two items of one key: their ratings could not be told apart."""
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise TagsteerError(
                f"two items to judge have the key {item.key!r}: give every text a key of its own"
            )
        seen.add(item.key)
