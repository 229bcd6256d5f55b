"""Batches of work units under a budget, halved when memory runs out and raised again when it fits.

A unit is an index with a size (tokens of a document, rows of a matrix); what is in it, and what the work does
with it, is the caller's. Knows no model; torch is only looked at if the caller has loaded it.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tagsteer.errors import TagsteerError

log = logging.getLogger("tagsteer.compute")

R = TypeVar("R")

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "_ALLOC_FAILED")


def length_buckets(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Units sorted by size, longest first, cut so that count × largest size of a batch stays within `budget`.

    A unit larger than the budget is a batch of its own. Ties keep the order of the units, so the same sizes
    give the same batches.
    """
    order = _longest_first(sizes)
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        batches.append(_take(order, start, sizes, budget))
        start += len(batches[-1])
    return batches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


@dataclass
class Batcher:
    """Runs work over units in length-sorted batches of at most `budget` (count × largest size).

    When memory runs out the budget is halved and the same units are tried again; after `raise_after` batches
    that fit it is doubled, up to where it started, but a budget that failed twice is not tried a third time.
    Work must have no effect until it returns, since a batch that failed is repeated. The budget is kept
    between calls of `run`.
    """

    budget: int
    unit: str = "tokens"
    raise_after: int = 16

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise TagsteerError(f"a batch budget of {self.budget} {self.unit} holds nothing: give at least 1")
        self.ceiling = self.budget
        """Largest budget still tried."""
        self._failures: dict[int, int] = {}
        self._fitted = 0

    def run(self, sizes: Sequence[int], work: Callable[[list[int]], R]) -> Iterator[tuple[list[int], R]]:
        """(units of the batch, result of `work` on them), batch after batch, longest units first.

        TagsteerError when a single unit does not fit into memory; other errors of `work` pass through.
        """
        order, start = _longest_first(sizes), 0
        while start < len(order):
            batch = _take(order, start, sizes, self.budget)
            try:
                result = work(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            else:
                failure = ""
            # Outside the handler: the traceback no longer holds the tensors of the failed batch.
            if failure:
                self._halve(len(batch), sizes[batch[0]], failure)
                continue
            start += len(batch)
            self._raise()
            yield batch, result

    def _halve(self, count: int, largest: int, reason: str) -> None:
        if count == 1:
            raise TagsteerError(
                f"one unit of {largest:,} {self.unit} does not fit into memory ({reason}): "
                f"allow fewer {self.unit} a unit, or use a device with more memory"
            )
        self._failures[self.budget] = self._failures.get(self.budget, 0) + 1
        # The batch may have been smaller than the budget allowed: halve what was really tried.
        smaller = max(1, min(self.budget, count * largest) // 2)
        if self._failures[self.budget] > 1:
            self.ceiling = smaller
        log.warning(
            "memory ran out at %d %s a batch (%s): going on with %d", self.budget, self.unit, reason, smaller
        )
        self.budget, self._fitted = smaller, 0
        _release_memory()

    def _raise(self) -> None:
        self._fitted += 1
        if self._fitted >= self.raise_after and self.budget < self.ceiling:
            self.budget, self._fitted = min(2 * self.budget, self.ceiling), 0
            log.info(
                "%d batches fitted: trying %d %s a batch again", self.raise_after, self.budget, self.unit
            )


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))


def _take(order: list[int], start: int, sizes: Sequence[int], budget: int) -> list[int]:
    """The batch that begins at `start` of units ordered by falling size.

    It also ends before a unit of less than half the largest size, once it is an eighth full: a longer batch
    would mostly be padding.
    """
    largest = max(1, sizes[order[start]])
    end = min(start + max(1, budget // largest), len(order))
    enough = start + max(1, budget // (8 * largest))
    while end > enough and 2 * sizes[order[end - 1]] < largest:
        end -= 1
    return order[start:end]


def _release_memory() -> None:
    """Give cached device memory back, if torch is in use at all."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
