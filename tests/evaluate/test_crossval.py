"""Cross-validation against a slow plain version, and what it must not depend on."""

from __future__ import annotations

import math
import statistics

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.crossval import cross_validate, folds, pair_seed
from tagsteer.evaluate.scores import pair_ratings
from tests.evaluate.tables import ratings_table, table_of


def plain(grid, repeats=10, splits=4, seed=0, min_coverage=0.5):
    """The protocol in loops over Python lists: (score, chosen strengths)."""
    n = len(grid.instruction_ids)
    parts = folds(n, repeats, splits, pair_seed(seed, grid.pair))
    by_repeat, chosen = [], []
    for r in range(repeats):
        scores = []
        for k in range(splits):
            train = [j for j in range(n) if parts[r, j] != k]
            best, best_mean = None, None
            for s in range(len(grid.strengths)):
                known = [grid.overall[s, j] for j in train if not math.isnan(grid.overall[s, j])]
                if not known or len(known) < math.ceil(min_coverage * len(train)):
                    continue
                mean = round(math.fsum(known) / len(known), 9)
                if best_mean is None or mean > best_mean:
                    best, best_mean = s, mean
            chosen.append(math.nan if best is None else grid.strengths[best])
            if best is not None:
                test = [grid.overall[best, j] for j in range(n) if parts[r, j] == k]
                test = [x for x in test if not math.isnan(x)]
                if test:
                    scores.append(statistics.fmean(test))
        if scores:
            by_repeat.append(statistics.fmean(scores))
    return (statistics.fmean(by_repeat) if by_repeat else math.nan), chosen


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("instructions", [20, 18, 5])
def test_equals_the_plain_version(missing, instructions):
    table = ratings_table(
        pairs=range(4),
        strengths=(0.5, 1, 2, 4, 8),
        instructions=instructions,
        seed=instructions,
        missing=missing,
    )
    for grid in pair_ratings(table):
        score, chosen = plain(grid, seed=5)
        ours = cross_validate(grid, seed=5)
        assert ours.overall == pytest.approx(score, abs=1e-12, nan_ok=True)
        np.testing.assert_array_equal(ours.chosen.ravel(), chosen)


def test_every_instruction_is_held_out_once_per_repeat():
    parts = folds(18, 10, 4, np.random.default_rng(0))
    assert parts.shape == (10, 18)
    for row in parts:
        assert sorted(np.bincount(row, minlength=4)) == [4, 4, 5, 5]
    assert len({tuple(row) for row in parts}) == 10


def test_a_strength_that_always_wins_is_chosen_and_its_mean_reported():
    cv = cross_validate(pair_ratings(table_of({1.0: [0] * 20, 2.0: [1, 2] * 10, 4.0: [0.5] * 20}))[0])
    assert cv.overall == pytest.approx(1.5) and cv.strength == 2.0 and cv.strength_share == 1.0
    assert cv.concept == pytest.approx(1.5)
    np.testing.assert_allclose(cv.per_instruction, [1, 2] * 10)


def test_held_out_scores_of_pure_noise_are_unbiased_where_the_maximum_is_not():
    rng = np.random.default_rng(0)
    tables = [
        table_of({s: list(rng.integers(0, 3, 20).astype(float)) for s in (1.0, 2.0, 3.0, 4.0, 5.0)}, pair=p)
        for p in range(150)
    ]
    grids = pair_ratings(pl.concat(tables))
    held_out = np.mean([cross_validate(grid).overall for grid in grids])
    maximum = np.mean([grid.curve().max() for grid in grids])
    # Ratings 0, 1, 2 have mean 1; a mean over 20 texts has deviation .18, and 150 pairs leave about .015.
    assert abs(held_out - 1) < 0.06
    assert maximum > 1.15


def test_depends_on_seed_and_pair_but_not_on_method_feature_or_order():
    table = ratings_table(pairs=("a", "b"), seed=2)
    by_pair = {g.pair: cross_validate(g, seed=1) for g in pair_ratings(table)}
    other = table.with_columns(method=pl.lit("random"), feature=pl.lit(99)).reverse()
    for grid in pair_ratings(other):
        np.testing.assert_array_equal(cross_validate(grid, seed=1).chosen, by_pair[grid.pair].chosen)
        assert cross_validate(grid, seed=1).overall == by_pair[grid.pair].overall
    first = pair_ratings(table)[0]
    assert cross_validate(first, seed=2).overall != by_pair["a"].overall


def test_ties_go_to_the_smallest_strength():
    # The same scores in another order: sums differ in the last bit, the means are tied.
    scores = [0.0, 1.2, 1.5, 1.0, 1.2, 1.2, 0.0, 2.0] * 2
    cv = cross_validate(pair_ratings(table_of({3.0: scores, 1.0: scores, 2.0: scores}))[0])
    assert set(cv.chosen.ravel()) == {1.0}


def test_one_strength_is_the_plain_mean_as_for_prompting():
    cv = cross_validate(pair_ratings(table_of({0.0: [0, 1, 2, None, 1]}, method="prompt"))[0])
    assert cv.overall == 1.0 and cv.strength_share == 1.0 and cv.repeat_deviation == 0.0


def test_a_lucky_answer_among_missing_ones_is_not_chosen():
    mostly_missing = [2.0] + [None] * 19
    cv = cross_validate(pair_ratings(table_of({1.0: [1.0] * 20, 2.0: mostly_missing}))[0])
    assert cv.overall == 1.0 and cv.strength == 1.0
    cv = cross_validate(pair_ratings(table_of({1.0: [1.0] * 20, 2.0: mostly_missing}))[0], min_coverage=0)
    # Chosen whenever the one answer is in the training part, and then nothing is left to score it by.
    assert cv.strength == 2.0 and cv.unscored_splits == 30


def test_all_missing_is_nan_with_a_reason():
    cv = cross_validate(pair_ratings(table_of({1.0: [None] * 20, 2.0: [None] * 20}))[0])
    assert math.isnan(cv.overall) and math.isnan(cv.strength) and cv.unscored_splits == 40
    assert "no strength has 50%" in cv.reason


@pytest.mark.parametrize(
    "options, named",
    [
        ({"splits": 1}, "1 splits|of 1"),
        ({"repeats": 0}, "0 repeats"),
        ({"min_coverage": 2}, "min_coverage 2"),
    ],
)
def test_impossible_options_are_refused(options, named):
    with pytest.raises(TagsteerError, match=named):
        cross_validate(pair_ratings(ratings_table())[0], **options)


def test_fewer_instructions_than_splits_are_refused():
    with pytest.raises(TagsteerError, match="3 instructions, too few for 4 splits"):
        cross_validate(pair_ratings(ratings_table(instructions=3))[0])
