"""Calibrated F1 against the published numbers, closed formulas and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsteer.errors import TagsteerError
from tagsteer.label.calibration import calibrated_f1


@pytest.mark.parametrize(
    ("counts", "prior", "wanted"),
    [
        ((30, 20, 20, 930), 0.001, 0.053023),
        ((30, 20, 20, 930), 0.5, 0.740260),
        ((30, 20, 20, 930), 0.05, 0.6),
        ((50, 0, 50, 9900), 0.001, 0.666667),
        ((1, 0, 49, 950), 0.001, 0.039216),
    ],
)
def test_design_numbers(counts, prior, wanted):
    assert calibrated_f1(*counts, prior=prior) == pytest.approx(wanted, abs=5e-7)


def test_same_as_siblini_calibrated_precision():
    """F1 from recall and Siblini's calibrated precision, their equation, without our c."""
    tp, fp, fn, tn, p0 = 37.0, 11.0, 5.0, 400.0, 0.02
    pi = (tp + fn) / (tp + fp + fn + tn)
    tpr, fpr = tp / (tp + fn), fp / (fp + tn)
    precision = p0 * tpr / (p0 * tpr + (1 - p0) * fpr)
    assert calibrated_f1(tp, fp, fn, tn, p0) == pytest.approx(
        2 * precision * tpr / (precision + tpr), rel=1e-12
    )
    assert calibrated_f1(tp, fp, fn, tn, pi) == pytest.approx(calibrated_f1(tp, fp, fn, tn, None), rel=1e-12)


@given(
    st.integers(1, 500), st.integers(1, 500), st.integers(1, 500), st.integers(1, 500), st.integers(2, 50),
    st.floats(1e-4, 0.9),
)  # fmt: skip
def test_invariant_to_the_share_of_negatives(tp, fp, fn, tn, times, prior):
    """Appendix A: more of the same negatives leave the calibrated score as it is, and lower the plain one."""
    assert calibrated_f1(tp, fp * times, fn, tn * times, prior) == pytest.approx(
        calibrated_f1(tp, fp, fn, tn, prior)
    )
    assert calibrated_f1(tp, fp * times, fn, tn * times, None) < calibrated_f1(tp, fp, fn, tn, None)


def test_plain_f1_is_sklearns():
    from sklearn.metrics import confusion_matrix, f1_score

    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.97):
        y, guess = rng.random(300) < share, rng.random(300) < 0.3
        (tn, fp), (fn, tp) = confusion_matrix(y, guess, labels=[False, True])
        assert calibrated_f1(tp, fp, fn, tn, None) == pytest.approx(f1_score(y, guess), abs=1e-12)


def test_degenerate_cases_are_defined():
    assert calibrated_f1(0, 7, 0, 93) == 0.0  # π = 0
    assert calibrated_f1(0, 7, 3, 90) == 0.0  # TP = 0
    assert calibrated_f1(0, 0, 0, 0) == 0.0
    assert calibrated_f1(3, 0, 1, 0) == pytest.approx(6 / 7)  # π = 1: no negatives
    assert calibrated_f1(4, 0, 0, 0) == 1.0
    assert np.isnan(calibrated_f1(np.nan, 1, 1, 1)) and np.isnan(calibrated_f1(1, 1, 1, np.nan))


def test_broadcasts_and_takes_any_integer_type():
    out = calibrated_f1(np.arange(4, dtype=np.uint8)[:, None], np.array([0, 200], np.uint8), 100, 10**9)
    assert out.shape == (4, 2) and out.dtype == np.float64
    assert out[3, 1] == calibrated_f1(3, 200, 100, 10**9)
    assert np.ndim(calibrated_f1(1, 2, 3, 4)) == 0


@pytest.mark.parametrize("prior", [0, 1, -0.1, 2, float("nan")])
def test_prior_outside_is_refused(prior):
    with pytest.raises(TagsteerError, match="prior"):
        calibrated_f1(1, 1, 1, 1, prior)


def test_negative_count_is_refused():
    with pytest.raises(TagsteerError, match="fp = -1"):
        calibrated_f1(1, [-1, 2], 1, 1)
