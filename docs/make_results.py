"""Write the README's results from a finished demo run: `make results` (reads runs/demo).

The table is that of the terminal; the texts are the first instruction of each pair, steered at the chosen strength,
beside the unsteered text. Nothing in that section of the README is typed by hand.
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
    lines += ["One text per pair (first instruction, chosen strength), and the unsteered one:", ""]
    lines += _texts(run, rows)
    text = readme.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after, "utf-8")


def _texts(run: Path, rows: list) -> list[str]:
    cells = pl.read_parquet(run / "steer" / "generations.parquet").filter(pl.col("instruction_id") == 0)
    found = []
    for row in rows:
        of_label = cells.filter(pl.col("label") == row.label)
        steered = of_label.filter((pl.col("method") == "steered") & (pl.col("strength") == row.strength))
        plain = of_label.filter(pl.col("method") == "unsteered")
        if steered.height and plain.height:
            found.append(f"- **{row.label}**: {_quote(steered['generation'][0])}")
            found.append(f"  - unsteered: {_quote(plain['generation'][0])}")
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
