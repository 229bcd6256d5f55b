"""Agreement and prediction-powered means: by hand, against scipy, and by how often their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.judge.agreement import choice_agreement, group_agreement, overall_of, rating_agreement, spearman
from tagsteer.judge.calibration import calibrate, calibrate_with, choose_sample, corrected_mean
from tagsteer.judge.types import JudgeItem, Rating


def test_spearman_equals_scipy_and_refuses_a_constant() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 200).astype(float), rng.integers(0, 3, 200).astype(float)
    assert spearman(a, b + a) == pytest.approx(spearmanr(a, b + a)[0])
    assert spearman(a, np.ones(200)) is None
    a[3] = np.nan
    assert spearman(a, b) == pytest.approx(spearmanr(np.delete(a, 3), np.delete(b, 3))[0])


def test_overall_is_the_harmonic_mean() -> None:
    got = overall_of(np.array([[2, 1, 1], [2, 2, 0], [1, np.nan, 1], [2, 2, 2]], float))
    assert got[0] == pytest.approx(1.2) and got[1] == 0 and np.isnan(got[2]) and got[3] == 2


def test_rating_agreement_by_hand() -> None:
    real = np.array([[0, 2, 1, 0], [1, 2, 1, 1.2], [2, 0, 1, 0], [2, 1, np.nan, np.nan]], float)
    judged = np.array([[0.4, 2, 1, 0], [0.6, 2, 1, 1.2], [1.4, 0, 1, 0], [1.6, 1, 1, 1]], float)
    got = rating_agreement(judged, real)
    assert got["n"] == 4 and got["equal"]["concept"] == 0.75 and got["equal"]["instruction"] == 1.0
    assert got["mean_absolute_error"]["concept"] == pytest.approx((0.4 + 0.4 + 0.6 + 0.4) / 4)
    assert got["bias"]["concept"] == pytest.approx((0.4 - 0.4 - 0.6 - 0.4) / 4)
    assert got["confusion"]["concept"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert got["spearman"]["fluency"] is None and sum(n for *_, n in got["calibration"]["fluency"]) == 3


def test_choice_agreement_by_hand() -> None:
    # One group, two factors, both halves: the judge likes factor 1, the truth is factor 2.
    factors, halves = [1.0, 2.0, 1.0, 2.0], [0, 0, 1, 1]
    real, judged = np.array([0.5, 1.0, 0.5, 1.0]), np.array([1.0, 0.2, 1.0, 0.2])
    got = choice_agreement(judged, real, ["g"] * 4, factors, halves)
    assert got["choices"] == 2 and got["share_of_real_choice"] == 0.5 and got["same_factor"] == 0.0
    assert choice_agreement(real, real, ["g"] * 4, factors, halves)["share_of_real_choice"] == 1.0
    assert choice_agreement(real, real, ["g"] * 4, [1.0] * 4, halves) == {"choices": 0, "skipped_groups": 1}


def test_group_means() -> None:
    real = np.array([[0, 0, 0, 0], [2, 2, 2, 2], [1, 1, 1, np.nan]], float)
    got = group_agreement(real + 0.1, real, ["a", "a", "b"])
    assert got["difference"]["a"]["concept"] == pytest.approx(0.1) and got["groups"] == 2


def test_corrected_mean_without_offline_help_is_the_classical_interval() -> None:
    y = np.array([0.0, 1.0, 2.0, 1.0, 1.0])
    got = corrected_mean(y, np.ones(5), np.ones(100))
    assert got.weight == 0 and got.mean == 1.0
    assert got.high - got.low == pytest.approx(2 * 1.959964 * y.std(ddof=1) / np.sqrt(5), rel=1e-5)


def test_corrected_mean_takes_out_any_bias() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 5000).astype(float)
    offline = 0.3 * truth + 0.9 + 0.05 * rng.normal(size=5000)  # biased, but it ranks well
    got = corrected_mean(truth[:200], offline[:200], offline[200:])
    assert abs(got.naive - truth.mean()) > 0.15 and got.low < truth.mean() < got.high
    assert got.high - got.low < 0.75 * got.judged_width


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """2,000 experiments, a biased judge: coverage of 95 % intervals within four standard errors of 0.95."""
    rng = np.random.default_rng(2)
    held = narrower = 0
    for _ in range(2000):
        truth = rng.binomial(2, 0.4, 1100).astype(float)
        offline = np.clip(0.5 * truth + 0.7 + 0.4 * rng.normal(size=1100), 0, 2)
        got = corrected_mean(truth[:100], offline[:100], offline[100:])
        held += got.low <= 0.8 <= got.high  # 2 × 0.4, the mean that the texts are drawn from
        narrower += got.high - got.low < got.judged_width
    assert abs(held / 2000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)
    assert narrower / 2000 > 0.9


ITEMS = [JudgeItem(f"k{i}", "c", "i", f"text {i}") for i in range(200)]


def test_the_sample_does_not_depend_on_order_and_grows_by_adding() -> None:
    small, large = choose_sample(ITEMS, 20), choose_sample(ITEMS[::-1], 50)
    assert {i.key for i in small} < {i.key for i in large}
    assert {i.key for i in choose_sample(ITEMS, 20, seed=1)} != {i.key for i in small}
    with pytest.raises(TagsteerError, match="1 to 200"):
        choose_sample(ITEMS, 201)


class Teacher:
    """A judge with an answer for every text, but none for the fluency of text 7."""

    name, version = "teacher", "1"
    asked = 0

    def describe(self) -> str:
        return "teacher"

    def rate(self, items):
        for item in items:
            self.asked += 1
            n = int(item.key[1:])
            yield item.key, Rating(float(n % 3), 1.0, None if n == 7 else 2.0, {}, "teacher")


def test_calibrate_end_to_end() -> None:
    offline = {i.key: Rating(int(i.key[1:]) % 3 * 0.4 + 0.5, 1.5, 1.0, {}, "offline") for i in ITEMS}
    teacher, groups = Teacher(), {i.key: "ab"[int(i.key[1:]) % 2] for i in ITEMS}
    got = calibrate_with(teacher, ITEMS, offline, 100, groups=groups)
    assert teacher.asked == 100 and got.missing <= 1 and set(got.corrected) == {"all", "a", "b"}
    assert got.agreement["spearman"]["concept"] == pytest.approx(1.0)
    everything = got.corrected["all"]["concept"]
    assert (
        everything.low < 0.995 < everything.high and everything.n_offline == 100
    )  # mean of i mod 3 over 200
    assert everything.high - everything.low < everything.judged_width
    lines = "\n".join(got.lines())
    assert "offline against teacher" in lines and "undefined" in lines
    with pytest.raises(TagsteerError, match="no offline rating"):
        calibrate({}, offline)
