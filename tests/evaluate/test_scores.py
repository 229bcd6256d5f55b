"""The overall score against the standard library's harmonic mean, grids against plain counting."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.scores import curve_mean, mean_known, overall_score, pair_ratings, strength_curves
from tests.evaluate.tables import ratings_table, table_of

RATING = st.floats(0, 2).filter(lambda x: x == 0 or x > 1e-6)


@pytest.mark.parametrize("ratings", list(itertools.product((0, 1, 1.5, 2), repeat=3)))
def test_overall_score_is_the_harmonic_mean(ratings):
    wanted = statistics.harmonic_mean(ratings) if all(ratings) else 0.0
    assert overall_score(*ratings) == pytest.approx(wanted, abs=1e-15)


def test_integer_ratings_give_five_values():
    values = {overall_score(*ratings) for ratings in itertools.product((0, 1, 2), repeat=3)}
    assert sorted(values) == [0, 1, 1.2, 1.5, 2]


@given(RATING, RATING, RATING)
def test_overall_score_lies_between_the_extremes_and_is_symmetric(c, i, f):
    score = overall_score(c, i, f)
    assert 0 <= score <= max(c, i, f) * (1 + 1e-12)
    assert score == 0 or score >= min(c, i, f) * (1 - 1e-12)
    assert score == pytest.approx(overall_score(f, c, i), abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, None])
@pytest.mark.parametrize("others", [(2, 2), (0, 2), (0, 0)])
def test_a_missing_rating_is_never_a_number(value, others):
    for place in range(3):
        ratings = list(others)
        ratings.insert(place, value)
        assert math.isnan(overall_score(*ratings))


def test_overall_score_broadcasts():
    score = overall_score(np.array([[0.0], [1.0], [math.nan]]), np.array([1.0, 2.0]), 2)
    assert score.shape == (3, 2) and score.dtype == np.float64
    np.testing.assert_array_equal(score, [[0, 0], [1.2, 1.5], [math.nan] * 2])
    assert isinstance(overall_score(1, 2, 2), float)


@pytest.mark.parametrize(
    "ratings, named",
    [
        ((-1, 1, 1), "-1"),
        ((1, math.inf, 1), "inf"),
        (("good", 1, 1), "good"),
        (([1, 2], [1, 2, 3], 1), "(2,)"),
    ],
)
def test_what_is_no_rating_is_refused_by_name(ratings, named):
    with pytest.raises(TagsteerError) as error:
        overall_score(*ratings)
    assert named in str(error.value)


def test_scores_need_numpy_only():
    code = "import sys, tagsteer.evaluate.scores; sys.exit(bool({'polars', 'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_curve_mean_equals_pandas_grouped_mean_to_the_bit():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    grid = rng.choice([0, 1, 1.2, 1.5, 2, math.nan], size=(300, 10))
    frame = pandas.DataFrame({"row": np.repeat(np.arange(300), 10), "x": grid.ravel()})
    np.testing.assert_array_equal(curve_mean(grid), frame.groupby("row")["x"].mean().to_numpy())


def test_means_of_nothing_are_nan_without_a_warning():
    assert math.isnan(mean_known(np.array([math.nan, math.nan])))
    assert math.isnan(curve_mean(np.full((1, 3), math.nan))[0])


def test_grid_holds_every_row_at_its_place():
    table = ratings_table(pairs=("a", "b"), seed=1, missing=0.1).sample(fraction=1.0, shuffle=True, seed=3)
    for grid in pair_ratings(table):
        assert (grid.feature, grid.label) == (7, f"label of {grid.pair}")
        for row in table.filter(pl.col("pair") == grid.pair).iter_rows(named=True):
            at = (
                list(grid.strengths).index(row["strength"]),
                list(grid.instruction_ids).index(row["instruction_id"]),
            )
            for name in ("concept", "instruction", "fluency"):
                stored = getattr(grid, name)[at]
                assert math.isnan(stored) if row[name] is None else stored == row[name]
    incomplete = table.select(
        pl.any_horizontal(pl.col("concept", "instruction", "fluency").is_null())
    ).to_series()
    assert sum(grid.n_missing for grid in pair_ratings(table)) == incomplete.sum() > 0


def test_absent_cells_and_duplicates_are_counted_and_treated_as_told():
    table = table_of({1.0: [1, 2, 0], 2.0: [2, 2, 2]})
    short = table.filter((pl.col("strength") != 2) | (pl.col("instruction_id") != 1))
    assert pair_ratings(short)[0].n_absent == 1
    again = pl.concat([table, table_of({1.0: [0.0]})])  # instruction 0 at strength 1 rated again, with 0
    with pytest.raises(TagsteerError, match=r"strength 1\.0, instruction_id 0"):
        pair_ratings(again)
    for how, mean in (("first", 1.0), ("last", 2 / 3), ("keep", 3 / 4)):
        grid = pair_ratings(again, how)[0]
        assert grid.n_duplicates == 1 and grid.n_absent == 0
        assert grid.curve()[0] == pytest.approx(mean)
        assert grid.curve()[1] == 2


def test_curves_count_what_is_scored_and_missing():
    curves = strength_curves(pair_ratings(table_of({1.0: [1, None, 0], 2.0: [None] * 3})))
    assert curves["overall"].to_list() == [0.5, None]
    assert curves["n_scored"].to_list() == [2, 0]
    assert curves["n_missing"].to_list() == [1, 3]


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda t: t.drop("fluency"), "lacks fluency"),
        (lambda t: t.head(0), "no rows"),
        (lambda t: t.with_columns(concept=pl.lit(3.0)), "outside 0..2"),
        (lambda t: t.with_columns(pair=pl.lit(None, pl.String)), "have no pair"),
    ],
)
def test_tables_that_cannot_be_scored_are_refused(change, named):
    with pytest.raises(TagsteerError, match=named):
        pair_ratings(change(ratings_table()))
