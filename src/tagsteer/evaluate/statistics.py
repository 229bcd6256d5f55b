"""Uncertainty of means over pairs: bootstrap intervals, paired tests, win rates, and the judge's own noise.

Everything is over pairs as the unit: texts of one pair share a feature and a label and are not independent.
Knows arrays of scores, nothing of tables' origins. Seeded throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.scores import RATINGS, overall_score

if TYPE_CHECKING:
    import polars as pl

RESAMPLES = 10_000
EXACT_UP_TO = 16  # pairs: 2^16 sign patterns are enumerated, more are sampled
_CELLS = 1 << 22  # numbers held at once while resampling


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile-bootstrap interval; low and high are NaN for fewer than two known values."""

    mean: float
    low: float
    high: float
    n: int
    n_missing: int
    confidence: float


def bootstrap_interval(
    values: Any, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of the known values, with the percentile interval of the means of resamples with replacement.

    NaN is left out and counted. AxBench uses 1000 resamples and 95 %.
    """
    if not 0 < confidence < 1:
        raise TagsteerError(f"confidence {confidence} is not a share: wanted between 0 and 1, such as 0.95")
    array = np.asarray(values, dtype=np.float64).ravel()
    known = array[~np.isnan(array)]
    missing = int(array.size - known.size)
    if known.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing, confidence)
    mean = float(known.mean())
    if known.size == 1:
        return Interval(mean, math.nan, math.nan, 1, missing, confidence)
    means = _resampled_means(known, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), int(known.size), missing, confidence)


def _resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    n = len(values)
    rows = max(1, _CELLS // n)
    means = [
        values[rng.integers(0, n, size=(min(rows, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(means)


@dataclass(frozen=True)
class PairedTest:
    """Differences first - second over the pairs that both have."""

    difference: float
    low: float  # bootstrap interval of the mean difference
    high: float
    p_value: float  # two-sided sign-flip permutation test of a mean difference of 0
    n: int
    n_unpaired: int  # pairs left out because one side is missing
    wins: int
    ties: int
    losses: int
    win_rate: float  # 1 for a win, 1/2 for a tie, 0 for a loss, averaged (AxBench's win rate)
    exact: bool  # all sign patterns were enumerated


def paired_test(
    first: Any,
    second: Any,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    tie: float = 1e-9,
) -> PairedTest:
    """Sign-flip permutation test and bootstrap interval of first - second; pairs with NaN are left out.

    Under the hypothesis of no difference each pair's difference has a symmetric sign. Up to 16 pairs all 2^n
    patterns are counted; beyond, `resamples` are drawn and p = (1 + hits) / (1 + drawn), never 0.
    """
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (first, second))
    if a.shape != b.shape:
        raise TagsteerError(
            f"{a.size} scores against {b.size}: a paired test wants the same pairs in the same order"
        )
    both = ~np.isnan(a) & ~np.isnan(b)
    d = (a - b)[both]
    n, unpaired = int(both.sum()), int((~both).sum())
    if n == 0:
        nan = math.nan
        return PairedTest(nan, nan, nan, nan, 0, unpaired, 0, 0, 0, nan, True)
    wins, losses = int((d > tie).sum()), int((d < -tie).sum())
    ties = n - wins - losses
    interval = bootstrap_interval(d, confidence=confidence, resamples=resamples, seed=seed)
    p, exact = _sign_flip(d, resamples, np.random.default_rng([seed, 1]))
    win_rate = (wins + ties / 2) / n
    return PairedTest(
        interval.mean, interval.low, interval.high, p, n, unpaired, wins, ties, losses, win_rate, exact
    )


def _sign_flip(d: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, bool]:
    n = len(d)
    observed = abs(d.sum()) - 1e-9 * (
        1 + np.abs(d).sum()
    )  # sums of the same numbers in another order are equal
    if n <= EXACT_UP_TO:
        patterns = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
        sums = (1.0 - 2.0 * patterns) @ d
        return float((np.abs(sums) >= observed).mean()), True
    hits, rows = 0, max(1, _CELLS // n)
    for start in range(0, resamples, rows):
        signs = rng.integers(0, 2, size=(min(rows, resamples - start), n)) * 2.0 - 1.0
        hits += int((np.abs(signs @ d) >= observed).sum())
    return (1 + hits) / (1 + resamples), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests, NaN kept and not counted (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    running = 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[at]))
        adjusted[at] = running
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class JudgeNoise:
    """How far two ratings of the same texts by the same judge differ."""

    n: int  # texts rated twice, on which every share is
    n_missing: int
    agreement: dict[str, float]  # share of identical ratings: concept, instruction, fluency, overall
    mean_difference: float  # mean |first - second| of the overall score
    text_deviation: float  # standard deviation of one text's overall score: rms difference / sqrt(2)

    def deviation_of_mean(self, texts: int) -> float:
        """Standard deviation that the judge alone gives to a mean over so many texts rated once."""
        return self.text_deviation / math.sqrt(texts)


def judge_noise(
    first: Mapping[str, Any], second: Mapping[str, Any], *, suppression: bool = False
) -> JudgeNoise:
    """Agreement of two ratings of the same texts, from arrays under concept, instruction and fluency.

    With suppression the overall score takes 2 - concept.
    """
    a = {name: np.asarray(first[name], dtype=np.float64) for name in RATINGS}
    b = {name: np.asarray(second[name], dtype=np.float64) for name in RATINGS}
    for side in (a, b):
        concept = 2 - side["concept"] if suppression else side["concept"]
        side["overall"] = overall_score(concept, side["instruction"], side["fluency"])
    known = ~np.isnan(a["overall"]) & ~np.isnan(b["overall"])
    n = int(known.sum())
    if n == 0:
        raise TagsteerError(
            "no text has two complete ratings: rate some texts twice to measure the judge's noise"
        )
    d = (a["overall"] - b["overall"])[known]
    return JudgeNoise(
        n=n,
        n_missing=int(known.size - n),
        agreement={name: float((a[name] == b[name])[known].mean()) for name in (*RATINGS, "overall")},
        mean_difference=float(np.abs(d).mean()),
        text_deviation=float(np.sqrt((d**2).mean() / 2)),
    )


def judge_noise_of_table(table: pl.DataFrame, *, suppression: bool = False) -> JudgeNoise:
    """Judge noise of a table with columns <rating>_a and <rating>_b, or <AxBench's name>_rating_a and _b."""

    def side(which: str) -> dict[str, np.ndarray]:
        found = {}
        for name, axbench in zip(
            RATINGS, ("relevance_concept", "relevance_instruction", "fluency"), strict=True
        ):
            column = next(
                (c for c in (f"{name}_{which}", f"{axbench}_rating_{which}") if c in table.columns), None
            )
            if column is None:
                raise TagsteerError(f"the table of re-judged texts has no column {name}_{which}")
            found[name] = table[column].to_numpy()
        return found

    return judge_noise(side("a"), side("b"), suppression=suppression)
