"""The feature with the highest plain F1 of each label: what calibration is held against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tagsteer.steer.baselines.methods import Method, Pair, Settings, feature_pairs


def plain_f1(labels: Iterable[str], table: Any, settings: Settings) -> Method:
    """Each label's feature by plain F1; labels that the table does not have are left out and counted.

    table: rows with label, feature and f1, where f1 was scored without calibration; a polars table or mappings.
    Ties go to the smaller feature id; a missing or NaN F1 is no candidate.
    """
    rows: Iterable[Mapping[str, Any]] = table.iter_rows(named=True) if hasattr(table, "iter_rows") else table
    best: dict[str, tuple[float, int]] = {}
    for row in rows:
        if row["f1"] is None or math.isnan(row["f1"]):
            continue
        rank = (-float(row["f1"]), int(row["feature"]))
        best[row["label"]] = min(best.get(row["label"], rank), rank)
    wanted = list(dict.fromkeys(labels))
    pairs = [Pair(label, best[label][1]) for label in wanted if label in best]
    missing = f", {len(wanted) - len(pairs)} labels without one" if len(pairs) < len(wanted) else ""
    return feature_pairs("plain F1", pairs, settings, f"top feature by plain F1{missing}")
