"""From matrices to a table of matches one can trust: split, score, permute, measure held out, group.

Joins `scoring` and `statistics` in the order that is honest; knows no models, texts or filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.label.scoring import DEFAULT_THRESHOLDS, check_labels, check_matrix, score_features
from tagsteer.label.statistics import (
    Split,
    duplicate_groups,
    heldout_columns,
    permutation_null,
    split_documents,
)

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, eq=False)
class Matches:
    """The best pairs with all that is known about how far to trust them."""

    table: pl.DataFrame
    """One row per pair, best first. feature, label, (label_name,) f1, threshold, tp, fp, fn, tn, precision,
    recall: on the documents the pair was found on (`split.selection`). heldout_*: on the others. support: all
    documents. q_value: `permutation_null`. group, representative, group_size, jaccard, cosine:
    `duplicate_groups`. Columns that were not computed are null."""
    labels: pl.DataFrame | None
    """One row per label, from `permutation_null`; None without permutations."""
    split: Split | None
    """None if pairs were found on all documents, as the paper does; then nothing is held out."""
    record: dict[str, Any]
    """The settings, for provenance."""


def find_matches(
    matrix: Any,
    label_matrix: Any,
    *,
    k: int = 100,
    per: Literal["label", "feature"] | None = "label",
    prior: float | None = 1e-3,
    thresholds: Sequence[float] | np.ndarray | Literal["exact"] = DEFAULT_THRESHOLDS,
    device: Any = None,
    label_names: Sequence[str] | None = None,
    heldout: float = 0.3,
    n_bootstrap: int = 1000,
    n_permutations: int = 20,
    decoder: Any = None,
    min_jaccard: float = 0.5,
    min_cosine: float = 0.7,
    seed: int = 0,
) -> Matches:
    """Find the k best pairs per label (or per feature, or overall) and say how far each can be trusted.

    matrix [n_docs, d_sae] frequencies, label_matrix [n_docs, n_labels] 0/1. `heldout=0` uses all documents
    for finding, as the paper does, and leaves the held-out columns null; `n_permutations=0` leaves q_value
    null.
    """
    import polars as pl

    matrix, labels = check_matrix(matrix), check_labels(label_matrix)
    if matrix.shape[0] != labels.shape[0]:
        raise TagsteerError(
            f"{matrix.shape[0]:,} documents in the activation matrix and {labels.shape[0]:,} in the labels"
        )
    split = split_documents(matrix.shape[0], heldout=heldout, seed=seed) if heldout else None
    part = (matrix, labels) if split is None else (matrix[split.selection], labels[split.selection])
    scores = score_features(*part, prior=prior, thresholds=thresholds, device=device, label_names=label_names)
    table = scores.top(k, per)
    support = np.bincount(labels.indices, minlength=labels.shape[1])
    table = table.with_columns(pl.Series("support", support[table["label"].to_numpy()], dtype=pl.Int64))
    if split is None:
        table = table.with_columns(
            *(
                pl.lit(None, pl.Float64).alias(f"heldout_{name}{suffix}")
                for name in ("f1", "precision", "recall")
                for suffix in ("", "_low", "_high")
            ),
            pl.lit(None, pl.Int64).alias("heldout_support"),
        )
    else:
        unseen = matrix[split.heldout], labels[split.heldout]
        table = heldout_columns(table, *unseen, prior=prior, n_bootstrap=n_bootstrap, seed=seed)
    per_label = None
    if n_permutations:
        table, per_label = permutation_null(scores, table, n_permutations=n_permutations, seed=seed)
        if label_names is not None:
            per_label = per_label.insert_column(
                1, pl.Series("label_name", list(label_names), dtype=pl.String)
            )
    else:
        table = table.with_columns(pl.lit(None, pl.Float64).alias("q_value"))
    table = duplicate_groups(table, part[0], decoder, min_jaccard=min_jaccard, min_cosine=min_cosine)
    record = {
        "k": k, "per": per, "prior": prior, "heldout": heldout, "seed": seed, "n_bootstrap": n_bootstrap,
        "n_permutations": n_permutations, "min_jaccard": min_jaccard,
        "min_cosine": None if decoder is None else min_cosine,
        "thresholds": "exact" if isinstance(thresholds, str) else [float(t) for t in thresholds],
        "n_docs": matrix.shape[0], "n_selection": part[0].shape[0],
        "n_features": matrix.shape[1], "n_labels": labels.shape[1],
    }  # fmt: skip
    return Matches(
        table.sort("f1", "feature", "label", descending=[True, False, False]), per_label, split, record
    )
