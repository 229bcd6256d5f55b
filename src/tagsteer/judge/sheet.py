"""The questions of a list of items, each distinct one once, and the ratings put together from their answers.

Shared by all judges that ask by rubric. Must not know how questions are answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tagsteer.judge.rubric import Rubric, question_key
from tagsteer.judge.store import Question
from tagsteer.judge.types import PARTS, JudgeItem, Rating, check_keys


class Sheet:
    """Items on the way to being rated; two texts that ask a question in the same words share its answer."""

    def __init__(
        self,
        items: Sequence[JudgeItem],
        rubric: Rubric,
        model: str,
        parameters: Mapping[str, Any],
        judge: str,
    ) -> None:
        check_keys(items)
        self._items, self._rubric, self._model, self._judge = items, rubric, model, judge
        self._parameters = json.dumps(dict(parameters), sort_keys=True)
        self._given: list[dict[str, tuple[float | None, str]]] = [{} for _ in items]
        self._waiting: dict[str, list[tuple[int, str]]] = {}
        for index, item in enumerate(items):
            for part in PARTS:
                key = question_key(model, rubric.version, parameters, rubric.prompt(part, item))
                self._waiting.setdefault(key, []).append((index, part))

    def open_keys(self) -> list[str]:
        """The keys of all open questions, in the order of the items."""
        return list(self._waiting)

    def question(self, key: str) -> Question:
        """An open question in full; prompts are made when needed, not kept."""
        index, part = self._waiting[key][0]
        prompt = self._rubric.prompt(part, self._items[index])
        return Question(key, part, self._model, self._rubric.version, self._parameters, prompt)

    def settle(self, key: str, rating: float | None, reason: str) -> Iterator[tuple[str, Rating]]:
        """Note the outcome of a question; gives the items that are complete with it."""
        for index, part in self._waiting.pop(key):
            given = self._given[index]
            given[part] = (rating, reason)
            if len(given) == len(PARTS):
                yield self._items[index].key, make_rating(given, self._judge)


def make_rating(given: Mapping[str, tuple[float | None, str]], judge: str) -> Rating:
    """A rating from (value, reason) of each part."""
    reasons = {part: given[part][1] for part in PARTS if given[part][0] is None}
    return Rating(given["concept"][0], given["instruction"][0], given["fluency"][0], reasons, judge)
