"""Label names per document to a sparse 0/1 matrix, and the log of what was skipped while reading.

Knows names and counts; must not know files or their formats.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

EXAMPLES_KEPT = 5


@dataclass(frozen=True)
class Skipped:
    """What was read and left out: counts by reason, and the first few places, "file:line detail"."""

    counts: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, int, tuple[str, ...]]]:
        for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            yield reason, count, self.examples.get(reason, ())

    @property
    def total(self) -> int:
        """Everything skipped, whatever the reason."""
        return sum(self.counts.values())

    @property
    def malformed(self) -> int:
        """Rows that were broken, beside those that were merely not wanted ("left out: ...")."""
        return sum(count for reason, count in self.counts.items() if not reason.startswith("left out"))

    def first(self, n: int = 3) -> str:
        """The n most frequent reasons in one line, for error messages."""
        return "; ".join(
            f"{count:,} {reason}" + (f" (first: {examples[0]})" if examples else "")
            for reason, count, examples in list(self)[:n]
        )


class SkipLog:
    """Counts skipped rows by reason and keeps the first few places."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, place: str | None = None) -> None:
        """One more for this reason, at a place like "Posts.xml:17 Id 9"."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if place is not None and len(places := self._examples.setdefault(reason, [])) < EXAMPLES_KEPT:
            places.append(place)

    def result(self) -> Skipped:
        """A frozen copy."""
        return Skipped(
            dict(self._counts), {reason: tuple(places) for reason, places in self._examples.items()}
        )


class LabelBuilder:
    """Collects the label names of one document after the other; a name given twice counts once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._columns = array("i")
        self._ends = array("q", [0])

    def append(self, names: Iterable[str]) -> None:
        """The labels of the next document."""
        numbers = self._numbers
        self._columns.extend(sorted({numbers.setdefault(name, len(numbers)) for name in names}))
        self._ends.append(len(self._columns))

    def finish(self) -> tuple[tuple[str, ...], csr_matrix]:
        """Names in alphabetical order, and the 0/1 matrix, uint8 [n_docs, n_labels]."""
        import numpy as np
        from scipy.sparse import csr_matrix

        names = tuple(sorted(self._numbers))
        rank = np.empty(len(names), dtype=np.int32)
        for position, name in enumerate(names):
            rank[self._numbers[name]] = position
        columns = (
            rank[np.frombuffer(self._columns, dtype=np.intc)] if len(self._columns) else np.empty(0, np.int32)
        )
        ends = np.frombuffer(self._ends, dtype=np.int64).copy()
        ones = np.ones(len(columns), dtype=np.uint8)
        matrix = csr_matrix((ones, columns, ends), shape=(len(ends) - 1, len(names)))
        matrix.sort_indices()
        return names, matrix
