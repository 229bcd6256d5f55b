"""Features sorted once on the CPU (a counting sort on threads) and scored in blocks by the compiled loops.

Knows a frequency matrix and label arrays; the torch twin is `scoring_torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tagsteer.label import kernels

if TYPE_CHECKING:
    import scipy.sparse as sp

    from tagsteer.label.scoring import LabelSet

BLOCK_BYTES = 64 << 20


def frequency_codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """uint32 codes that order as the values do, and the table to read them back by (None: float32 bits).

    Values must not be negative. The code of 0 is 0.
    """
    if values.dtype == np.float32:
        return np.where(values == 0, np.float32(0), values).view(np.uint32), None  # -0.0 becomes 0
    table, codes = np.unique(np.append(values, 0.0), return_inverse=True)
    return codes[:-1].astype(np.uint32), table


def decode(codes: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    """The values that `frequency_codes` gave these codes."""
    codes = codes.astype(np.uint32)
    return codes.view(np.float32) if table is None else table[codes]


class SortedFeatures:
    """Engine of compiled loops: 4 bytes per active (document, feature) with thresholds, 8 with "exact"."""

    def __init__(self, matrix: sp.csr_matrix, thresholds: np.ndarray | Literal["exact"]) -> None:
        n_docs, n_features = matrix.shape
        self.exact = isinstance(thresholds, str)
        self.thresholds = None if isinstance(thresholds, str) else thresholds
        self.bits = 32 if self.thresholds is None else len(self.thresholds).bit_length()
        self.table: np.ndarray | None = None
        values, lowest = matrix.data, matrix.dtype.type(0)
        if self.thresholds is None:
            values, self.table = frequency_codes(matrix.data)
            lowest = np.uint32(0)
            dtype: type = np.uint64
        else:
            lowest = self.thresholds[0]
            dtype = np.uint32 if n_docs << self.bits < 2**32 else np.uint64

        def count(start: int, stop: int) -> tuple[int, int, np.ndarray]:
            counts = np.zeros(n_features, np.int64)
            kernels.count_columns(matrix.indptr, matrix.indices, values, lowest, start, stop, counts)
            return start, stop, counts

        # One piece per thread: each needs its own count per feature, and writes behind the piece before it.
        pieces = kernels.in_threads(count, n_docs, kernels.n_threads())
        self.indptr = np.zeros(n_features + 1, np.int64)
        np.cumsum(np.sum([counts for _, _, counts in pieces], axis=0), out=self.indptr[1:])
        self.entries = np.empty(self.indptr[-1], dtype)
        offsets, begin = {}, self.indptr[:-1].copy()
        for start, _, counts in pieces:
            offsets[start] = begin
            begin = begin + counts

        def scatter(start: int, stop: int) -> None:
            arrays = (matrix.indptr, matrix.indices, values)
            if self.thresholds is None:
                kernels.scatter_coded(*arrays, lowest, start, stop, offsets[start], self.entries)
            else:
                kernels.scatter_binned(
                    *arrays, self.thresholds, self.bits, start, stop, offsets[start], self.entries
                )

        kernels.in_threads(scatter, n_docs, kernels.n_threads())
        if self.exact:
            kernels.in_threads(
                lambda a, b: kernels.sort_columns(self.indptr, self.entries, a, b),
                n_features,
                4 * kernels.n_threads(),
            )

    def features_per_block(self, n_labels: int) -> int:
        return max(64, BLOCK_BYTES // (12 * n_labels))

    def score(self, labels: LabelSet, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        best = np.empty((stop - start, len(labels.support)))
        which = np.empty(best.shape, np.uint32 if self.exact else np.int32)

        def piece(a: int, b: int) -> None:
            tail = (
                labels.ptr,
                labels.ids,
                labels.support,
                labels.weight,
                start + a,
                start + b,
                best[a:b],
                which[a:b],
            )
            if self.thresholds is None:
                kernels.score_exact(self.indptr, self.entries, *tail)
            else:
                kernels.score_binned(self.indptr, self.entries, self.bits, len(self.thresholds), *tail)

        kernels.in_threads(piece, stop - start, 4 * kernels.n_threads())
        return best, which

    def thresholds_of(self, which: np.ndarray) -> np.ndarray:
        return decode(which, self.table) if self.thresholds is None else self.thresholds[which]
