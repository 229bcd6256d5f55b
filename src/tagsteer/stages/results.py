"""Stages `evaluate` and `report`: from ratings to scores with their protocol, and to a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagsteer.run import Run


def evaluate_stage(run: Run) -> dict[str, Any]:
    """Strength by cross-validation, scores beside the floor and the controls, intervals and paired tests."""
    import polars as pl

    from tagsteer.evaluate.summary import summarise

    e = run.config.evaluate
    ratings = pl.read_parquet(run.path("judge") / "ratings.parquet")
    judge = json.loads((run.path("judge") / "judge.json").read_text("utf-8"))
    options: dict[str, Any] = {"repeats": e.repeats, "splits": e.splits} if e.protocol == "paper" else {}
    summary = summarise(
        ratings, protocol_name=e.protocol, judge=judge["description"], seed=run.config.seed, **options
    )
    summary.save(run.path("evaluate"))
    pairs = summary.pairs.filter(pl.col("method") == "steered")
    return {
        "protocol": summary.provenance["protocol"],
        "pairs": len(pairs),
        "missing": summary.provenance["n_missing"],
    }


def report_stage(run: Run) -> dict[str, Any]:
    """The page, its figures, and CSV files with every generation and rating."""
    from tagsteer.report.page import write_report

    page = write_report(run.folder, run.path("report"))
    return {"page": str(page)}
