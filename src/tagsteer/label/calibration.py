"""Calibrated F1 from the four counts of a confusion matrix. Pure numpy; knows no features or files."""

from __future__ import annotations

from typing import Any

import numpy as np

from tagsteer.errors import TagsteerError


def check_prior(prior: float | None) -> None:
    """Refuse a prior outside (0, 1)."""
    if prior is not None and not 0.0 < float(prior) < 1.0:
        raise TagsteerError(
            f"prior = {prior!r}: wanted a share between 0 and 1 (0.001), or None for the plain F1"
        )


def false_positive_weight(positives: Any, n: Any, prior: float | None) -> np.ndarray:
    """c = π(1−π₀) / (π₀(1−π)) with π = positives / n, float64, shaped as `positives`; ones without a prior.

    Where π is 0 or 1 (and for n = 0) c is 0: without positives TP is 0 and so is the score; without
    negatives there are no false positives to weigh.
    """
    positives, n = np.broadcast_arrays(np.asarray(positives, np.float64), np.asarray(n, np.float64))
    if prior is None:
        return np.ones(positives.shape)
    negatives = n - positives
    c = np.zeros(positives.shape)
    np.divide(positives * (1.0 - prior), negatives * prior, out=c, where=(negatives > 0) & (positives > 0))
    return np.where(np.isnan(positives + n), np.nan, c)


def calibrated_f1(tp: Any, fp: Any, fn: Any, tn: Any, prior: float | None = 1e-3) -> Any:
    """F1 of a binary probe as it would be if the label's share of the documents were `prior`.

    2TP / (2TP + c·FP + FN), c = π(1−π₀) / (π₀(1−π)), π = (TP+FN) / (TP+FP+FN+TN), π₀ = `prior` (Siblini et
    al. 2020, "Master your metrics with calibration"). With `prior=None` c = 1: the plain F1.

    The four counts broadcast against each other; the result is float64 of their shape (a scalar for
    scalars). Defined where the formula is not: TP = 0 gives 0 (so π = 0 and four zeros do too); π = 1 has
    no negatives, so FP = 0, c drops out and the plain F1 is left. A NaN count gives NaN. Raises
    TagsteerError for negative counts and for a prior outside (0, 1).

    >>> float(round(calibrated_f1(30, 20, 20, 930), 6))
    0.053023
    """
    check_prior(prior)
    tp, fp, fn, tn = np.broadcast_arrays(*(np.asarray(count, np.float64) for count in (tp, fp, fn, tn)))
    for name, count in (("tp", tp), ("fp", fp), ("fn", fn), ("tn", tn)):
        if (count < 0).any():
            raise TagsteerError(f"{name} = {count.min():g}: counts of a confusion matrix cannot be negative")
    positives = tp + fn
    c = false_positive_weight(positives, positives + fp + tn, prior)
    score = np.where(np.isnan(positives + fp + tn), np.nan, 0.0)
    np.divide(2.0 * tp, 2.0 * tp + c * fp + fn, out=score, where=tp > 0)
    return score[()]
