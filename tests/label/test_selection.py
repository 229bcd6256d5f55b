"""The filters, in order, and what they say when nothing is left."""

from __future__ import annotations

import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.label.selection import select_pairs


def matches() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "feature": [1, 2, 3, 4, 5, 6],
            "label": [0, 0, 1, 1, 2, 2],
            "label_name": ["fish", "fish", "bread", "bread", "tea", "tea"],
            "f1": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
            "support": [49, 49, 50, 50, 80, 80],
            "q_value": [0.01, 0.01, 0.01, 0.2, None, 0.01],
            "representative": [True, False, True, False, True, True],
        }
    )


SCORES = {1: 0.9, 2: 0.9, 3: 0.0009, 4: 0.001, 5: 0.5}  # feature 6 has none


def test_three_filters_in_order():
    chosen = select_pairs(matches(), output_scores=SCORES, top_k=1)
    assert chosen.pairs["feature"].to_list() == [4]  # 1, 2: support; 3: output score; 6: none; 5: beyond K
    record = {row["filter"]: row for row in chosen.record.iter_rows(named=True)}
    assert list(record) == ["support", "output_score", "q_value", "representative", "top_k"]
    assert [record[f]["removed"] for f in record] == [2, 2, 0, 0, 1]
    assert record["output_score"]["missing"] == 1 and record["q_value"]["requirement"] is None
    assert record["top_k"]["after"] == len(chosen.pairs)
    assert chosen.pairs.columns[0] == "pair" and chosen.pairs["output_score"].to_list() == [0.001]


def test_order_matters():
    """K counts what is left by the other filters, not what came in."""
    assert select_pairs(matches(), output_scores=SCORES, top_k=2).pairs["feature"].to_list() == [4, 5]


def test_requirements_on_trust():
    strict = select_pairs(matches(), min_support=1, max_q_value=0.05, representatives_only=True)
    assert strict.pairs["feature"].to_list() == [1, 3, 6]  # a missing q-value does not pass
    assert strict.record["missing"].to_list() == [0, 0, 1, 0, 0]
    assert strict.record["requirement"].to_list()[1] is None  # no output scores: said, not guessed


def test_scores_as_a_table_and_all_pairs():
    table = pl.DataFrame({"feature": [5, 4, 3], "output_score": [0.5, float("nan"), 0.5]})
    chosen = select_pairs(matches(), output_scores=table, top_k=None)
    assert chosen.pairs["feature"].to_list() == [3, 5]


def test_equal_scores_have_one_order():
    tied = matches().with_columns(f1=pl.lit(0.5))
    for seed in range(3):
        shuffled = tied.sample(fraction=1, shuffle=True, seed=seed)
        assert select_pairs(shuffled, min_support=1, top_k=3).pairs["feature"].to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_support": 500}, "largest is 80 documents .label 'tea'"),
        (
            {"output_scores": {4: 1e-5}},
            "output_score >= 0.001 removed all 4 .3 without a value.; the largest output_score is 1e-05",
        ),
        ({"output_scores": {}}, "none of the 4 before"),
        ({"max_q_value": 1e-9}, "the smallest q_value is 0.01"),
        ({"top_k": 0}, "top_k = 0"),
        ({"output_scores": pl.DataFrame({"feature": [1]})}, "columns feature and output_score"),
        ({"output_scores": pl.DataFrame({"feature": [1, 1], "output_score": [0.1, 0.2]})}, "twice"),
    ],
)
def test_nothing_left_is_explained(options, message):
    with pytest.raises(TagsteerError, match=message):
        select_pairs(matches(), **options)


def test_wrong_tables():
    with pytest.raises(TagsteerError, match="no column support"):
        select_pairs(matches().drop("support"))
    with pytest.raises(TagsteerError, match="q_value"):
        select_pairs(matches().drop("q_value"), max_q_value=0.1)
    with pytest.raises(TagsteerError, match="no matches"):
        select_pairs(matches().clear())


def test_one_pair_per_label_or_feature_keeps_the_best():
    best = select_pairs(matches(), min_support=1, one_per_label=True)
    assert best.pairs["feature"].to_list() == [1, 3, 5]
    twice = matches().with_columns(feature=pl.Series([1, 2, 1, 3, 2, 4]))
    once = select_pairs(twice, min_support=1, one_per_feature=True)
    assert once.pairs["f1"].to_list() == [0.9, 0.8, 0.6, 0.4]
    record = {row["filter"]: row for row in once.record.iter_rows(named=True)}
    assert record["one per feature"]["removed"] == 2 and "one per label" not in record
