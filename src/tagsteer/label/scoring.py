"""Calibrated F1 of every feature with every label at its best threshold, from sparse activation frequencies.

Knows matrices and labels' indices; must not know models, SAEs, texts or the filters. The work grows with
the non-zeros and with features × labels × thresholds, never with documents × features × labels: the matrix
is sorted by feature once, each feature counts in which threshold bin its documents fall for each label they
carry, and the cumulative sums are all its confusion matrices. Features go in blocks; the full table exists
only if asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from tagsteer.errors import TagsteerError, one_of
from tagsteer.label.calibration import check_prior, false_positive_weight
from tagsteer.label.kernels import in_threads
from tagsteer.label.ranking import best_pairs

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp

log = logging.getLogger("tagsteer.label")

DEFAULT_THRESHOLDS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
"""Zero (fires anywhere in the document) and nearly log-spaced shares of tokens up to one half. The paper
does not tell its set, so this is ours."""


class LabelSet(NamedTuple):
    """The label matrix as the loops read it."""

    ptr: np.ndarray  # int64 [n_docs + 1]
    ids: np.ndarray  # int32 [nnz], ascending within a document
    support: np.ndarray  # float64 [n_labels], documents per label
    weight: np.ndarray  # float64 [n_labels], c of the calibrated F1
    matrix: sp.csr_matrix

    @classmethod
    def of(cls, matrix: sp.csr_matrix, prior: float | None) -> LabelSet:
        support = np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.float64)
        weight = false_positive_weight(support, matrix.shape[0], prior)
        return cls(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), support, weight, matrix)


class Engine(Protocol):
    """Features sorted once, scored in blocks: the numba one below, the torch one in `scoring_torch`."""

    def score(self, labels: LabelSet, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Best F1 (float64) and its threshold's number, both [stop - start, n_labels]."""
        ...

    def thresholds_of(self, which: np.ndarray) -> np.ndarray:
        """The thresholds with these numbers, in the matrix's dtype."""
        ...

    def features_per_block(self, n_labels: int) -> int: ...


@dataclass(frozen=True, eq=False)
class Scores:
    """Every feature's match score with every label: the maximum of the calibrated F1 over the thresholds.

    `f1` and `threshold` are computed at first use; `top` streams and never holds the full table.
    """

    matrix: sp.csr_matrix
    """[n_docs, d_sae] activation frequencies, as given (not copied where it was CSR already)."""
    labels: LabelSet
    prior: float | None
    thresholds: np.ndarray | Literal["exact"]
    engine: Engine
    label_names: tuple[str, ...] | None = None

    @property
    def n_docs(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def n_labels(self) -> int:
        return len(self.labels.support)

    @property
    def support(self) -> np.ndarray:
        """Documents per label, int64 [n_labels]."""
        return self.labels.support.astype(np.int64)

    def blocks(self, labels: LabelSet | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first feature, best F1 float64, threshold numbers) per block, the last two [features, n_labels].

        `labels` replaces the labels, for permutations; the features stay sorted as they are.
        """
        labels = labels or self.labels
        step = self.engine.features_per_block(len(labels.support))
        for start in range(0, self.n_features, step):
            yield start, *self.engine.score(labels, start, min(start + step, self.n_features))

    @cached_property
    def _full(self) -> tuple[np.ndarray, np.ndarray]:
        f1 = np.empty((self.n_features, self.n_labels), np.float32)
        threshold = np.empty(f1.shape, self.matrix.dtype)
        for start, best, which in self.blocks():

            def store(a: int, b: int, start: int = start, best: Any = best, which: Any = which) -> None:
                f1[start + a : start + b] = best[a:b]
                threshold[start + a : start + b] = self.engine.thresholds_of(which[a:b])

            in_threads(store, len(best), 8)
        return f1, threshold

    @property
    def f1(self) -> np.ndarray:
        """Best calibrated F1, float32 [d_sae, n_labels]."""
        return self._full[0]

    @property
    def threshold(self) -> np.ndarray:
        """The threshold t of that score (probe: z > t), in the matrix's dtype, [d_sae, n_labels].

        Of equally good ones the smallest, so where the score is 0 the smallest of all.
        """
        return self._full[1]

    def top(self, k: int = 100, per: Literal["label", "feature"] | None = None) -> pl.DataFrame:
        """The k best pairs with a score above 0: overall, of each label, or of each feature; best first.

        Columns: feature, label (and label_name if names were given), f1, threshold, tp, fp, fn, tn,
        precision, recall, support. Equal scores stand in order of feature, then label.
        """
        if per not in (None, "label", "feature"):
            raise one_of(per, ["None", "label", "feature"], "grouping `per`")
        if k < 1:
            raise TagsteerError(f"k = {k}: wanted at least one pair")
        feature, label, which = best_pairs(self.blocks(), k, per, self.n_labels)
        return self.table(feature, label, self.engine.thresholds_of(which))

    def table(self, feature: Any, label: Any, threshold: Any) -> pl.DataFrame:
        """The rows of `top` for given pairs at given thresholds, in the given order."""
        from tagsteer.label.confusion import pair_table

        return pair_table(
            self.matrix, self.labels.matrix, feature, label, threshold, self.prior, self.label_names
        )


def score_features(
    matrix: Any,
    label_matrix: Any,
    *,
    prior: float | None = 1e-3,
    thresholds: Sequence[float] | np.ndarray | Literal["exact"] = DEFAULT_THRESHOLDS,
    device: Any = None,
    label_names: Sequence[str] | None = None,
) -> Scores:
    """Score every feature as a probe (z > t, strictly) for every label.

    matrix: frequencies z ≥ 0, [n_docs, d_sae], scipy sparse (CSR is used as it is) or dense. label_matrix:
    0/1, [n_docs, n_labels], sparse or dense. `thresholds` are compared in the matrix's dtype; "exact"
    sweeps 0 and every distinct frequency of each feature. `prior=None` is the plain F1. `device` None or
    "cpu" uses compiled loops on all CPU cores; "cuda" (or a torch.device, CPU included) uses torch, with
    the same result.

    Raises TagsteerError for shapes that do not fit, negative or non-finite frequencies, thresholds below 0.
    """
    check_prior(prior)
    matrix, labels = check_matrix(matrix), LabelSet.of(check_labels(label_matrix), prior)
    if matrix.shape[0] != labels.matrix.shape[0]:
        raise TagsteerError(
            f"the activation matrix has {matrix.shape[0]:,} documents and the label matrix"
            f" {labels.matrix.shape[0]:,}: both need one row per document, in the same order"
        )
    if label_names is not None and len(label_names) != len(labels.support):
        raise TagsteerError(
            f"{len(label_names)} label names for {len(labels.support)} columns of the label matrix"
        )
    chosen = check_thresholds(thresholds, matrix.dtype)
    engine: Engine
    if device is None or device == "cpu":
        from tagsteer.label.sorting import SortedFeatures

        engine = SortedFeatures(matrix, chosen)
    else:
        from tagsteer.label.scoring_torch import TorchFeatures

        engine = TorchFeatures(matrix, chosen, device)
    sizes = (matrix.shape[1], len(labels.support), matrix.shape[0])
    log.info(
        "scoring %d features × %d labels over %d documents on %s", *sizes, device or "cpu (compiled loops)"
    )
    return Scores(matrix, labels, prior, chosen, engine, None if label_names is None else tuple(label_names))


def check_matrix(matrix: Any) -> sp.csr_matrix:
    """Frequencies as canonical CSR of float32 or float64; the given object itself if it is that already."""
    import scipy.sparse as sp

    csr = _as_csr(matrix, "activation matrix")
    if csr.dtype not in (np.float32, np.float64):
        csr = csr.astype(np.float32 if csr.dtype in (np.float16, np.bool_, np.uint8, np.int8) else np.float64)
    if not csr.has_canonical_format:
        csr = sp.csr_matrix(csr, copy=True)
        csr.sum_duplicates()
    if csr.nnz and not (csr.data.min() >= 0 and np.isfinite(csr.data.max())):
        raise TagsteerError(
            "the activation matrix holds negative or non-finite values: frequencies are shares of tokens, and"
            " activations must be at least 0 (clip or drop them first)"
        )
    return csr


def check_labels(label_matrix: Any) -> sp.csr_matrix:
    """Labels as canonical CSR of uint8 ones; any non-zero counts as carrying the label."""
    import scipy.sparse as sp

    csr = _as_csr(label_matrix, "label matrix")
    if csr.shape[1] == 0:
        raise TagsteerError("the label matrix has no columns: wanted at least one label")
    if not (csr.has_canonical_format and csr.data.all()):
        csr = sp.csr_matrix(csr, copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return sp.csr_matrix((np.ones(csr.nnz, np.uint8), csr.indices, csr.indptr), shape=csr.shape)


def check_thresholds(thresholds: Any, dtype: np.dtype) -> np.ndarray | Literal["exact"]:
    """Ascending distinct thresholds in the matrix's dtype, or "exact"."""
    if isinstance(thresholds, str):
        if thresholds != "exact":
            raise TagsteerError(
                f'thresholds = {thresholds!r}: wanted numbers such as (0, 0.05, 0.2), or "exact"'
            )
        return "exact"
    values = np.unique(np.asarray(thresholds, np.float64).astype(dtype))
    if not len(values) or not (values[0] >= 0 and np.isfinite(values[-1])):
        raise TagsteerError(
            f"thresholds = {thresholds!r}: wanted one or more finite numbers of at least 0 (below 0 a probe"
            " fires on every document)"
        )
    return values


def _as_csr(matrix: Any, what: str) -> sp.csr_matrix:
    import scipy.sparse as sp

    if not sp.issparse(matrix):
        matrix = np.asarray(matrix)
        if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
            raise TagsteerError(
                f"the {what} is an array of shape {matrix.shape} and type {matrix.dtype}: wanted numbers"
                " in two dimensions, one row per document"
            )
    return sp.csr_matrix(matrix)
