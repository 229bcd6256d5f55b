"""Judges that ask nobody: replies written down before, and the answers that a store already holds.

For tests, examples, and rating anew without a network. Must not know where the replies came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tagsteer.errors import TagsteerError
from tagsteer.judge.rubric import read_reply
from tagsteer.judge.settings import JudgeSettings
from tagsteer.judge.sheet import Sheet, make_rating
from tagsteer.judge.store import JudgementStore
from tagsteer.judge.types import PARTS, JudgeItem, Rating, check_keys
from tagsteer.progress import track

Replies = Mapping[tuple[str, str], str] | Callable[[str, JudgeItem], str | None]
"""Reply by (key of the item, part), or a function of (part, item); None where there is none."""


class RecordedJudge:
    """Reads ratings from replies given beforehand."""

    def __init__(self, replies: Replies, name: str = "recorded replies", version: str = "1") -> None:
        self._replies, self.name, self.version = replies, name, version

    @classmethod
    def from_jsonl(cls, path: Path | str, name: str = "recorded replies") -> RecordedJudge:
        """Replies from lines like {"key": "a", "part": "fluency", "reply": "... Rating: [[1]]"}."""
        replies: dict[tuple[str, str], str] = {}
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except OSError as error:
            raise TagsteerError(
                f"cannot read recorded replies from {path}: {error.strerror}; give a .jsonl file"
            ) from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key, part, reply = row["key"], row["part"], row["reply"]
            except (ValueError, KeyError, TypeError) as error:
                raise TagsteerError(
                    f"{path}:{number} is no recorded reply: wanted JSON with key, part and reply"
                ) from error
            if part not in PARTS or not all(isinstance(text, str) for text in (key, reply)):
                raise TagsteerError(
                    f"{path}:{number}: wanted a part of {', '.join(PARTS)} and texts, got part {part!r}"
                )
            replies[key, part] = reply
        return cls(replies, name)

    def describe(self) -> str:
        """Name and version, for tables."""
        return f"{self.name}, version {self.version}"

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """The ratings in the recorded replies; a part without one is missing."""
        check_keys(items)
        with track("judging", total=len(items), unit="texts") as bar:
            for item in items:
                given = {part: self._read(part, item) for part in PARTS}
                bar.advance()
                yield item.key, make_rating(given, self.describe())

    def _read(self, part: str, item: JudgeItem) -> tuple[float | None, str]:
        if callable(self._replies):
            reply = self._replies(part, item)
        else:
            reply = self._replies.get((item.key, part))
        return (None, "no reply is recorded") if reply is None else read_reply(reply)


class StoredJudge:
    """Rates from a store alone: what was never asked is missing, and nothing is sent."""

    def __init__(self, settings: JudgeSettings, store: JudgementStore) -> None:
        self.settings, self.store = settings, store

    @property
    def name(self) -> str:
        return self.settings.model

    @property
    def version(self) -> str:
        return self.settings.rubric.version

    def describe(self) -> str:
        """As the judge that was asked."""
        return self.settings.describe()

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """Ratings read anew from the stored replies."""
        settings = self.settings
        sheet = Sheet(items, settings.rubric, settings.model, settings.parameters, self.describe())
        with track("rating anew", total=len(items), unit="texts") as bar:
            for key in sheet.open_keys():
                # One answer settles: how often an unreadable one was to be asked again does not matter here.
                outcome = self.store.outcome(key, asks=1)
                rating, reason = (outcome.rating, outcome.reason) if outcome else (None, "it was never asked")
                for item in sheet.settle(key, rating, reason):
                    bar.advance()
                    yield item
