"""ROC curves against scikit-learn and pair counting, detection against the values AxBench stored."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.detection import detect, detect_table, detection_summary, max_over_tokens, roc

CATEGORIES = ["positive"] * 3 + ["negative"] * 3 + ["hard negative"] * 2


@pytest.mark.parametrize("seed", range(20))
def test_roc_equals_scikit_learn_to_the_bit(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 60)]
    scores = rng.integers(0, 12, 62) / 7 if seed % 2 else rng.normal(size=62)
    ours = roc(labels, scores)
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores)
    np.testing.assert_array_equal(ours.false_positive_rate, fpr)
    np.testing.assert_array_equal(ours.true_positive_rate, tpr)
    np.testing.assert_array_equal(ours.thresholds, thresholds)
    assert ours.area == metrics.auc(fpr, tpr)
    assert ours.best_threshold == thresholds[np.argmax(tpr - fpr)]


def test_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(1)
    labels, scores = np.r_[0, 1, rng.integers(0, 2, 40)], rng.integers(0, 6, 42)
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    assert roc(labels, scores).area == pytest.approx(np.mean(pairs), abs=1e-12)


def test_roc_of_one_class_has_no_area():
    assert math.isnan(roc([1, 1], [0.3, 0.2]).area)
    with pytest.raises(TagsteerError, match="1 of 2 scores are NaN"):
        roc([0, 1], [0.3, math.nan])
    with pytest.raises(TagsteerError, match="two classes"):
        roc([0, 2], [0.3, 0.4])


def test_hard_negatives_scale_the_activations_but_do_not_enter_the_area():
    found = detect([3, 3, 1, 0, 2, 1, 9, 2], CATEGORIES)
    assert found.auroc == pytest.approx((3 + 3 + 1.5) / 9)
    assert found.max_activation == 9
    assert found.optimal_threshold == 3 / 9  # two of three positives, no negative
    assert found.hard_negative_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (found.n_positive, found.n_negative, found.n_hard) == (3, 3, 2)


@pytest.mark.parametrize("value", [0.0, 4.5])
def test_a_constant_activation_is_chance(value):
    found = detect([value] * 8, CATEGORIES)
    assert found.auroc == 0.5 and found.constant and found.max_activation == value
    assert math.isnan(found.hard_negative_accuracy)  # AxBench: {} where the threshold is infinite


def test_max_over_tokens_rounds_before_it_looks_for_the_first():
    assert max_over_tokens([1.0, 2.0004, 2.0001, 0.0]) == (2.0, 1)
    assert max_over_tokens([0.0, 0.0]) == (0.0, 0)
    value, at = max_over_tokens([])
    assert math.isnan(value) and at == -1


def test_unknown_categories_and_unequal_lengths_are_refused():
    with pytest.raises(TagsteerError, match="negatve"):
        detect([1.0, 2.0], ["positive", "negatve"])
    with pytest.raises(TagsteerError, match="2 activations for 1"):
        detect([1.0, 2.0], ["positive"])
    with pytest.raises(TagsteerError, match="lacks <method>_max_act"):
        detect_table(pl.DataFrame({"concept_id": [0], "category": ["positive"]}))


@pytest.mark.shared
@pytest.mark.parametrize(
    "run",
    [
        "output_llama/layer_20_concise/lsreft_addition",
        "output_llama/test_gating/lsreft_200_factor_shuffle_1_20",
    ],
)
def test_detection_equals_what_axbench_stored(shared, run):
    folder = shared / "axbench/runs" / run
    texts = pl.read_parquet(folder / "inference/latent_data.parquet")
    entries = [
        json.loads(line) for line in (folder / "evaluate/latent.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(entries) == 10
    for entry in entries:
        own = texts.filter(pl.col("concept_id") == entry["concept_id"])
        ours = detect(own["LsReFT_max_act"].to_numpy(), own["category"].to_list())
        stored = entry["results"]["AUCROCEvaluator"]["LsReFT"]
        assert ours.auroc == stored["roc_auc"]
        assert ours.optimal_threshold == stored["optimal_threshold"]
        assert ours.max_activation == stored["max_act"]
        assert ours.curve.false_positive_rate.tolist() == stored["roc_curve"]["fpr"]
        assert ours.curve.true_positive_rate.tolist() == stored["roc_curve"]["tpr"]
        hard = entry["results"]["HardNegativeEvaluator"]["LsReFT"].get("macro_avg_accuracy", math.nan)
        assert ours.hard_negative_accuracy == pytest.approx(hard, abs=1e-12, nan_ok=True)
        maxima = [max_over_tokens(tokens) for tokens in own["LsReFT_acts"].to_list()]
        assert maxima == list(zip(own["LsReFT_max_act"], own["LsReFT_max_act_idx"], strict=True))


@pytest.mark.shared
def test_detection_equals_the_golden_values(shared):
    golden = json.loads((shared / "axbench/derived/golden.json").read_text("utf-8"))["auroc"]
    for run, methods in golden.items():
        table = detect_table(pl.read_parquet(shared / "axbench/runs" / run / "inference/latent_data.parquet"))
        means = dict(detection_summary(table).select("method", "mean_auroc").iter_rows())
        for method, wanted in methods.items():
            own = table.filter(pl.col("method") == method)
            ids = [str(concept) for concept in own["concept_id"]]
            assert dict(zip(ids, own["auroc"], strict=True)) == wanted["per_concept"]
            assert dict(zip(ids, own["max_activation"], strict=True)) == wanted["max_act"]
            assert means[method] == pytest.approx(wanted["mean"], abs=1e-12)
