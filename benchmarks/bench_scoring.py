"""Scoring every feature, label and threshold: compiled loops against sparse and dense products.

The documents are made up: feature densities fall like 1/√rank, frequencies are shares of 128 tokens, and a
document carries about three labels. The baselines count true positives per threshold by a product (z > t)ᵀ
· Y, as one writes it with scipy or numpy, and take the maximum of the same formula. Dense float32 goes
through BLAS; dense integers, the type in which counts are exact at any size, do not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp

from benchmarks import Row
from tagsteer.label.calibration import calibrated_f1
from tagsteer.label.scoring import DEFAULT_THRESHOLDS, Scores, score_features

FULL = {"docs": 20_000, "features": 131_072, "labels": 300, "nonzeros": 50_000_000}
QUICK = {"docs": 4_000, "features": 16_384, "labels": 300, "nonzeros": 2_000_000}
LABELS_PER_DOC = 3
T = TypeVar("T")


def make(docs: int, features: int, labels: int, nonzeros: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Frequencies [docs, features] with exactly `nonzeros` entries, and labels [docs, labels]."""
    rng = np.random.default_rng(0)
    density = 1 / np.sqrt(np.arange(1, features + 1))
    per_row = nonzeros // docs
    # Scaled so that a row has a little more than it needs; each row is then cut to exactly per_row entries.
    low, high = 0.0, float(features)
    for _ in range(60):
        middle = (low + high) / 2
        enough = np.minimum(0.9, middle * density).sum() >= 1.03 * per_row + 4 * np.sqrt(per_row)
        low, high = (low, middle) if enough else (middle, high)
    density = np.minimum(0.9, high * density).astype(np.float32)
    indices = np.empty((docs, per_row), np.int32)
    for row in range(docs):
        found = np.flatnonzero(rng.random(features, np.float32) < density)
        drop = rng.choice(len(found), len(found) - per_row, replace=False)
        indices[row] = np.delete(found, drop)
    data = rng.integers(1, 65, docs * per_row, dtype=np.uint8).astype(np.float32) / np.float32(128)
    indptr = np.arange(docs + 1, dtype=np.int64) * per_row
    z = sp.csr_matrix((data, indices.ravel(), indptr), shape=(docs, features))
    z.has_canonical_format = True
    y = sp.csr_matrix(rng.random((docs, labels), np.float32) < LABELS_PER_DOC / labels).astype(np.uint8)
    return z, y


def sparse_products(z: sp.csr_matrix, y: sp.csr_matrix) -> np.ndarray:
    """The same scores by one scipy product per threshold, float32 [features, labels]."""
    support = np.asarray(y.sum(axis=0, dtype=np.int64))[0]
    counts, best = y.astype(np.int32), np.zeros((z.shape[1], y.shape[1]), np.float32)
    for t in DEFAULT_THRESHOLDS:
        keep = z.data > np.float32(t)
        fires = sp.csr_matrix((keep.astype(np.int32), z.indices, z.indptr), shape=z.shape, copy=True)
        fires.eliminate_zeros()
        tp = (fires.T @ counts).toarray()
        predicted = np.bincount(fires.indices, minlength=z.shape[1])
        _maximum(best, tp, predicted, support, z.shape[0])
    return best


def dense_products(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same by dense products in the type of `y` (float32 is exact below 2^24 documents)."""
    support, best = y.sum(axis=0), np.zeros((z.shape[1], y.shape[1]), np.float32)
    for t in DEFAULT_THRESHOLDS:
        fires = (z > np.float32(t)).astype(y.dtype)
        _maximum(best, fires.T @ y, fires.sum(axis=0), support, len(z))
    return best


def _maximum(best: np.ndarray, tp: np.ndarray, predicted: np.ndarray, support: np.ndarray, docs: int) -> None:
    """best = max(best, F1), in slices of features so that float64 copies stay small."""
    for a in range(0, len(best), 8192):
        t, p = tp[a : a + 8192].astype(np.float64), np.asarray(predicted[a : a + 8192], np.float64)[:, None]
        f1 = calibrated_f1(t, p - t, support - t, docs - p - support + t)
        np.maximum(best[a : a + 8192], f1, out=best[a : a + 8192])


class Peak:
    """Largest resident memory of this process while the block ran, GiB, sampled 50 times a second."""

    def __enter__(self) -> Peak:
        import psutil

        self.gib, self._stop, process = 0.0, threading.Event(), psutil.Process()

        def watch() -> None:
            while not self._stop.wait(0.02):
                self.gib = max(self.gib, process.memory_info().rss / 2**30)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


class Took(NamedTuple):
    """Seconds by the clock, and seconds of processor time of all threads, which a busy machine changes little."""

    wall: float
    cpu: float

    def times(self, factor: float) -> Took:
        return Took(factor * self.wall, factor * self.cpu)


def timed(function: Callable[[], T], repeats: int = 1) -> tuple[Took, T]:
    """The fastest of `repeats` calls, and what the last one returned."""
    took = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        out = function()
        took.append(Took(time.perf_counter() - wall, time.process_time() - cpu))
    return min(took), out


def run(quick: bool) -> list[Row]:
    size = QUICK if quick else FULL
    z, y = make(**size)
    what = (
        "{features:,} features × {labels} labels × 10 thresholds, {docs:,} documents, {nonzeros:,} non-zeros"
    )
    for thresholds in (DEFAULT_THRESHOLDS, "exact"):  # compile outside the clock
        score_features(z[:50], y[:50], thresholds=thresholds).top(5, per="label")

    sort, _ = timed(lambda: score_features(z, y), repeats=3)
    with Peak() as peak:
        ours, scores = timed(lambda: tables(z, y, DEFAULT_THRESHOLDS), repeats=3)
    f1, top = scores.f1, best_of_labels(scores)
    del scores
    exact, _ = timed(lambda: tables(z, y, "exact"))
    best = "best of 3; {:.3g} s of processor time"
    return [
        Row(
            f"all scores, CSR in, tables of f1 and threshold out: {what.format(**size)}",
            ours.wall,
            "s",
            target="< 10 s on 2 quiet cores",
            note=best.format(ours.cpu),
        ),
        Row("of which: checks and the sort by feature", sort.wall, "s", note=best.format(sort.cpu)),
        Row("peak memory of the process meanwhile, input included", peak.gib, "GiB", target="< 4 GiB"),
        Row("the 100 best pairs of every label, streamed, after the sort", top.wall, "s"),
        Row('every distinct frequency as threshold (`thresholds="exact"`), tables out', exact.wall, "s"),
        against_sparse(z, y, f1, ours, 1 if quick else 8),
        against_dense(z, y, f1, ours, 256, np.float32, "a dense float32 product per threshold (BLAS)"),
        against_dense(z, y, f1, ours, 16, np.int64, "a dense int64 product per threshold (no BLAS)"),
    ]


def best_of_labels(scores: Scores) -> Took:
    """Seconds for the 100 best pairs of every label."""
    return timed(lambda: scores.top(100, per="label"))[0]


def tables(z: sp.csr_matrix, y: sp.csr_matrix, thresholds: tuple[float, ...] | str) -> Scores:
    """The scores with both full tables computed."""
    scores = score_features(z, y, thresholds=thresholds)  # type: ignore[arg-type]
    assert scores.f1.shape == scores.threshold.shape == (z.shape[1], y.shape[1])
    return scores


def against_sparse(z: sp.csr_matrix, y: sp.csr_matrix, f1: np.ndarray, ours: Took, every: int) -> Row:
    """Against sparse products, timed on every `every`-th feature (their cost is a sum over features)."""
    part = np.arange(0, z.shape[1], every)
    columns = z[:, part]
    took, best = timed(lambda: sparse_products(columns, y))
    np.testing.assert_allclose(f1[part], best, atol=1e-6)
    how = f"every {every}th feature, times {every}" if every > 1 else "all features"
    return _against("a scipy.sparse product per threshold", ours, took.times(every), "≥ 10 ×", how)


def against_dense(
    z: sp.csr_matrix, y: sp.csr_matrix, f1: np.ndarray, ours: Took, features: int, dtype: type, name: str
) -> Row:
    """Against dense products, extrapolated from some features of all densities."""
    part = np.linspace(0, z.shape[1] - 1, features).astype(np.int64)
    block, labels = z[:, part].toarray(), y.toarray().astype(dtype)
    dense_products(block[:100], labels[:100])
    took, best = timed(lambda: dense_products(block, labels), repeats=3)
    np.testing.assert_allclose(f1[part], best, atol=1e-6)
    how = f"best of 3 on {features} features, extrapolated"
    return _against(name, ours, took.times(z.shape[1] / features), "≥ 1,000 ×", how)


def _against(name: str, ours: Took, theirs: Took, target: str, how: str) -> Row:
    note = f"{how}; same scores to 1e-6; by processor time {theirs.cpu / ours.cpu:,.0f} ×"
    return Row("all scores", ours.wall, "s", name, theirs.wall, target=target, note=note)
