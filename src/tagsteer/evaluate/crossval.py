"""The paper's evaluation of one pair: repeated cross-validation over its instructions.

arXiv 2605.31183, section 3.2: 20 responses at every strength; for each split the strength with the highest
mean overall score on the training part is chosen and its score on the rest reported; 10 repeats of 4 splits.
Knows grids of ratings, nothing of tables, models or judges.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.scores import PairRatings, mean_known

REPEATS = 10
SPLITS = 4
MIN_COVERAGE = 0.5  # ours: the share of training ratings that a strength needs to be chosen
_TIE = 9  # decimals: means that differ only by rounding are ties


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Held-out means of one pair, and what was chosen; NaN with a reason when nothing could be scored."""

    overall: float
    concept: float
    instruction: float
    fluency: float
    strength: float  # chosen most often, the smaller one on ties; NaN for a method without strengths
    strength_share: float  # in which share of the splits
    chosen: np.ndarray  # (repeats, splits) strengths, NaN where no strength had enough ratings
    per_instruction: np.ndarray  # (instructions,) held-out overall, mean over repeats
    repeat_deviation: float  # standard deviation of the repeats' scores: what the random splits contribute
    unscored_splits: int
    reason: str | None


def pair_seed(seed: int, pair: Any) -> np.random.Generator:
    """A generator that depends on the seed and on the pair's name only: not on order, nor on the method.

    All methods of a pair are split alike, so that their differences are paired.
    """
    digest = hashlib.sha256(f"{seed}\x1f{pair}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def folds(n: int, repeats: int, splits: int, rng: np.random.Generator) -> np.ndarray:
    """The part of each of n instructions in every repeat, (repeats, n); sizes differ by at most one."""
    parts = np.arange(n) % splits
    return np.stack([rng.permutation(parts) for _ in range(repeats)])


def cross_validate(
    pair: PairRatings,
    *,
    repeats: int = REPEATS,
    splits: int = SPLITS,
    seed: int = 0,
    min_coverage: float = MIN_COVERAGE,
) -> CrossValidation:
    """Choose the strength on the training part, score it on the rest, repeat (module docstring).

    Ties go to the smaller strength. Missing ratings are left out of both means; a strength with fewer than
    `min_coverage` of the training ratings cannot be chosen, so that one lucky answer does not win. With a
    single strength nothing is chosen and the score is the plain mean, as the paper does for prompting.
    """
    if repeats < 1 or splits < 2:
        raise TagsteerError(f"{repeats} repeats of {splits} splits: wanted at least 1 repeat of 2 splits")
    if not 0 <= min_coverage <= 1:
        raise TagsteerError(f"min_coverage {min_coverage} is not a share: wanted 0 to 1")
    if len(pair.strengths) == 1:
        return _plain_mean(pair, repeats, splits)
    ids, column = np.unique(pair.instruction_ids, return_inverse=True)
    if len(ids) < splits:
        raise TagsteerError(
            f"pair {pair.pair!r} of {pair.method} has {len(ids)} instructions, too few for {splits} splits: "
            "rate more instructions or ask for fewer splits"
        )
    part = folds(len(ids), repeats, splits, pair_seed(seed, pair.pair))[:, column]  # (repeats, columns)
    held_out = part[:, None, :] == np.arange(splits)[None, :, None]  # (repeats, splits, columns)
    known = ~np.isnan(pair.overall)  # (strengths, columns)
    train = (~held_out).astype(np.float64)
    count = train @ known.T  # (repeats, splits, strengths)
    total = train @ np.where(known, pair.overall, 0.0).T
    mean = np.divide(total, count, out=np.full(count.shape, -np.inf), where=count > 0)
    enough = count >= np.maximum(1, np.ceil(min_coverage * train.sum(axis=2, keepdims=True)))
    mean = np.where(enough, np.round(mean, _TIE), -np.inf)
    best = mean.argmax(axis=2)  # the first maximum: the smallest strength
    usable = enough.any(axis=2)  # (repeats, splits)

    def split_means(grid: np.ndarray) -> np.ndarray:  # (repeats, splits)
        # All means are over the same texts: one without an overall score counts in none of them.
        picked = np.where(held_out & usable[..., None] & known[best], grid[best], np.nan)
        return mean_known(picked, axis=2)

    scores = split_means(pair.overall)
    by_repeat = mean_known(scores, axis=1)
    # Each instruction is held out once per repeat, at the strength that its split chose.
    held = np.where(held_out & usable[..., None], pair.overall[best], np.nan)
    per_column = mean_known(held.reshape(-1, held.shape[-1]), axis=0)
    per_instruction = np.array([mean_known(per_column[column == k]) for k in range(len(ids))])
    chosen = np.where(usable, pair.strengths[best], np.nan)
    strength, share = _most_frequent(chosen)
    unscored = int(np.isnan(scores).sum())
    overall = mean_known(by_repeat)
    return CrossValidation(
        overall=overall,
        concept=mean_known(mean_known(split_means(pair.concept), axis=1)),
        instruction=mean_known(mean_known(split_means(pair.instruction), axis=1)),
        fluency=mean_known(mean_known(split_means(pair.fluency), axis=1)),
        strength=strength,
        strength_share=share,
        chosen=chosen,
        per_instruction=per_instruction,
        repeat_deviation=_deviation(by_repeat),
        unscored_splits=unscored,
        reason=f"no strength has {min_coverage:.0%} of its ratings" if math.isnan(overall) else None,
    )


def _plain_mean(pair: PairRatings, repeats: int, splits: int) -> CrossValidation:
    ids, column = np.unique(pair.instruction_ids, return_inverse=True)
    overall = mean_known(pair.overall[0])
    return CrossValidation(
        overall=overall,
        **{
            name: mean_known(np.where(np.isnan(pair.overall[0]), np.nan, getattr(pair, name)[0]))
            for name in ("concept", "instruction", "fluency")
        },
        strength=float(pair.strengths[0]),
        strength_share=1.0,
        chosen=np.full((repeats, splits), pair.strengths[0]),
        per_instruction=np.array([mean_known(pair.overall[0][column == k]) for k in range(len(ids))]),
        repeat_deviation=0.0,
        unscored_splits=0,
        reason="every rating is missing" if math.isnan(overall) else None,
    )


def _most_frequent(chosen: np.ndarray) -> tuple[float, float]:
    known = chosen[~np.isnan(chosen)]
    if not known.size:
        return math.nan, math.nan
    values, counts = np.unique(known, return_counts=True)
    return float(values[counts.argmax()]), float(counts.max() / chosen.size)


def _deviation(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if known.size > 1 else math.nan
