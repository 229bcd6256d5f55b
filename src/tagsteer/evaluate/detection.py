"""Concept detection: does a latent's maximum activation tell texts with the concept from texts without it?

AxBench's rules (arXiv 2501.17148; axbench/evaluators/aucroc.py and hard_negative.py), computed as
scikit-learn does but without it. Knows arrays and AxBench's latent tables, nothing of models or SAEs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError, one_of
from tagsteer.evaluate.scores import none_if_nan

if TYPE_CHECKING:
    import polars as pl

POSITIVE, NEGATIVE, HARD = "positive", "negative", "hard negative"


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve from (0, 0) to (1, 1) without points on straight parts, its area and best threshold."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray  # the first is inf: nothing is called positive
    area: float
    best_threshold: float  # Youden: the first maximum of true - false positive rate


def roc(labels: Any, scores: Any) -> Roc:
    """ROC of scores (higher = more positive) against labels 0/1; area NaN where a class is absent."""
    y = np.asarray(labels, dtype=np.float64).ravel()
    s = np.asarray(scores, dtype=np.float64).ravel()
    if y.shape != s.shape:
        raise TagsteerError(f"{y.size} labels for {s.size} scores: give one label per score")
    if not np.isin(y, (0, 1)).all():
        raise TagsteerError("labels other than 0 and 1: a ROC curve wants two classes")
    if np.isnan(s).any():
        raise TagsteerError(
            f"{int(np.isnan(s).sum())} of {s.size} scores are NaN: drop those texts and count them"
        )
    order = np.argsort(s, kind="stable")[::-1]
    s, y = s[order], y[order]
    ends = np.r_[np.flatnonzero(np.diff(s)), s.size - 1] if s.size else np.empty(0, dtype=int)
    true = np.cumsum(y)[ends]
    false = 1 + ends - true
    if len(ends) > 2:
        corner = np.r_[True, (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), True]
        true, false, ends = true[corner], false[corner], ends[corner]
    true, false, thresholds = np.r_[0, true], np.r_[0, false], np.r_[np.inf, s[ends]]
    if true[-1] == 0 or false[-1] == 0:
        nothing = np.full(len(true), np.nan)
        return Roc(nothing, nothing, thresholds, math.nan, math.nan)
    tpr, fpr = true / true[-1], false / false[-1]
    return Roc(fpr, tpr, thresholds, float(np.trapezoid(tpr, fpr)), float(thresholds[np.argmax(tpr - fpr)]))


@dataclass(frozen=True, eq=False)
class Detection:
    """How well one latent detects one concept."""

    auroc: float
    optimal_threshold: float  # on activations scaled to 0..1 over the concept's texts
    max_activation: float
    hard_negative_accuracy: (
        float  # mean accuracy on positives and hard negatives; NaN where AxBench gives none
    )
    n_positive: int
    n_negative: int
    n_hard: int
    constant: bool  # every activation is the same: AUROC .5 by definition
    curve: Roc


def max_over_tokens(activations: Sequence[float]) -> tuple[float, int]:
    """A text's score by AxBench's rule: highest activation, rounded to 3 decimals, and its first position."""
    rounded = np.round(np.asarray(activations, dtype=np.float64), 3)
    if rounded.size == 0:
        return math.nan, -1
    return float(rounded.max()), int(rounded.argmax())


def detect(max_activations: Any, categories: Sequence[str]) -> Detection:
    """AUROC of one latent on one concept's texts, from the maximum activation and the category of each.

    Activations are scaled by the minimum and maximum over all texts, hard negatives included (constant: 0,
    and AUROC .5). Only positive and negative texts enter the AUROC, as in AxBench. The hard-negative accuracy
    uses the Youden threshold of that curve, and is NaN when the threshold is infinite or a class is absent.
    """
    raw = np.asarray(max_activations, dtype=np.float64).ravel()
    kind = np.asarray(list(categories), dtype=object)
    if raw.shape != kind.shape:
        raise TagsteerError(f"{raw.size} activations for {kind.size} categories: give one category per text")
    for name in dict.fromkeys(kind.tolist()):
        if name not in (POSITIVE, NEGATIVE, HARD):
            raise one_of(name, [POSITIVE, NEGATIVE, HARD], "category of a text")
    if not np.isfinite(raw).all():
        raise TagsteerError(
            f"{int((~np.isfinite(raw)).sum())} of {raw.size} activations are not finite: drop those texts"
        )
    low, high = (raw.min(), raw.max()) if raw.size else (math.nan, math.nan)
    constant = not high > low
    scaled = np.zeros(raw.shape) if constant else (raw - low) / (high - low)
    labelled = kind != HARD
    curve = roc(kind[labelled] == POSITIVE, scaled[labelled])
    hard = math.nan
    if math.isfinite(curve.best_threshold) and (kind == POSITIVE).any() and (kind == HARD).any():
        called = scaled >= curve.best_threshold
        hard = float(np.mean([called[kind == POSITIVE].mean(), (~called[kind == HARD]).mean()]))
    return Detection(
        auroc=curve.area,
        optimal_threshold=curve.best_threshold,
        max_activation=float(high),
        hard_negative_accuracy=hard,
        n_positive=int((kind == POSITIVE).sum()),
        n_negative=int((kind == NEGATIVE).sum()),
        n_hard=int((kind == HARD).sum()),
        constant=constant,
        curve=curve,
    )


def detect_table(table: pl.DataFrame) -> pl.DataFrame:
    """An AxBench latent table (concept_id, category, <method>_max_act) as one row per method and concept."""
    import polars as pl

    methods = [match.group(1) for name in table.columns if (match := re.fullmatch(r"(.+)_max_act", name))]
    absent = [name for name in ("concept_id", "category") if name not in table.columns]
    if not methods or absent:
        wanted = ", ".join(absent or ["<method>_max_act"])
        raise TagsteerError(
            f"the latent table lacks {wanted}: wanted AxBench's inference/latent_data.parquet"
        )
    rows: list[dict[str, Any]] = []
    for method in methods:
        for (concept,), texts in table.group_by(["concept_id"], maintain_order=True):
            found = detect(texts[f"{method}_max_act"].to_numpy(), texts["category"].to_list())
            rows.append(
                {
                    "method": method,
                    "concept_id": concept,
                    "auroc": none_if_nan(found.auroc),
                    "optimal_threshold": none_if_nan(found.optimal_threshold),
                    "max_activation": found.max_activation,
                    "hard_negative_accuracy": none_if_nan(found.hard_negative_accuracy),
                    "n_positive": found.n_positive,
                    "n_negative": found.n_negative,
                    "n_hard": found.n_hard,
                    "constant": found.constant,
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None).sort("method", "concept_id", maintain_order=True)


def detection_summary(detections: pl.DataFrame) -> pl.DataFrame:
    """A row per method: means over concepts, those without a value left out and counted."""
    import polars as pl

    return detections.group_by("method", maintain_order=True).agg(
        pl.col("auroc").mean().alias("mean_auroc"),
        pl.col("hard_negative_accuracy").mean().alias("mean_hard_negative_accuracy"),
        pl.len().alias("n_concepts"),
        pl.col("auroc").null_count().alias("n_without_auroc"),
        pl.col("constant").sum().alias("n_constant"),
    )
