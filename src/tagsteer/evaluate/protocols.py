"""Named protocols: how a strength is chosen, on which split it is scored, in which order means are taken.

The same judged rows give overall scores between .23 and .57 depending on nothing but this, so no score leaves
this package without the name of its protocol. Knows grids of ratings, nothing of files, models or judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsteer.errors import TagsteerError, one_of
from tagsteer.evaluate.crossval import MIN_COVERAGE, REPEATS, SPLITS, cross_validate
from tagsteer.evaluate.scores import PairRatings, curve_mean, mean_known, overall_score

ALPACA_EVAL_SIZE = 805


def sample_instructions(concept_id: int, n: int) -> list[int]:
    """Rows of the 805 AlpacaEval instructions that AxBench gives to a concept, in drawn order.

    numpy's RandomState(concept_id).choice(805, n, replace=False); a larger n only appends.

    >>> sample_instructions(0, 3)
    [8, 258, 172]
    """
    if (
        isinstance(concept_id, bool)
        or not isinstance(concept_id, int | np.integer)
        or not 0 <= concept_id < 2**32
    ):
        raise TagsteerError(
            f"concept_id {concept_id!r} is not a seed: wanted an integer from 0 to {2**32 - 1}"
        )
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= ALPACA_EVAL_SIZE:
        raise TagsteerError(f"n {n!r} instructions: wanted 1 to {ALPACA_EVAL_SIZE}, which AlpacaEval has")
    drawn = np.random.RandomState(int(concept_id)).choice(ALPACA_EVAL_SIZE, int(n), replace=False)
    return [int(row) for row in drawn]


@dataclass(frozen=True)
class Protocol:
    """What a table has to say about its figures, and what `score_pairs` does."""

    name: str
    selection: str
    split: str
    averaging: str
    source: str
    ours: bool = False  # for comparison only: no publication reports by it

    @property
    def line(self) -> str:
        """One line for the head of a table."""
        return (
            f"protocol {self.name}: selection {self.selection}; "
            f"split {self.split}; averaging {self.averaging}"
        )


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "paper",
            "per feature-label pair, highest mean overall on the training part, ties to the smallest",
            f"repeated cross-validation over instructions, {REPEATS} repeats x {SPLITS} splits",
            "harmonic mean per text, mean over held-out texts, splits, repeats, then pairs",
            "Jørgensen & Hansen, arXiv 2605.31183, section 3.2",
        ),
        Protocol(
            "axbench",
            "per concept and method, highest mean overall on the dev half, ties to the smallest factor",
            "dev = first n - round(n/2) instructions (Python's rounding), reported on the rest",
            "harmonic mean per text, mean over test texts, then concepts",
            "Wu et al., arXiv 2501.17148, code since 2025-02-15",
        ),
        Protocol(
            "axbench-dev",
            "per concept and method, highest mean overall on the dev half",
            "reported on the same dev half: optimistic",
            "harmonic mean per text, mean over dev texts, then concepts",
            "AxBench's code and notebook until 2025-02-15",
        ),
        Protocol(
            "axbench-global",
            "one factor for all concepts, highest mean overall over all dev texts",
            "dev half chooses, test half reported",
            "harmonic mean per text, mean over test texts, then concepts",
            "how arXiv 2605.31183 describes AxBench; not what AxBench's code does",
        ),
        Protocol(
            "axbench-hm-of-means",
            "as axbench",
            "as axbench",
            "means of the three ratings over test texts, harmonic mean of these, then concepts",
            "the averaging order of Arad et al., arXiv 2505.20063",
        ),
        Protocol(
            "max",
            "per pair, highest mean overall over all texts",
            "none: chosen and reported on the same texts, optimistic",
            "harmonic mean per text, mean over texts, then pairs",
            "for comparison only",
            ours=True,
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of that name, or an error that lists them."""
    if name not in PROTOCOLS:
        raise one_of(name, list(PROTOCOLS), "protocol")
    return PROTOCOLS[name]


@dataclass(frozen=True, eq=False)
class PairScore:
    """The score of one pair of one method under one protocol; NaN with a reason where there is none."""

    ratings: PairRatings
    strength: float
    overall: float
    concept: float
    instruction: float
    fluency: float
    per_instruction: np.ndarray  # the scores of single texts (or instructions) that the mean is over
    strength_share: float  # how stable the choice was: 1 where it was made once
    n_tied: int  # strengths that shared the best mean; 0 where there were several choices
    reason: str | None


def dev_test(instruction_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AxBench's halves as masks over columns: n = max id + 1, dev = ids below n - round(n/2), test = rest.

    The ids are positions in drawn order. Python rounds halves to even: n = 5 gives dev 3 and test 2.
    """
    n = int(instruction_ids.max()) + 1
    if int(instruction_ids.min()) < 0 or 2 * len(np.unique(instruction_ids)) <= n:
        raise TagsteerError(
            f"{len(np.unique(instruction_ids))} instruction ids up to {n - 1} are not "
            "positions in drawn order, by which AxBench splits: number them 0, 1, 2, … per pair"
        )
    dev = instruction_ids < n - round(n * 0.5)
    return dev, ~dev


def first_maximum(curve: np.ndarray) -> tuple[int | None, int]:
    """Position of the first maximum and how many share it; (None, 0) when nothing is known."""
    if np.isnan(curve).all():
        return None, 0
    highest = np.nanmax(curve)
    tied = curve == highest
    return int(tied.argmax()), int(tied.sum())


@dataclass(frozen=True)
class AxBenchScore:
    """All columns by which AxBench-like figures of one concept and method have been reported."""

    best_factor: float
    n_tied: int
    dev_max: float
    test_overall: float
    test_concept: float
    test_instruct: float
    test_fluency: float
    hm_of_means: float
    max_over_all: float


def axbench_score(pair: PairRatings, factor: float | None = None) -> AxBenchScore:
    """AxBench's selection on the dev half and every column, NaN left out; `factor` overrules the choice."""
    dev, test = dev_test(pair.instruction_ids)
    curve = curve_mean(pair.overall[:, dev])
    at, tied = first_maximum(curve)
    if factor is not None:
        found = np.flatnonzero(pair.strengths == factor)
        at, tied = (int(found[0]), 1) if found.size else (None, 0)
    best_all, _ = first_maximum(pair.curve())
    if at is None:
        return AxBenchScore(*(math.nan, 0), *[math.nan] * 7)
    known = ~np.isnan(pair.overall[at]) & test

    def mean(grid: np.ndarray) -> float:
        return float(np.mean(grid[at][known])) if known.any() else math.nan

    c, i, f = mean(pair.concept), mean(pair.instruction), mean(pair.fluency)
    return AxBenchScore(
        best_factor=float(pair.strengths[at]),
        n_tied=tied,
        dev_max=float(curve[at]),
        test_overall=mean(pair.overall),
        test_concept=c,
        test_instruct=i,
        test_fluency=f,
        hm_of_means=overall_score(c, i, f),
        max_over_all=float(pair.curve()[best_all]) if best_all is not None else math.nan,
    )


def global_factor(pairs: Sequence[PairRatings]) -> float:
    """The factor with the highest mean overall over the dev texts of all pairs; NaN when nothing is known."""
    sums: dict[float, list[float]] = {}
    for pair in pairs:
        dev, _ = dev_test(pair.instruction_ids)
        for strength, row in zip(pair.strengths, pair.overall[:, dev], strict=True):
            sums.setdefault(float(strength), []).extend(row[~np.isnan(row)])
    strengths = sorted(sums)
    curve = np.array([math.fsum(sums[s]) / len(sums[s]) if sums[s] else math.nan for s in strengths])
    at, _ = first_maximum(np.round(curve, 9)) if len(curve) else (None, 0)
    return strengths[at] if at is not None else math.nan


def score_pairs(
    pairs: Sequence[PairRatings], name: str = "paper", *, seed: int = 0, **options: Any
) -> list[PairScore]:
    """Every pair scored by the named protocol, in the given order.

    options are those of `cross_validate` for "paper" (repeats, splits, min_coverage). Every method with more
    than one strength has its strength chosen by the same rule, random features included: a control whose
    strength was not tuned would flatter the method that it is compared with.
    """
    protocol(name)
    if name == "paper":
        return [_by_crossval(pair, seed, options) for pair in pairs]
    if options:
        raise TagsteerError(f"protocol {name} has no option {', '.join(options)}: only paper takes options")
    shared: dict[str, float] = {}
    if name == "axbench-global":
        for method in dict.fromkeys(pair.method for pair in pairs):
            shared[method] = global_factor([pair for pair in pairs if pair.method == method])
    return [_by_halves(pair, name, shared.get(pair.method)) for pair in pairs]


def _by_crossval(pair: PairRatings, seed: int, options: dict[str, Any]) -> PairScore:
    cv = cross_validate(pair, seed=seed, **{"min_coverage": MIN_COVERAGE, **options})
    return PairScore(
        ratings=pair,
        strength=cv.strength,
        overall=cv.overall,
        concept=cv.concept,
        instruction=cv.instruction,
        fluency=cv.fluency,
        per_instruction=cv.per_instruction,
        strength_share=cv.strength_share,
        n_tied=0,
        reason=cv.reason,
    )


def _by_halves(pair: PairRatings, name: str, factor: float | None) -> PairScore:
    if name == "max":
        selects = reports = np.ones(len(pair.instruction_ids), dtype=bool)
    else:
        selects, test = dev_test(pair.instruction_ids)
        reports = selects if name == "axbench-dev" else test
    at, tied = first_maximum(curve_mean(pair.overall[:, selects]))
    if factor is not None and len(pair.strengths) > 1:
        found = np.flatnonzero(pair.strengths == factor)
        at, tied = (int(found[0]), 1) if found.size else (None, 0)
    if at is None:
        why = (
            f"no rating at the global factor {factor:g}" if factor is not None else "every rating is missing"
        )
        nan = math.nan
        return PairScore(pair, nan, nan, nan, nan, nan, np.empty(0), nan, 0, why)
    part = reports & ~np.isnan(pair.overall[at])
    texts = pair.overall[at][part]
    c, i, f = (mean_known(grid[at][part]) for grid in (pair.concept, pair.instruction, pair.fluency))
    overall = overall_score(c, i, f) if name == "axbench-hm-of-means" else mean_known(texts)
    reason = "every rating of the reported part is missing" if math.isnan(overall) else None
    return PairScore(pair, float(pair.strengths[at]), overall, c, i, f, texts, 1.0, tied, reason)
