"""Confusion counts of given pairs (feature, label, threshold) on any set of documents, as a table.

Knows matrices and indices; the same function serves the documents that pairs were found on and held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tagsteer.label import kernels
from tagsteer.label.calibration import calibrated_f1

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp


class Counts(NamedTuple):
    """Documents per cell of the confusion matrix, int64, one per pair."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """tp / (tp + fp); NaN where the probe never fires."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """tp / (tp + fn); NaN where no document carries the label."""
        return _ratio(self.tp, self.tp + self.fn)


def columns(matrix: sp.csr_matrix, features: np.ndarray) -> sp.csc_matrix:
    """The given features' columns as CSC, [n_docs, len(features)]."""
    return matrix[:, features].tocsc()


def confusion(
    matrix: sp.csr_matrix, labels: sp.csr_matrix, feature: Any, label: Any, threshold: Any
) -> Counts:
    """Counts of the probes z > threshold; matrix [n_docs, d_sae], labels [n_docs, n_labels], clean CSR."""
    feature, label = np.asarray(feature, np.int64), np.asarray(label, np.int64)
    unique, column = np.unique(feature, return_inverse=True)
    csc = columns(matrix, unique)
    tp, predicted = np.zeros(len(feature), np.int64), np.zeros(len(feature), np.int64)
    threshold = np.asarray(threshold, matrix.dtype)

    def piece(start: int, stop: int) -> None:
        at = slice(start, stop)
        kernels.count_pairs(
            csc.indptr, csc.indices, csc.data, labels.indptr, labels.indices,
            column[at], label[at], threshold[at], tp[at], predicted[at],
        )  # fmt: skip

    if len(feature):
        kernels.in_threads(piece, len(feature), 4 * kernels.n_threads())
    support = np.bincount(labels.indices, minlength=labels.shape[1])[label]
    return Counts(tp, predicted - tp, support - tp, matrix.shape[0] - predicted - support + tp)


def pair_table(
    matrix: sp.csr_matrix,
    labels: sp.csr_matrix,
    feature: Any,
    label: Any,
    threshold: Any,
    prior: float | None,
    label_names: Sequence[str] | None = None,
) -> pl.DataFrame:
    """The pairs with their f1, counts, precision, recall, support, in the given order; undefined is null."""
    import polars as pl

    counts = confusion(matrix, labels, feature, label, threshold)
    label = np.asarray(label, np.int64)
    names = (
        {} if label_names is None else {"label_name": np.asarray(label_names, dtype=object)[label].tolist()}
    )
    return pl.DataFrame(
        {
            "feature": np.asarray(feature, np.int64),
            "label": label,
            **({"label_name": pl.Series(names["label_name"], dtype=pl.String)} if names else {}),
            "f1": calibrated_f1(*counts, prior=prior),
            "threshold": np.asarray(threshold, matrix.dtype),
            **counts._asdict(),
            "precision": counts.precision,
            "recall": counts.recall,
            "support": counts.tp + counts.fn,
        }
    ).with_columns(pl.col("precision", "recall").fill_nan(None))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    out = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
