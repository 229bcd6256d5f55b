"""Tests and intervals against enumeration, scipy and the re-judged texts of AxBench."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.published import published
from tagsteer.evaluate.statistics import (
    bootstrap_interval,
    holm,
    judge_noise,
    judge_noise_of_table,
    paired_test,
)


def test_bootstrap_agrees_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).gamma(1.0, size=60)
    ours = bootstrap_interval(values, seed=1)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", random_state=1
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    # Two percentile bootstraps of 10,000 differ by a few percent of the standard error, here .13.
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=0.02),
        pytest.approx(theirs.high, abs=0.02),
    )


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    found = [bootstrap_interval(rng.normal(1, 1, 50), resamples=1000, seed=k) for k in range(300)]
    covered = np.mean([f.low <= 1 <= f.high for f in found])
    assert 0.89 <= covered <= 0.98


def test_bootstrap_counts_what_is_missing_and_invents_nothing():
    found = bootstrap_interval([1.0, math.nan, 3.0])
    assert (found.mean, found.n, found.n_missing) == (2.0, 2, 1)
    alone = bootstrap_interval([1.0])
    assert alone.mean == 1.0 and math.isnan(alone.low) and math.isnan(alone.high)
    assert math.isnan(bootstrap_interval([math.nan]).mean)
    assert bootstrap_interval([1, 2, 3], seed=4) == bootstrap_interval([1, 2, 3], seed=4)
    with pytest.raises(TagsteerError, match="confidence 95"):
        bootstrap_interval([1, 2], confidence=95)


@pytest.mark.parametrize("seed", range(5))
def test_exact_p_value_equals_enumeration(seed):
    d = np.random.default_rng(seed).normal(0.4, 1, 8)
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=8)
    ]
    test = paired_test(d, np.zeros(8))
    assert test.exact and test.p_value == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-12))


def test_p_values_of_known_cases():
    assert paired_test([1, 2, 3, 4, 5], [0] * 5).p_value == 2 / 32
    assert paired_test([1, 1], [1, 1]).p_value == 1.0
    many = paired_test(np.full(40, 1.0), np.zeros(40), resamples=999)
    assert not many.exact and many.p_value == pytest.approx(0.001)


def test_sampled_p_value_agrees_with_the_exact_one():
    scipy_stats = pytest.importorskip("scipy.stats")
    d = np.random.default_rng(3).normal(0.3, 1, 40)
    ours = paired_test(d, np.zeros(40), seed=1)
    theirs = scipy_stats.permutation_test(
        (d, np.zeros(40)),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        n_resamples=9999,
        random_state=0,
    )
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.02)


def test_paired_counts_and_win_rate():
    test = paired_test([1, 2, 1, math.nan, 0], [0, 2, 1.2, 1, math.nan])
    assert (test.wins, test.ties, test.losses, test.n, test.n_unpaired) == (1, 1, 1, 3, 2)
    assert test.win_rate == 0.5 and test.difference == pytest.approx(0.8 / 3)
    assert math.isnan(paired_test([math.nan], [1.0]).p_value)
    with pytest.raises(TagsteerError, match="2 scores against 1"):
        paired_test([1, 2], [1])


def test_holm_by_hand():
    # .01 x 4, .02 x 3, .03 x 2, .5 x 1, each at least the one before.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.04, math.nan])[0] == 0.04 and math.isnan(holm([math.nan])[0])


def test_judge_noise_by_hand():
    first = {"concept": [1, 2, None], "instruction": [1, 2, 1], "fluency": [1, 2, 1]}
    second = {"concept": [1, 2, 1], "instruction": [1, 2, 1], "fluency": [2, 2, 1]}
    noise = judge_noise(first, second)
    assert (noise.n, noise.n_missing) == (2, 1)
    assert noise.agreement == {"concept": 1.0, "instruction": 1.0, "fluency": 0.5, "overall": 0.5}
    assert noise.mean_difference == pytest.approx(0.1)
    assert noise.text_deviation == pytest.approx(math.sqrt(0.04 / 2 / 2))
    assert noise.deviation_of_mean(4) == pytest.approx(noise.text_deviation / 2)
    with pytest.raises(TagsteerError, match="two complete ratings"):
        judge_noise(
            {"concept": [None], "instruction": [1], "fluency": [1]}, first | {key: [1] for key in first}
        )


@pytest.mark.shared
def test_judge_noise_of_the_rejudged_texts(shared):
    table = pl.read_parquet(shared / "axbench/derived/rejudged_pairs.parquet")
    noise = judge_noise_of_table(table, suppression=True)  # the scale on which the texts were scored
    rounded = {name: round(100 * share, 1) for name, share in noise.agreement.items()}
    assert noise.n == 62
    assert rounded == {"concept": 100.0, "instruction": 96.8, "fluency": 85.5, "overall": 83.9}
    assert round(noise.mean_difference, 3) == 0.118
    stated = {figure.method: figure.value for figure in published("judge_agreement")}
    assert stated == pytest.approx(noise.agreement)
    assert published("judge_difference")[0].value == pytest.approx(noise.mean_difference)
    # No text of these has its concept, so steering scores are all 0 and say nothing.
    assert judge_noise_of_table(table).mean_difference == 0.0
    with pytest.raises(TagsteerError, match="no column concept_a"):
        judge_noise_of_table(table.select("generation"))
