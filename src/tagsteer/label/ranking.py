"""The k best pairs of a stream of score blocks, overall or per label or feature, without the full table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def best_pairs(
    blocks: Iterator[tuple[int, np.ndarray, np.ndarray]], k: int, per: str | None, n_labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and threshold numbers of the k best pairs (per group), in order of the table."""
    kept: tuple[np.ndarray, ...] = tuple(np.empty(0, t) for t in (np.int64, np.int64, np.float64, np.int64))
    cut = np.zeros(n_labels if per == "label" else 1)  # scores at or below it cannot enter any more
    for start, best, which in blocks:
        if per == "feature":
            enter = best > 0
            if k == 1:
                enter &= best >= best.max(axis=1, keepdims=True)
            elif k < n_labels:
                enter &= best >= np.partition(best, n_labels - k, axis=1)[:, n_labels - k, None]
        else:
            enter = best > cut
            if np.count_nonzero(enter) > 4 * k * len(
                cut
            ):  # far too many: only those that are among the block's k best
                flat = best if per == "label" else best.reshape(-1, 1)
                if k < len(flat):
                    enter &= best >= np.partition(flat, len(flat) - k, axis=0)[len(flat) - k]
        feature, label = np.nonzero(enter)
        found = (feature + start, label, best[enter], which[enter].astype(np.int64))
        kept = tuple(np.concatenate(pair) for pair in zip(kept, found, strict=True))
        if per == "feature":
            continue  # a feature lies in one block only: cut to k at the end
        kept, cut = _cut(kept, k, per, cut)
    kept, _ = _cut(kept, k, per, cut)
    return kept[0], kept[1], kept[3]


def _cut(
    pairs: tuple[np.ndarray, ...], k: int, per: str | None, cut: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The k best of each group, sorted; and the score that a later pair must exceed."""
    feature, label, f1, _ = pairs
    group = {"label": label, "feature": feature}.get(per or "", np.zeros_like(feature))
    order = np.lexsort((label, feature, -f1, group))
    ranked = group[order]
    first = np.searchsorted(ranked, ranked)  # where the group of each row begins
    rank = np.arange(len(order)) - first
    keep = order[rank < k]
    pairs = tuple(column[keep] for column in pairs)
    if per != "feature":
        full = order[rank == k - 1]
        cut = cut.copy()
        cut[group[full]] = f1[full]
    return pairs, cut
