"""Compiled loops of the scoring: sort by feature, count per threshold bin, take the best threshold.

Arrays in, arrays out; knows no matrices, names or files. The loops release the GIL and run on plain threads
over rows or features (`in_threads`), so that no OpenMP or TBB layer is needed and nothing breaks after a
fork.

Letters: an *entry* is one active (document, feature) in one integer. For a fixed set of thresholds it is
`document << bits | bin` (bin b: the frequency exceeds the b smallest thresholds); for the exact sweep it is
`code << 32 | document`, the code growing with the frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL, cached on disk where some folder can be written to."""
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder for its cache: compile at every start instead
        return numba.njit(**options)(function)


def n_threads() -> int:
    """Threads to use: numba's own setting, which follows NUMBA_NUM_THREADS and the process's CPU mask."""
    import numba

    return int(numba.get_num_threads())


def in_threads(function: Callable[[int, int], Any], n: int, pieces: int) -> list[Any]:
    """Call `function(start, stop)` on `pieces` nearly equal ranges of 0..n, on threads, results in order."""
    from concurrent.futures import ThreadPoolExecutor

    edges = np.linspace(0, n, max(1, min(pieces, n)) + 1).astype(np.int64).tolist()
    ranges = list(pairwise(edges))
    if len(ranges) == 1:
        return [function(*ranges[0])]
    with ThreadPoolExecutor(min(n_threads(), len(ranges))) as pool:
        return list(pool.map(lambda r: function(*r), ranges))


@_jit
def count_columns(indptr, indices, values, lowest, start, stop, counts):
    """counts[j] += number of values above `lowest` in column j, over rows start..stop."""
    for i in range(indptr[start], indptr[stop]):
        if values[i] > lowest:
            counts[indices[i]] += 1


@_jit
def scatter_binned(indptr, indices, values, thresholds, bits, start, stop, offsets, entries):
    """Write the entries `row << bits | bin` of rows start..stop to their column's place; moves `offsets`."""
    n = thresholds.shape[0]
    for row in range(start, stop):
        for i in range(indptr[row], indptr[row + 1]):
            value = values[i]
            b = 0
            while b < n and value > thresholds[b]:
                b += 1
            if b > 0:
                column = indices[i]
                entries[offsets[column]] = (row << bits) | b
                offsets[column] += 1


@_jit
def scatter_coded(indptr, indices, codes, lowest, start, stop, offsets, entries):
    """Write the entries `code << 32 | row` of rows start..stop to their column's place; moves `offsets`."""
    for row in range(start, stop):
        for i in range(indptr[row], indptr[row + 1]):
            code = codes[i]
            if code > lowest:
                column = indices[i]
                entries[offsets[column]] = (np.uint64(code) << np.uint64(32)) | np.uint64(row)
                offsets[column] += 1


@_jit
def sort_columns(indptr, entries, start, stop):
    """Sort the entries of each column, in place."""
    for column in range(start, stop):
        a, b = indptr[column], indptr[column + 1]
        if b - a > 1:
            entries[a:b] = np.sort(entries[a:b])


@_jit
def score_binned(
    indptr, entries, bits, n_thresholds, label_ptr, labels, support, weight, start, stop, best, which
):
    """Best calibrated F1 of the features start..stop with every label, and the index of its threshold.

    best float64 and which int32, both [stop - start, n_labels], are filled. Counts are int32 (documents <
    2^31).
    """
    n_labels = support.shape[0]
    mask = (1 << bits) - 1
    counts = np.zeros((n_thresholds + 1, n_labels), np.int32)
    fired = np.zeros(n_thresholds + 1, np.int64)
    tp = np.zeros(n_labels, np.int32)
    for feature in range(start, stop):
        top = best[feature - start]
        at = which[feature - start]
        top[:] = 0.0
        at[:] = 0
        if indptr[feature] == indptr[feature + 1]:
            continue
        counts[:] = 0
        fired[:] = 0
        tp[:] = 0
        for i in range(indptr[feature], indptr[feature + 1]):
            entry = np.int64(entries[i])
            b = entry & mask
            document = entry >> bits
            fired[b] += 1
            for j in range(label_ptr[document], label_ptr[document + 1]):
                counts[b, labels[j]] += 1
        predicted = 0.0
        b = n_thresholds
        while b > 0:
            if fired[b] == 0:
                b -= 1
                continue
            # Thresholds lower..b-1 all predict the documents seen so far: the smallest stands for them.
            lower = b - 1
            while lower > 0 and fired[lower] == 0:
                lower -= 1
            predicted += fired[b]
            row = counts[b]
            for label in range(n_labels):
                tp[label] += row[label]
                t = np.float64(tp[label])
                fp = predicted - t
                fn = support[label] - t
                f1 = 2.0 * t / (2.0 * t + weight[label] * fp + fn)
                better = f1 >= top[label]  # down the thresholds, so that a tie goes to the smaller
                top[label] = f1 if better else top[label]
                at[label] = lower if better else at[label]
            b = lower


@_jit
def score_exact(indptr, entries, label_ptr, labels, support, weight, start, stop, best, code):
    """As `score_binned` over every distinct frequency; `code` gets the threshold's code, 0 for threshold 0.

    Only a label that gains a true positive at a step can gain score there, so a step costs the labels of its
    documents, not all labels.
    """
    n_labels = support.shape[0]
    low32 = np.uint64(0xFFFFFFFF)
    tp = np.zeros(n_labels, np.int32)
    for feature in range(start, stop):
        top = best[feature - start]
        at = code[feature - start]
        top[:] = 0.0
        at[:] = 0
        tp[:] = 0
        first, end = indptr[feature], indptr[feature + 1]
        last = end
        while last > first:
            value = entries[last - 1] >> np.uint64(32)
            begin = last
            while begin > first and entries[begin - 1] >> np.uint64(32) == value:
                begin -= 1
                document = np.int64(entries[begin] & low32)
                for j in range(label_ptr[document], label_ptr[document + 1]):
                    tp[labels[j]] += 1
            below = np.uint32(entries[begin - 1] >> np.uint64(32)) if begin > first else np.uint32(0)
            predicted = np.float64(end - begin)
            for i in range(begin, last):
                document = np.int64(entries[i] & low32)
                for j in range(label_ptr[document], label_ptr[document + 1]):
                    label = labels[j]
                    t = np.float64(tp[label])
                    f1 = 2.0 * t / (2.0 * t + weight[label] * (predicted - t) + (support[label] - t))
                    if f1 >= top[label]:
                        top[label] = f1
                        at[label] = below
            last = begin


@_jit
def count_pairs(indptr, rows, values, label_ptr, labels, column, label, threshold, tp, predicted):
    """True and predicted positives of each pair on a matrix in CSC; labels ascend within a document."""
    for p in range(column.shape[0]):
        hits, fired, wanted = 0, 0, label[p]
        for i in range(indptr[column[p]], indptr[column[p] + 1]):
            if values[i] > threshold[p]:
                fired += 1
                low, high = label_ptr[rows[i]], label_ptr[rows[i] + 1]
                while low < high:
                    middle = (low + high) // 2
                    if labels[middle] < wanted:
                        low = middle + 1
                    else:
                        high = middle
                if low < label_ptr[rows[i] + 1] and labels[low] == wanted:
                    hits += 1
        tp[p] = hits
        predicted[p] = fired


@_jit
def count_exceeding(best, cut_ptr, cuts, counts):
    """counts[j] += number of scores of label l in the block that reach the cuts cut_ptr[l]..j, no further.

    best [features, n_labels]; cuts ascend within each label. The sum of counts from j to the label's end is
    then the number of scores >= cuts[j].
    """
    for feature in range(best.shape[0]):
        for label in range(best.shape[1]):
            low, high = cut_ptr[label], cut_ptr[label + 1]
            score = best[feature, label]
            if low == high or score < cuts[low]:
                continue
            first = low
            while low < high:
                middle = (low + high) // 2
                if cuts[middle] <= score:
                    low = middle + 1
                else:
                    high = middle
            if low > first:
                counts[low - 1] += 1
