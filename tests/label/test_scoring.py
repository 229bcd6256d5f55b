"""The fast scoring against the definition in dense loops, scikit-learn, and its torch twin."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch

from tagsteer.errors import TagsteerError
from tagsteer.label.calibration import calibrated_f1
from tagsteer.label.scoring import DEFAULT_THRESHOLDS, check_thresholds, score_features

DOCS, FEATURES, LABELS = 240, 40, 9
ENGINES = [None, torch.device("cpu")]


def slow(z: np.ndarray, y: np.ndarray, thresholds, prior) -> tuple[np.ndarray, np.ndarray]:
    """The definition: every feature, label and threshold by itself; ties to the smaller threshold."""
    best, at = np.full((z.shape[1], y.shape[1]), -1.0), np.zeros((z.shape[1], y.shape[1]), z.dtype)
    for f in range(z.shape[1]):
        candidates = np.unique(np.append(z[:, f], 0)) if isinstance(thresholds, str) else thresholds
        for t in sorted(candidates):
            for label in range(y.shape[1]):
                fires, has = z[:, f] > t, y[:, label] > 0
                counts = (
                    (fires & has).sum(),
                    (fires & ~has).sum(),
                    (~fires & has).sum(),
                    (~fires & ~has).sum(),
                )
                score = calibrated_f1(*counts, prior=prior)
                if score > best[f, label]:
                    best[f, label], at[f, label] = score, t
    return best, at


def data(seed: int = 0, dtype=np.float32) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Frequencies that are shares of few tokens (so that ties abound), a dead and an always-on feature, an
    empty label, a label of all documents, documents without labels or activations."""
    rng = np.random.default_rng(seed)
    y = rng.random((DOCS, LABELS)) < np.linspace(0.02, 0.4, LABELS)
    y[:, 0], y[:, 1], y[5] = False, True, False
    z = rng.integers(0, 20, (DOCS, FEATURES)) / 20 * (rng.random((DOCS, FEATURES)) < 0.3)
    z[:, 2] = y[:, 4] * rng.integers(1, 9, DOCS) / 20  # a good probe
    z[:, 7], z[:, 8], z[9] = 0, 0.05, 0
    return sp.csr_matrix(z.astype(dtype)), sp.csr_matrix(y.astype(np.uint8))


@pytest.mark.parametrize("device", ENGINES)
@pytest.mark.parametrize("prior", [1e-3, 0.3, None])
@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, (0.05,), (0.0, 0.4, 0.45, 2.0), "exact"])
def test_equals_the_definition(device, prior, thresholds):
    z, y = data()
    scores = score_features(z, y, prior=prior, thresholds=thresholds, device=device)
    f1, threshold = slow(z.toarray(), y.toarray(), check_thresholds(thresholds, z.dtype), prior)
    np.testing.assert_allclose(scores.f1, f1, atol=1e-6)
    hit = f1 > 0
    np.testing.assert_array_equal(scores.threshold[hit], threshold[hit])
    assert scores.f1.dtype == np.float32 and scores.threshold.dtype == z.dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, "exact"])
def test_torch_gives_the_same_bits(dtype, thresholds, monkeypatch):
    from tagsteer.label import scoring_torch

    monkeypatch.setattr(scoring_torch, "CELLS", 3000)  # many slices
    z, y = data(1, dtype)
    cpu = score_features(z, y, thresholds=thresholds)
    other = score_features(z, y, thresholds=thresholds, device=torch.device("cpu"))
    np.testing.assert_array_equal(cpu.f1, other.f1)
    np.testing.assert_array_equal(cpu.threshold, other.threshold)
    assert cpu.top(30).equals(other.top(30))


@pytest.mark.cuda
@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, "exact"])
def test_cuda_gives_the_same_bits(thresholds):
    z, y = data(2)
    cpu, cuda = (score_features(z, y, thresholds=thresholds, device=d) for d in (None, "cuda"))
    np.testing.assert_array_equal(cpu.f1, cuda.f1)
    np.testing.assert_array_equal(cpu.threshold, cuda.threshold)


def test_plain_f1_is_sklearns():
    from sklearn.metrics import f1_score

    z, y = data(3)
    scores = score_features(z, y, prior=None, thresholds=(0.0, 0.2))
    rng = np.random.default_rng(0)
    for feature, label in zip(rng.integers(FEATURES, size=40), rng.integers(1, LABELS, size=40), strict=True):
        column, truth = z[:, [feature]].toarray()[:, 0], y[:, [label]].toarray()[:, 0]
        wanted = max(f1_score(truth, column > np.float32(t), zero_division=0) for t in (0.0, 0.2))
        assert scores.f1[feature, label] == pytest.approx(wanted, abs=1e-6)


def test_strictly_above_in_the_matrix_own_precision():
    """A document with 1 token of 20 does not fire at 0.05, in float32 as little as on paper."""
    z = np.array([[1 / 20], [2 / 20], [0]], np.float32)
    scores = score_features(z, np.array([[1], [1], [0]]), thresholds=[0.05], prior=None)
    row = scores.top(1).row(0, named=True)
    assert (row["tp"], row["fn"], row["tn"]) == (1, 1, 1)
    assert (z[:, 0] > row["threshold"]).tolist() == [False, True, False]


@pytest.mark.parametrize("per", [None, "label", "feature"])
@pytest.mark.parametrize("k", [1, 3, 17, 10_000])
def test_top_is_the_sorted_full_table(per, k, monkeypatch):
    from tagsteer.label import sorting

    monkeypatch.setattr(sorting, "BLOCK_BYTES", 1)  # blocks of 64 features
    z, y = data(4)
    z = sp.hstack([z] * 5).tocsr()  # five copies: ties across blocks
    scores = score_features(z, y, label_names=[f"l{i}" for i in range(LABELS)])
    feature, label = np.nonzero(scores.f1 > 0)
    pairs = sorted(zip(-scores.f1[feature, label].astype(np.float64), feature, label, strict=True))
    seen: dict[int, int] = {}
    wanted = []
    for f1, f, lab in pairs:
        group = {"label": lab, "feature": f}.get(per, 0)
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= k:
            wanted.append((int(f), int(lab), round(-f1, 6)))
    top = scores.top(k, per)
    got = [
        (r["feature"], r["label"], round(float(np.float32(r["f1"])), 6)) for r in top.iter_rows(named=True)
    ]
    assert sorted(got) == sorted(wanted)
    if per is None:
        assert got == wanted
    assert top["label_name"].to_list() == [f"l{i}" for i in top["label"]]


def test_table_is_consistent_with_itself():
    z, y = data(5)
    top = score_features(z, y).top(4, per="label")
    dense, truth = z.toarray(), y.toarray().astype(bool)
    for row in top.iter_rows(named=True):
        fires, has = dense[:, row["feature"]] > row["threshold"], truth[:, row["label"]]
        assert (row["tp"], row["fp"]) == ((fires & has).sum(), (fires & ~has).sum())
        assert (row["fn"], row["tn"]) == ((~fires & has).sum(), (~fires & ~has).sum())
        assert row["f1"] == calibrated_f1(row["tp"], row["fp"], row["fn"], row["tn"])
        assert row["precision"] == row["tp"] / fires.sum() and row["recall"] == row["tp"] / has.sum()
        assert row["support"] == has.sum()
    assert 0 not in top["label"].to_list()  # the label without documents matches nothing


def test_counts_beyond_the_reach_of_narrow_types():
    """70,000 documents: more than uint16, and more than float32 or uint8 sums would keep apart."""
    n = 70_000
    z, y = np.full((n, 1), 0.9, np.float32), np.ones((n, 2), np.uint8)
    y[-1, 0] = 0
    row = score_features(z, y, prior=None).top(1, per="label").filter(pl.col("label") == 0).row(0, named=True)
    assert (row["tp"], row["fp"], row["support"]) == (n - 1, 1, n - 1)


@pytest.mark.parametrize(
    "form", ["dense", "coo", "csc", "unsorted", "duplicates", "bool labels", "explicit zeros"]
)
def test_any_form_of_the_same_matrices(form):
    z, y = data(6)
    wanted = score_features(z, y).f1
    a, b = z, y
    if form == "dense":
        a, b = z.toarray(), y.toarray()
    elif form in ("coo", "csc"):
        a, b = z.asformat(form), y.asformat(form)
    elif form == "unsorted":
        a = z[:, ::-1][:, ::-1]
        a.indices[: a.indptr[1]] = a.indices[: a.indptr[1]][::-1].copy()
        a.data[: a.indptr[1]] = a.data[: a.indptr[1]][::-1].copy()
        a.has_sorted_indices = a.has_canonical_format = False
    elif form == "duplicates":
        coo = z.tocoo()
        twice = (np.tile(coo.data / 2, 2), (np.tile(coo.row, 2), np.tile(coo.col, 2)))
        coo = sp.coo_matrix(twice, shape=z.shape)
        order = np.lexsort((coo.col, coo.row))
        ptr = np.searchsorted(coo.row[order], np.arange(DOCS + 1))
        a = sp.csr_matrix((coo.data[order], coo.col[order], ptr), shape=z.shape)
    elif form == "bool labels":
        b = y.toarray().astype(bool)
    else:
        a, b = z.copy(), y.copy()
        a = sp.csr_matrix(
            (np.append(a.data, 0), np.append(a.indices, 7), np.append(a.indptr[:-1], a.nnz + 1)), a.shape
        )
        a.data = a.data.astype(np.float32)
    np.testing.assert_array_equal(score_features(a, b).f1, wanted)


def test_inputs_are_left_as_they_were():
    z, y = data(7)
    copies = z.copy(), y.copy()
    score_features(z, y, thresholds="exact").top(3)
    for now, before in zip((z, y), copies, strict=True):
        assert (now != before).nnz == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_matrix": np.ones((3, 2))}, "240 documents and the label matrix 3"),
        ({"matrix": np.full((DOCS, 2), -0.5)}, "negative"),
        ({"matrix": np.full((DOCS, 2), np.nan)}, "non-finite"),
        ({"matrix": np.full(DOCS, 0.5)}, "two dimensions"),
        ({"matrix": np.full((DOCS, 2), "a")}, "wanted numbers"),
        ({"label_matrix": np.ones((DOCS, 0))}, "no columns"),
        ({"thresholds": [-0.1]}, "at least 0"),
        ({"thresholds": []}, "one or more"),
        ({"thresholds": "all"}, "exact"),
        ({"prior": 1.5}, "prior"),
        ({"label_names": ["a"]}, "1 label names for 9"),
        ({"device": "no-such-device"}, "device"),
    ],
)
def test_mistakes_are_named(change, message):
    z, y = data()
    arguments = {"matrix": z, "label_matrix": y, **change}
    with pytest.raises(TagsteerError, match=message):
        score_features(**arguments)
    with pytest.raises(TagsteerError, match="grouping"):
        score_features(z, y).top(3, per="labels")
