"""CSV files of a run (pairs, every generation with its ratings, methods) and the short table of the terminal.

Text cells that a spreadsheet would run as a formula get an apostrophe before them; numbers stay numbers and
missing stays empty. Knows tables, nothing of pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tagsteer.report.read import RunRecord, steered_pairs
from tagsteer.report.text import visible

if TYPE_CHECKING:
    import polars as pl

FORMULA = r"^[\s\x00-\x20\u00a0\u200b\ufeff]*[=+\-@＝＋－＠]|^[\t\r\n]"
"""What a spreadsheet may take for a formula, blanks before it included (OWASP, CSV injection)."""

PAIR_COLUMNS = (
    "pair", "label", "feature", "support", "f1", "threshold", "precision", "recall",
    "heldout_f1", "heldout_f1_low", "heldout_f1_high", "q_value", "output_score",
    "max_activation", "exact_max_activation", "n_docs_active", "group", "representative", "group_size",
    "strength", "strength_share", "overall", "low", "high", "concept", "instruction", "fluency",
    "unsteered_overall", "random_overall", "prompt_overall", "n_instructions", "n_missing", "reason",
    "promoted_tokens", "lens_tokens",
)  # fmt: skip
TEXT_COLUMNS = (
    "method", "pair", "label", "feature", "strength", "value", "instruction_id", "instruction_text", "generation",
    "finish", "n_tokens", "concept_rating", "instruction_rating", "fluency_rating", "overall", "reason",
)  # fmt: skip


class ShortRow(NamedTuple):
    """One pair in the terminal; None where a figure is missing."""

    label: str
    feature: int
    f1: float | None
    output_score: float | None
    strength: float | None
    overall: float | None
    unsteered: float | None
    random: float | None
    prompt: float | None


def short_table(run_folder: str | Path) -> list[ShortRow]:
    """The pairs of an evaluated run, best calibrated F1 first; needs the stages select and evaluate only."""
    return [
        ShortRow(
            label=visible(row["label_name"]),
            feature=row["feature"],
            f1=row["f1"],
            output_score=row.get("output_score"),
            strength=row["strength"],
            overall=row["overall"],
            unsteered=row["unsteered_overall"],
            random=row["random_overall"],
            prompt=row["prompt_overall"],
        )
        for row in steered_pairs(run_folder).iter_rows(named=True)
    ]


def write_tables(run: RunRecord, target: Path) -> list[Path]:
    """Write pairs.csv, generations.csv and methods.csv into a folder; returns their paths."""
    import polars as pl

    pairs = run.pairs.drop("label", strict=False).rename({"label_name": "label"})
    texts = run.texts.rename({name: f"{name}_rating" for name in ("concept", "instruction", "fluency")})
    protocol = {name: run.summary.provenance[name] for name in ("protocol", "judge", "date")}
    methods = run.summary.methods.with_columns(
        *(pl.lit(value).alias(name) for name, value in protocol.items())
    )
    tables = {
        "pairs": _pick(pairs, PAIR_COLUMNS),
        "generations": _pick(texts, TEXT_COLUMNS),
        "methods": methods,
    }
    written = []
    for name, table in tables.items():
        path = target / f"{name}.csv"
        neutralised(table).write_csv(path)
        written.append(path)
    return written


def neutralised(table: pl.DataFrame) -> pl.DataFrame:
    """The table for a CSV file: lists joined by " | ", formulas behind an apostrophe, no NUL characters."""
    import polars as pl

    lists = [name for name, kind in table.schema.items() if isinstance(kind, pl.List)]
    table = table.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" | ") for name in lists)
    strings = [name for name, kind in table.schema.items() if kind == pl.String]
    return table.with_columns(
        pl.when(pl.col(name).str.contains(FORMULA))
        .then(pl.lit("'") + pl.col(name))
        .otherwise(pl.col(name))
        .str.replace_all("\x00", "\N{REPLACEMENT CHARACTER}", literal=True)
        .alias(name)
        for name in strings
    )


def _pick(table: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
    """Those of the columns that the table has, in that order."""
    return table.select([name for name in columns if name in table.columns])
