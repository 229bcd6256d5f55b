"""The summary of a small table computed by hand, and what it must say beside its figures."""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.statistics import judge_noise
from tagsteer.evaluate.summary import load_summary, summarise
from tests.evaluate.tables import ratings_table, table_of

N = 20


def table() -> pl.DataFrame:
    """Two pairs: steering scores 1.5 and 1 at its best strength, random features .5, the floor 0, prompting 2."""
    parts = []
    for pair, best in (("a", 1.5), ("b", 1.0)):
        parts += [
            table_of({1.0: [0] * N, 2.0: [best] * N, 4.0: [0.2] * N}, "steered", pair),
            table_of({1.0: [0.5] * N, 2.0: [0.1] * N}, "random", pair, 101),
            table_of({1.0: [0.0] * N, 2.0: [0.5] * N}, "random", pair, 102),
            table_of({0.0: [0] * N}, "unsteered", pair),
            table_of({0.0: [2] * N}, "prompt", pair),
        ]
    return pl.concat(parts)


def test_every_pair_stands_beside_its_baselines():
    pairs = summarise(table(), judge="by hand").pairs
    assert pairs.height == 10
    steered = pairs.filter(pl.col("method") == "steered")
    assert steered.select("pair", "strength", "overall", "low", "high").rows() == [
        ("a", 2.0, 1.5, 1.5, 1.5),
        ("b", 2.0, 1.0, 1.0, 1.0),
    ]
    beside = steered.select("unsteered_overall", "random_overall", "prompt_overall").rows()
    assert beside == [(0.0, 0.5, 2.0)] * 2
    # The strength of a random feature is tuned like that of a labelled one.
    random = pairs.filter(pl.col("method") == "random")
    assert dict(random.select("feature", "strength").iter_rows()) == {101: 1.0, 102: 2.0}


def test_methods_have_intervals_over_pairs_and_counts():
    methods = {row["method"]: row for row in summarise(table(), judge="by hand").methods.to_dicts()}
    steered = methods["steered"]
    assert steered["overall"] == 1.25 and (steered["overall_low"], steered["overall_high"]) == (1.0, 1.5)
    assert steered["n_pairs"] == 2 and steered["n_ratings"] == 120 and steered["n_missing"] == 0
    assert methods["random"]["n_pairs"] == 2 and methods["random"]["overall"] == 0.5


def test_the_target_is_compared_with_every_baseline():
    noise = judge_noise(
        {"concept": [1], "instruction": [1], "fluency": [1]},
        {"concept": [1], "instruction": [1], "fluency": [2]},
    )
    comparisons = summarise(table(), judge="by hand", noise=noise).comparisons
    overall = {row["baseline"]: row for row in comparisons.filter(pl.col("score") == "overall").to_dicts()}
    assert set(overall) == {"random", "unsteered", "prompt"}
    assert overall["random"]["difference"] == 0.75 and overall["random"]["win_rate"] == 1.0
    assert overall["prompt"]["losses"] == 2 and overall["prompt"]["difference"] == -0.75
    # Two pairs: of four sign patterns two are as extreme, and Holm triples that for three baselines, at most 1.
    assert overall["unsteered"]["p_value"] == 0.5 and overall["unsteered"]["p_holm"] == 1.0
    assert overall["random"]["judge_deviation"] == pytest.approx(0.2 / np.sqrt(N * 2))


def test_missing_ratings_are_counted_and_a_pair_without_a_score_is_null():
    holes = pl.concat([table(), table_of({1.0: [None] * N, 2.0: [None] * N}, "steered", "c")])
    summary = summarise(holes, judge="by hand")
    lost = summary.pairs.filter(pl.col("pair") == "c")
    assert lost["overall"][0] is None and "50%" in lost["reason"][0] and lost["n_missing"][0] == 40
    steered = summary.methods.filter(pl.col("method") == "steered")
    assert (steered["n_pairs"][0], steered["n_pairs_unscored"][0], steered["overall"][0]) == (3, 1, 1.25)
    assert summary.provenance["n_missing"] == 40 and "missing ratings: 40" in summary.line
    assert any("1 of 11 pairs have no score" in note for note in summary.notes)
    assert any("prompt lacks 1 of 3 pairs" in note for note in summary.notes)


@pytest.mark.parametrize("name", ["paper", "axbench", "max"])
def test_the_protocol_judge_and_date_are_named(name):
    summary = summarise(table(), protocol_name=name, judge="offline rules", date="2026-01-02", seed=3)
    for part in (
        f"protocol {name}",
        "selection",
        "split",
        "averaging",
        "judge: offline rules",
        "date: 2026-01-02",
    ):
        assert part in summary.line
    assert summarise(table(), judge="x").provenance["date"] == datetime.date.today().isoformat()


def test_absent_baselines_and_strengths_at_the_edge_are_noted():
    summary = summarise(table_of({1.0: [0] * N, 2.0: [1] * N}), judge="x")
    assert sum("no " in note and "baseline" in note for note in summary.notes) == 3
    assert any("largest strength tried" in note for note in summary.notes)
    assert pl.Null not in summary.pairs.dtypes + summary.methods.dtypes + summary.comparisons.dtypes
    assert summary.comparisons.columns == summarise(table(), judge="x").comparisons.columns
    assert summary.comparisons.height == 0 and summary.pairs["random_overall"].to_list() == [None]


def test_a_summary_survives_saving(tmp_path):
    summary = summarise(table(), judge="x", date="2026-01-02")
    again = load_summary(summary.save(tmp_path / "evaluate"))
    for name in ("pairs", "methods", "comparisons", "curves"):
        assert getattr(again, name).equals(getattr(summary, name))
    assert (
        again.provenance == summary.provenance and again.notes == summary.notes and again.line == summary.line
    )
    with pytest.raises(TagsteerError, match="tagsteer evaluate"):
        load_summary(tmp_path)


def test_the_order_of_rows_changes_nothing():
    rows = pl.concat([ratings_table(m, pairs=range(5), seed=k) for k, m in enumerate(("steered", "random"))])
    first = summarise(rows, judge="x").pairs.sort("method", "pair")
    second = summarise(rows.sample(fraction=1, shuffle=True, seed=1), judge="x").pairs.sort("method", "pair")
    assert first.equals(second)


def test_unknown_targets_and_protocols_are_refused():
    with pytest.raises(TagsteerError, match="steered"):
        summarise(table(), judge="x", target="steerd")
    with pytest.raises(TagsteerError, match="unknown protocol"):
        summarise(table(), judge="x", protocol_name="papr")
