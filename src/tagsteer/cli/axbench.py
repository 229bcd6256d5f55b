"""How the evaluation of an AxBench folder looks in the terminal and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from tagsteer.evaluate.axbench import AxBenchReport

TITLES = {
    "concepts": "by concept", "win_rates": "against the baseline", "detection_summary": "concept detection",
    "duplicates": "several rows of one key", "absent": "cells without a row",
    "failures": "judge replies without a rating", "curves": "by factor", "detection": "concept detection by concept",
}  # fmt: skip
ROWS = 20
"""Rows of a table in the terminal; files hold all."""


def print_axbench(report: AxBenchReport) -> None:
    """Protocol, a column of figures per method, the other tables, and notes, on stdout."""
    print(f"{report.folder}\n{report.protocol}")
    if "summary" in report.tables:
        rows = report.tables["summary"].to_dicts()
        print("\n" + _aligned([[name, *(_shown(row[name]) for row in rows)] for name in rows[0]]))
    for name, title in TITLES.items():
        table = report.tables.get(name)
        if table is None or not table.height:
            continue
        if name == "failures" and not table["n_failed"].sum():
            continue
        if name == "curves":
            table = _mean_curve(table)
        if name == "detection" and "detection_summary" in report.tables:
            continue
        body = [[_shown(value) for value in row] for row in table.head(ROWS).iter_rows()]
        print(f"\n{title}\n" + _aligned([table.columns, *body]))
        if table.height > ROWS:
            print(f"... and {table.height - ROWS} more; --out FOLDER writes all")
    for note in report.notes:
        print(f"\nnote: {note}")


def _mean_curve(table: pl.DataFrame) -> pl.DataFrame:
    """Mean over concepts at every factor."""
    import polars as pl

    numbers = [c for c in ("overall", "concept", "instruction", "fluency") if c in table.columns]
    grouped = table.group_by("method", "factor").agg(pl.len().alias("concepts"), pl.col(numbers).mean())
    return grouped.sort("method", "factor")


def write_axbench(report: AxBenchReport, folder: Path) -> None:
    """<table>.csv for every table and report.json with protocol, notes and the summary in full precision."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in report.tables.items():
        lists = [c for c, kind in table.schema.items() if kind.is_nested()]
        table.drop(lists).write_csv(folder / f"{name}.csv")
    summary = report.tables["summary"].to_dicts() if "summary" in report.tables else []
    head: dict[str, Any] = {
        "folder": str(report.folder), "protocol": report.protocol, "suppression": report.suppression,
        "notes": list(report.notes), "summary": summary,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    # Labels and texts of a folder are not ours: no control characters reach the terminal.
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= 48 else f"{text[:47]}…"


def _aligned(rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [v.rjust(w) if k else v.ljust(w) for k, (v, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
