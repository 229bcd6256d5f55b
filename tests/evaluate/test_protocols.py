"""AxBench's sampling and halves against its goldens, and each named protocol on a grid computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.protocols import (
    PROTOCOLS,
    axbench_score,
    dev_test,
    first_maximum,
    global_factor,
    protocol,
    sample_instructions,
    score_pairs,
)
from tagsteer.evaluate.scores import pair_ratings
from tests.evaluate.tables import ratings_table, table_of


@pytest.mark.parametrize(
    "concept, rows",
    [
        (0, [8, 258, 172, 317, 294, 251, 609, 331, 775, 320]),
        (1, [8, 262, 117, 309, 747, 314, 437, 766, 47, 148]),
        (2, [128, 163, 557, 65, 593, 416, 15, 431, 559, 192]),
    ],
)
def test_instruction_sampling_equals_axbench(concept, rows):
    assert sample_instructions(concept, 10) == rows
    assert sample_instructions(concept, 20)[:10] == rows
    assert sorted(sample_instructions(concept, 805)) == list(range(805))


@pytest.mark.shared
def test_instruction_sampling_equals_every_golden(shared):
    golden = json.loads((shared / "axbench/derived/instruction_sampling_golden.json").read_text("utf-8"))
    texts = json.loads((shared / "alpaca_eval/instructions.json").read_text("utf-8"))
    assert len(golden) >= 13 and len(texts) == 805
    for concept, entry in golden.items():
        rows = sample_instructions(int(concept), 10)
        assert rows == entry["indices_n10"]
        for row, seen in zip(rows, entry.get("instructions_observed") or [], strict=False):
            assert seen is None or texts[row].strip() == seen.strip()


@pytest.mark.parametrize("concept, n", [(-1, 3), (2**32, 3), (1.5, 3), (True, 3), (1, 0), (1, 806), (1, "3")])
def test_sampling_refuses_what_it_cannot_draw(concept, n):
    with pytest.raises(TagsteerError):
        sample_instructions(concept, n)


@pytest.mark.parametrize("n, dev", [(10, 5), (5, 3), (7, 3), (20, 10), (2, 1), (3, 1), (1, 1), (9, 5)])
def test_halves_round_as_python_does(n, dev):
    first, second = dev_test(np.arange(n))
    assert first.tolist() == [i < dev for i in range(n)]
    assert (first ^ second).all()


def test_alpaca_row_numbers_are_no_positions():
    with pytest.raises(TagsteerError, match="drawn order"):
        dev_test(np.array(sorted(sample_instructions(0, 20))))


HAND = {
    1.0: [2, 2, 0, 0],  # dev 2, test 0
    2.0: [2, 2, 1, 1],  # dev 2, test 1: tied with 1.0, larger
    4.0: [1, 1, 2, 2],  # dev 1, test 2
}


@pytest.mark.parametrize(
    "name, strength, overall",
    [
        ("axbench", 1, 0),
        ("axbench-dev", 1, 2),
        ("max", 2, 1.5),
        ("axbench-global", 1, 0),
        ("axbench-hm-of-means", 1, 0),
    ],
)
def test_protocols_by_hand(name, strength, overall):
    [score] = score_pairs(pair_ratings(table_of(HAND)), name)
    assert (score.strength, score.overall) == (strength, overall)
    assert score.n_tied == {"max": 2, "axbench-global": 1}.get(name, 2)


def test_the_order_of_averaging_matters():
    # Test half: (c, i, f) = (2, 2, 0) and (2, 0, 2): each text scores 0, the means (2, 1, 1) score 1.2.
    table = table_of({1.0: [1, 1, 1, 1]}).with_columns(
        concept=pl.Series([1.0, 1, 2, 2]),
        instruction=pl.Series([1.0, 1, 2, 0]),
        fluency=pl.Series([1.0, 1, 0, 2]),
    )
    grids = pair_ratings(table)
    assert score_pairs(grids, "axbench")[0].overall == 0
    assert score_pairs(grids, "axbench-hm-of-means")[0].overall == 1.2
    assert axbench_score(grids[0]).hm_of_means == 1.2


def test_global_factor_is_chosen_over_all_concepts():
    # Alone a would take 1 and b would take 2; together 2 has the higher dev mean.
    table = pl.concat(
        [
            table_of({1.0: [1, 1, 2, 2], 2.0: [0, 1, 1, 1]}),
            table_of({1.0: [0, 0, 0, 0], 2.0: [2, 2, 1, 1]}, pair="b"),
        ]
    )
    grids = pair_ratings(table)
    assert global_factor(grids) == 2.0
    assert [s.overall for s in score_pairs(grids, "axbench-global")] == [1, 1]
    assert [s.overall for s in score_pairs(grids, "axbench")] == [2, 1]


def test_missing_ratings_stay_missing():
    [score] = score_pairs(pair_ratings(table_of({1.0: [1, 1, None, None], 2.0: [0, 0, 1, 1]})), "axbench")
    assert math.isnan(score.overall) and "reported part" in score.reason
    [score] = score_pairs(pair_ratings(table_of({1.0: [None] * 4, 2.0: [None] * 4})), "axbench")
    assert math.isnan(score.strength) and score.reason == "every rating is missing"
    assert first_maximum(np.array([math.nan, 1.0, 1.0])) == (1, 2)


def test_methods_without_a_strength_are_scored_by_every_protocol():
    table = table_of({0.0: [1, 1, 2, 2]}, method="prompt").with_columns(strength=pl.lit(None, pl.Float64))
    wanted = {"paper": 1.5, "max": 1.5, "axbench-dev": 1.0}
    for name in PROTOCOLS:
        [score] = score_pairs(pair_ratings(table), name)
        assert score.overall == wanted.get(name, 2.0), name


def test_protocols_name_themselves_and_refuse_what_they_are_not():
    for name, p in PROTOCOLS.items():
        assert name in p.line and p.split in p.line and p.averaging in p.line
    with pytest.raises(TagsteerError, match="axbench"):
        protocol("axbnch")
    with pytest.raises(TagsteerError, match="only paper takes options"):
        score_pairs(pair_ratings(ratings_table()), "axbench", repeats=3)
