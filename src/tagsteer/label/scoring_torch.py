"""The scoring in torch, for CUDA (and any other torch device): the same counts, the same float64 formula.

Knows a frequency matrix and label arrays; `sorting` is the CPU twin. Work goes in slices of bounded size: an
(active document, label) pair takes about 40 bytes while it is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tagsteer.errors import TagsteerError
from tagsteer.label.sorting import decode, frequency_codes

if TYPE_CHECKING:
    import scipy.sparse as sp

    from tagsteer.label.scoring import LabelSet

CELLS = 1 << 25
"""Cells (feature × threshold × label, and document × label) of one slice."""


class TorchFeatures:
    """Engine on a torch device: entries sorted by feature (and by frequency for "exact")."""

    def __init__(self, matrix: sp.csr_matrix, thresholds: np.ndarray | Literal["exact"], device: Any) -> None:
        try:
            self.device = torch.device(device)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise TagsteerError(
                f"device {device!r}: {str(error).splitlines()[0]}; use device=None for the CPU"
            ) from error
        self.thresholds = None if isinstance(thresholds, str) else thresholds
        self.table: np.ndarray | None = None
        self._labels: tuple[LabelSet, tuple[torch.Tensor, ...]] | None = None
        self.n_features = matrix.shape[1]
        if self.thresholds is None:
            codes, self.table = frequency_codes(matrix.data)
            value = self._put(codes.astype(np.int64))
        else:  # bin b: above the b smallest thresholds
            edges, z = self._put(self.thresholds), self._put(matrix.data)
            value = torch.searchsorted(edges, z)  # left: the number of thresholds strictly below z
        document = torch.repeat_interleave(
            torch.arange(matrix.shape[0], device=self.device),
            self._put(np.diff(matrix.indptr).astype(np.int64)),
        )
        active = value > 0
        feature = self._put(matrix.indices)[active].long()
        value, document = value[active], document[active]
        if (
            self.thresholds is None
        ):  # descending frequency within a feature; codes are below 2^31, features below 2^31
            order = torch.argsort((feature << 32) + (2**32 - 1 - value))
        else:
            order = torch.argsort(feature)
        self.value, self.document = value[order], document[order]
        self.ptr = torch.zeros(self.n_features + 1, dtype=torch.long, device=self.device)
        self.ptr[1:] = torch.bincount(feature, minlength=self.n_features).cumsum(0)

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _label_tensors(self, labels: LabelSet) -> tuple[torch.Tensor, ...]:
        if self._labels is None or self._labels[0] is not labels:
            arrays = (labels.ptr, labels.ids.astype(np.int64), labels.support, labels.weight)
            self._labels = labels, tuple(self._put(array) for array in arrays)
        return self._labels[1]

    def features_per_block(self, n_labels: int) -> int:
        per_feature = n_labels * (1 if self.thresholds is None else len(self.thresholds) + 1)
        return max(1, CELLS // per_feature)

    def score(self, labels: LabelSet, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        one = self._score_exact if self.thresholds is None else self._score_binned
        ptr = self._label_tensors(labels)[0]
        # Slices whose (document, label) pairs fit: dense features are few in a slice, rare ones many.
        first, end = int(self.ptr[start]), int(self.ptr[stop])
        degree = (ptr[1:] - ptr[:-1])[self.document[first:end]].cumsum(0)
        degree = torch.cat([degree.new_zeros(1), degree])
        upto = (
            degree[self.ptr[start : stop + 1] - first].cpu().numpy()
        )  # pairs before each feature of the block
        blocks, a = [], 0
        while a < stop - start:
            b = max(a + 1, int(np.searchsorted(upto, upto[a] + CELLS, side="right")) - 1)
            blocks.append(one(labels, start + a, min(start + b, stop)))
            a = b
        best = torch.cat([block[0] for block in blocks]).cpu().numpy()
        which = torch.cat([block[1] for block in blocks]).cpu().numpy()
        return best, which

    def thresholds_of(self, which: np.ndarray) -> np.ndarray:
        return decode(which, self.table) if self.thresholds is None else self.thresholds[which]

    def _pairs(self, labels: LabelSet, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Per (entry, label of its document): entry, feature - start, label; and the entries' features."""
        ptr, index, _, _ = self._label_tensors(labels)
        first, end = int(self.ptr[start]), int(self.ptr[stop])
        document = self.document[first:end]
        begin, degree = ptr[document], ptr[document + 1] - ptr[document]
        entry = torch.repeat_interleave(torch.arange(end - first, device=self.device), degree)
        offset = torch.arange(len(entry), device=self.device) - (degree.cumsum(0) - degree)[entry]
        label = index[begin[entry] + offset]
        sizes = self.ptr[start + 1 : stop + 1] - self.ptr[start:stop]
        feature = torch.repeat_interleave(torch.arange(stop - start, device=self.device), sizes)
        return entry + first, feature[entry], label, feature

    def _score_binned(self, labels: LabelSet, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.thresholds is not None
        _, _, support, weight = self._label_tensors(labels)
        n, n_bins, n_labels = stop - start, len(self.thresholds) + 1, len(support)
        entry, feature, label, owner = self._pairs(labels, start, stop)
        cell = (feature * n_bins + self.value[entry]) * n_labels + label
        counts = torch.bincount(cell, minlength=n * n_bins * n_labels).view(n, n_bins, n_labels)
        bins = self.value[int(self.ptr[start]) : int(self.ptr[stop])]
        fired = torch.bincount(owner * n_bins + bins, minlength=n * n_bins).view(n, n_bins, 1)
        tp, predicted = torch.zeros_like(counts[:, 0]), torch.zeros_like(fired[:, 0])
        best = torch.zeros((n, n_labels), dtype=torch.float64, device=self.device)
        which = torch.zeros((n, n_labels), dtype=torch.int32, device=self.device)
        for b in range(n_bins - 1, 0, -1):  # down the thresholds, so that a tie goes to the smaller
            tp += counts[:, b]
            predicted += fired[:, b]
            f1 = _f1(tp, predicted, support, weight)
            better = f1 >= best  # False for NaN
            best = torch.where(better, f1, best)
            which.masked_fill_(better, b - 1)
        return best, which

    def _score_exact(self, labels: LabelSet, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        _, _, support, weight = self._label_tensors(labels)
        n, n_labels = stop - start, len(support)
        best = torch.zeros(n * n_labels, dtype=torch.float64, device=self.device)
        which = torch.zeros(n * n_labels, dtype=torch.int64, device=self.device)
        first, end = int(self.ptr[start]), int(self.ptr[stop])
        if end == first:
            return best.view(n, n_labels), which.view(n, n_labels)
        entry, feature, label, owner = self._pairs(labels, start, stop)
        # Entries of one feature with one frequency are predicted together: where does each such group end?
        code = self.value[first:end]
        last = torch.ones(end - first, dtype=torch.bool, device=self.device)
        last[:-1] = (code[1:] != code[:-1]) | (owner[1:] != owner[:-1])
        ends = torch.nonzero(last).squeeze(1)
        group = torch.searchsorted(ends, torch.arange(end - first, device=self.device))
        stop_at = ends[group] + 1  # first entry behind the group
        predicted = stop_at - (self.ptr[start:stop] - first)[owner]
        follows = stop_at.clamp(max=end - first - 1)
        below = torch.where((stop_at < end - first) & (owner[follows] == owner), code[follows], 0)
        # Pairs of one (feature, label) in order of falling frequency: the running count is TP. Within a
        # group of equal frequencies only its last pair has the full TP; the others score less, so they
        # never win.
        cell = feature * n_labels + label
        order = torch.argsort(cell, stable=True)
        cell, entry, label = cell[order], entry[order] - first, label[order]
        sizes = torch.bincount(cell, minlength=n * n_labels)
        tp = torch.arange(1, len(cell) + 1, device=self.device) - (sizes.cumsum(0) - sizes)[cell]
        f1 = _f1(tp, predicted[entry], support[label], weight[label])
        best.scatter_reduce_(0, cell, f1, "amax")
        wins = f1 == best[cell]
        position = torch.full_like(which, -1)
        position.scatter_reduce_(0, cell[wins], torch.arange(len(cell), device=self.device)[wins], "amax")
        hit = position >= 0
        which[hit] = below[entry[position[hit]]]  # the latest winner: the smallest threshold
        return best.view(n, n_labels), which.view(n, n_labels)


def _f1(
    tp: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The formula in float64, operation by operation as in the compiled loops."""
    t = tp.double()
    twice = 2.0 * t
    return twice / (twice + weight * (predicted.double() - t) + (support - t))
