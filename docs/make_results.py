"""Write the README's results from a finished demo run: `make results` (reads runs/demo).

The table is that of the terminal; the texts answer the first instruction: the unsteered one, and each pair's at its
chosen strength. Nothing in that section of the README is typed by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl

from tagsteer.report.tables import short_table

BEGIN = "<!-- results: written by `make results` from runs/demo, do not edit -->"
END = "<!-- /results -->"


def main(run: Path, readme: Path) -> None:
    head = json.loads((run / "evaluate" / "summary.json").read_text("utf-8"))["provenance"]
    lines = [
        "| label | feature | calibrated F1 | output score | strength | overall | unsteered | random feature |"
    ]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    rows = short_table(run)
    for row in rows:
        figures = (row.f1, row.output_score, row.strength, row.overall, row.unsteered, row.random)
        shown = ["-" if value is None else f"{value:.3f}" for value in figures]
        shown[2] = "-" if row.strength is None else f"{row.strength:g}"
        lines.append(f"| {row.label} | {row.feature} | " + " | ".join(shown) + " |")
    lines += [
        "",
        f"{head['protocol_line']}; judge: {head['judge']}; {head['n_missing']} ratings missing.",
        "",
    ]
    lines += _texts(run, rows)
    text = readme.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after, "utf-8")


def _texts(run: Path, rows: list) -> list[str]:
    cells = pl.read_parquet(run / "steer" / "generations.parquet").filter(pl.col("instruction_id") == 0)
    plain = cells.filter(pl.col("method") == "unsteered").row(0, named=True)
    found = [
        f"The beginning of each text at the chosen strength. Instruction: {_quote(plain['instruction'])}", "",
        f"- *unsteered*: {_quote(plain['generation'])}",
    ]  # fmt: skip
    for row in rows:
        steered = cells.filter(
            (pl.col("label") == row.label)
            & (pl.col("method") == "steered")
            & (pl.col("strength") == row.strength)
        )
        found += [f"- **{row.label}**: {_quote(text)}" for text in steered["generation"].head(1)]
    return found


def _quote(text: str, limit: int = 160) -> str:
    """One line of a text, with what Markdown or HTML would read taken out."""
    plain = " ".join(text.split())
    for mark in "\\`*_<>[]|#":
        plain = plain.replace(mark, "")
    return f'"{plain[:limit]}{"…" if len(plain) > limit else ""}"'


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else root / "runs" / "demo", root / "README.md")
