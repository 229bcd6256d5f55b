"""Benchmarks: every `bench_*.py` has `run(quick: bool) -> list[Row]`; `python -m benchmarks` runs them.

A benchmark measures tagsteer and what it is compared with in the same process, one after the other, so that
a ratio never mixes two machines. The tables in docs/benchmarks.md are written from these rows only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of tagsteer's and, if there is one, the figure it is held against."""

    what: str
    """What was done, with its size: "score 131,072 features × 300 labels"."""
    value: float
    """tagsteer's figure."""
    unit: str
    """"s", "tokens/s", "GiB"."""
    against: str = ""
    """What it is compared with, in words; empty for a figure that stands alone."""
    against_value: float | None = None
    """That one's figure, in the same unit."""
    higher_is_better: bool = False
    target: str = ""
    """What was asked for: "< 10 s", "≥ 10 ×"."""
    note: str = ""
    """How it was measured, where the reader must know (extrapolated, busy machine)."""

    @property
    def ratio(self) -> float | None:
        """How many times better than what it is compared with; None where there is nothing to compare."""
        if self.against_value is None:
            return None
        better, worse = (
            (self.value, self.against_value) if self.higher_is_better else (self.against_value, self.value)
        )
        return better / worse if worse else None
