"""Held-out scores, permutation null, duplicate groups: noise must look like noise, a real match like one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from tagsteer.errors import TagsteerError
from tagsteer.label.calibration import calibrated_f1
from tagsteer.label.matching import find_matches
from tagsteer.label.scoring import score_features
from tagsteer.label.statistics import (
    duplicate_groups,
    heldout_columns,
    permutation_null,
    permuted,
    split_documents,
)


def noise(
    seed: int, docs: int = 300, features: int = 400, labels: int = 6
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Frequencies of features of very different density, and labels that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    fires = rng.random((docs, features)) < rng.choice([0.02, 0.1, 0.5], features)
    z = fires * rng.integers(1, 60, (docs, features)) / 100
    y = rng.random((docs, labels)) < rng.uniform(0.05, 0.3, labels)
    return sp.csr_matrix(z.astype(np.float32)), sp.csr_matrix(y.astype(np.uint8))


def planted(seed: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Noise in which feature 3 follows label 0 (recall 0.8, no false positives) and feature 4 copies 3."""
    z, y = noise(seed)
    rng = np.random.default_rng(seed + 1000)
    dense, has = z.toarray(), y.toarray()[:, 0] > 0
    dense[:, 3] = np.where(has, rng.random(len(has)) < 0.8, False) * 0.4
    dense[:, 4] = dense[:, 3] * (rng.random(len(has)) < 0.95)
    return sp.csr_matrix(dense), y


def test_split_is_a_partition_and_depends_on_the_seed_alone():
    split = split_documents(1001, heldout=0.3, seed=5)
    assert sorted([*split.selection, *split.heldout]) == list(range(1001)) and len(split.heldout) == 300
    again, other = split_documents(1001, heldout=0.3, seed=5), split_documents(1001, heldout=0.3, seed=6)
    assert (again.heldout == split.heldout).all() and (other.heldout != split.heldout).any()
    for bad in (0, 1, -0.5, 0.0001):
        with pytest.raises(TagsteerError, match="heldout"):
            split_documents(100, heldout=bad)


def test_heldout_scores_are_the_definition_on_the_other_documents():
    z, y = planted()
    split = split_documents(300)
    found = score_features(z[split.selection], y[split.selection]).top(3, per="label")
    table = heldout_columns(found, z[split.heldout], y[split.heldout], n_bootstrap=50)
    dense, truth = z.toarray()[split.heldout], y.toarray()[split.heldout] > 0
    for row in table.iter_rows(named=True):
        fires, has = dense[:, row["feature"]] > row["threshold"], truth[:, row["label"]]
        counts = (fires & has).sum(), (fires & ~has).sum(), (~fires & has).sum(), (~fires & ~has).sum()
        assert row["heldout_f1"] == pytest.approx(calibrated_f1(*counts), abs=1e-12)
        assert row["heldout_support"] == has.sum()
        assert row["heldout_recall"] == pytest.approx((fires & has).sum() / has.sum())
        assert row["heldout_precision"] == (
            pytest.approx((fires & has).sum() / fires.sum()) if fires.any() else None
        )


def test_interval_is_the_document_bootstrap():
    """Against resampling the documents themselves, row by row."""
    z, y = planted(1)
    pair = pl.DataFrame({"feature": [3], "label": [0], "threshold": [0.0]})
    row = heldout_columns(pair, z, y, prior=0.1, n_bootstrap=4000).row(0, named=True)
    fires, has = z.toarray()[:, 3] > 0, y.toarray()[:, 0] > 0
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(4000):
        pick = rng.integers(300, size=300)
        f, h = fires[pick], has[pick]
        samples.append(
            calibrated_f1((f & h).sum(), (f & ~h).sum(), (~f & h).sum(), (~f & ~h).sum(), prior=0.1)
        )
    low, high = np.percentile(samples, [2.5, 97.5])
    assert row["heldout_f1_low"] == pytest.approx(low, abs=0.015)
    assert row["heldout_f1_high"] == pytest.approx(high, abs=0.015)


def test_interval_covers_the_truth():
    """95 % intervals of a recall that is 0.8 by construction cover it in about 95 % of 200 data sets."""
    pair = pl.DataFrame({"feature": [0], "label": [0], "threshold": [0.0]})
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        has = np.arange(400) < 100
        fires = np.where(has, rng.random(400) < 0.8, rng.random(400) < 0.05)
        row = heldout_columns(
            pair, fires[:, None].astype(np.float32), has[:, None], n_bootstrap=300, seed=seed
        ).row(0, named=True)
        hits += row["heldout_recall_low"] <= 0.8 <= row["heldout_recall_high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_nothing_held_out_is_null_not_zero():
    pairs = pl.DataFrame({"feature": [0, 1], "label": [0, 1], "threshold": [0.0, 0.0]})
    z, y = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0, 1], [0, 0]])
    absent, silent = heldout_columns(pairs, z, y, n_bootstrap=20).iter_rows(named=True)
    assert (
        absent["heldout_f1"] is None and absent["heldout_recall"] is None and absent["heldout_f1_low"] is None
    )
    assert absent["heldout_support"] == 0 and absent["heldout_precision"] == 0.0
    assert (
        silent["heldout_f1"] == 0.0
        and silent["heldout_recall"] == 0.0
        and silent["heldout_precision"] is None
    )


def test_a_pair_has_its_own_stream():
    z, y = planted()
    pairs = score_features(z, y).top(2, per="label")
    whole, part = heldout_columns(pairs, z, y), heldout_columns(pairs[2:5], z, y)
    assert whole[2:5].equals(part)


def test_permutation_keeps_supports_and_overlaps():
    z, y = noise(2)
    scores = score_features(z, y)
    shuffled = permuted(scores.labels, 0, 1)
    a, b = y.toarray().astype(int), shuffled.matrix.toarray().astype(int)
    assert (a.T @ a == b.T @ b).all() and (a != b).any()
    assert (permuted(scores.labels, 0, 1).ids == shuffled.ids).all()


def test_q_values_are_the_slow_count():
    z, y = planted(3)
    scores = score_features(z, y)
    table, per_label = permutation_null(scores, scores.top(5, per="label"), n_permutations=4, seed=9)
    real = scores.f1.astype(np.float64)
    null = np.stack([score_features(z, permuted(scores.labels, 9, p).matrix).f1 for p in range(1, 5)])
    for label in range(6):
        rows = table.filter(pl.col("label") == label).sort("f1", descending=True)
        cuts = rows["f1"].to_numpy()
        estimate = [
            min(1.0, (1 + (null[:, :, label] >= c - 1e-7).sum()) / (5 * (real[:, label] >= c - 1e-7).sum()))
            for c in cuts
        ]
        wanted = np.minimum.accumulate(estimate[::-1])[::-1]  # best over all lower cuts
        np.testing.assert_allclose(rows["q_value"], wanted, atol=1e-12)
        row = per_label.row(label, named=True)
        assert row["n_matches"] == 5 and row["fdr"] == pytest.approx(estimate[-1])
        assert row["null_f1_max"] == pytest.approx(null[:, :, label].max(), abs=1e-6)
        assert row["p_value"] == (1 + (null[:, :, label].max(1) >= real[:, label].max() - 1e-7).sum()) / 5


def test_noise_is_called_noise_and_a_match_a_match():
    """Under a complete null at most about 5 % of labels (120 here) may have anything with q <= 0.05."""
    false = 0
    for seed in range(20):
        z, y = noise(100 + seed, docs=200, features=150)
        scores = score_features(z, y)
        table, _ = permutation_null(scores, scores.top(3, per="label"), n_permutations=39, seed=seed)
        false += table.filter(pl.col("q_value") <= 0.05)["label"].n_unique()
    assert false <= 13  # 6 expected; 13 is the 99.5 % point of a binomial
    z, y = planted()
    scores = score_features(z, y)
    table, per_label = permutation_null(scores, scores.top(3, per="label"), n_permutations=39)
    good = table.filter((pl.col("label") == 0) & pl.col("feature").is_in([3, 4]))
    assert len(good) == 2 and good["q_value"].max() <= 0.025 and per_label["p_value"][0] == 0.025


def test_more_permutations_never_reach_zero():
    z, y = planted()
    scores = score_features(z, y)
    table, _ = permutation_null(scores, scores.top(1, per="label"), n_permutations=1)
    assert table["q_value"].min() >= 0.25 and table["q_value"].max() <= 1
    with pytest.raises(TagsteerError, match="n_permutations"):
        permutation_null(scores, table, n_permutations=0)


def test_duplicates_need_the_same_documents_and_the_same_direction():
    docs = np.zeros((10, 4), np.float32)
    docs[:6, 0], docs[:5, 1], docs[:6, 2], docs[4:, 3] = 0.5, 0.5, 0.5, 0.5
    decoder = np.array([[1, 0.0], [0.9, 0.1], [0, 1.0], [1, 0.0]])
    matches = pl.DataFrame(
        {
            "feature": [0, 1, 2, 3],
            "label": [0] * 4,
            "f1": [0.9, 0.8, 0.7, 0.6],
            "threshold": np.zeros(4, np.float32),
        }
    )
    table = duplicate_groups(matches, docs, decoder)
    assert table["group"].to_list() == [0, 0, 2, 3]  # 2: other direction; 3: other documents
    assert table["representative"].to_list() == [True, False, True, True] and table[
        "group_size"
    ].to_list() == [2, 2, 1, 1]
    assert table["jaccard"][1] == pytest.approx(5 / 6) and table["cosine"][1] == pytest.approx(
        0.9 / np.hypot(0.9, 0.1)
    )
    import torch

    assert duplicate_groups(matches, docs, torch.tensor(decoder, dtype=torch.bfloat16))[
        "group"
    ].to_list() == [0, 0, 2, 3]
    alone = duplicate_groups(matches, docs)
    assert alone["group"].to_list() == [0, 0, 0, 3] and alone["cosine"].null_count() == 4
    apart = duplicate_groups(matches.with_columns(label=pl.Series([0, 1, 0, 1])), docs)
    assert apart["group"].to_list() == [0, 1, 0, 3]  # groups are per label
    with pytest.raises(TagsteerError, match="no row in a decoder of 2"):
        duplicate_groups(matches, docs, decoder[:2])


def test_duplicates_do_not_chain():
    """a ~ b and b ~ c but not a ~ c: c stays apart from a's group."""
    docs = np.zeros((12, 3), np.float32)
    docs[0:6, 0], docs[2:8, 1], docs[4:10, 2] = 1, 1, 1
    matches = pl.DataFrame(
        {"feature": [0, 1, 2], "label": [0] * 3, "f1": [0.9, 0.8, 0.7], "threshold": [0.0] * 3}
    )
    assert duplicate_groups(matches, docs, min_jaccard=0.5)["group"].to_list() == [0, 0, 2]


def test_find_matches_says_all_of_it():
    z, y = planted()
    matches = find_matches(
        z, y, k=3, n_permutations=19, label_names=[f"l{i}" for i in range(6)], decoder=np.eye(400)[:, :50] + 1
    )
    table = matches.table
    best = table.row(0, named=True)
    assert best["feature"] in (3, 4) and best["label_name"] == "l0" and best["q_value"] <= 0.05
    assert best["heldout_f1_low"] <= best["heldout_f1"] <= best["heldout_f1_high"]
    twins = table.filter((pl.col("label") == 0) & pl.col("feature").is_in([3, 4]))
    assert twins["group"].n_unique() == 1 and twins["representative"].sum() == 1
    assert best["support"] == y[:, [0]].sum() and best["tp"] + best["fn"] < best["support"]
    # What noise wins in the search it loses on documents it was not chosen on; the planted match keeps its
    # precision.
    luck = table.filter(pl.col("label") > 0)
    assert luck["heldout_precision"].mean() < luck["precision"].mean() - 0.1
    assert best["heldout_precision"] > 0.7
    assert matches.labels is not None and matches.labels.columns[:2] == ["label", "label_name"]


def test_the_papers_way_has_the_same_columns():
    z, y = planted()
    ours, papers = (find_matches(z, y, k=2, heldout=h, n_permutations=n) for h, n in ((0.3, 1), (0, 0)))
    assert ours.table.schema == papers.table.schema
    assert papers.split is None and papers.labels is None and papers.record["heldout"] == 0
    assert (
        papers.table["heldout_f1"].null_count() == len(papers.table) == papers.table["q_value"].null_count()
    )
    assert (papers.table["tp"] + papers.table["fn"] == papers.table["support"]).all()
