"""Tables of rated texts as people have them: AxBench's columns, those of a run, or columns named by the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    import polars as pl

TEXTS = ("concept", "instruction", "generation")
AXBENCH = ("relevance_concept", "relevance_instruction", "fluency")
OF_A_RUN = {"label": "concept", "instruction_text": "instruction", "strength": "factor"}
"""Columns of a run's ratings.parquet and generations.csv, and what training calls them."""


def read_ratings(path: Path, ratings: str | None = None) -> tuple[pl.DataFrame, str, tuple[str, ...]]:
    """(table with concept, instruction, generation and ratings, who rated, columns of the three ratings)."""
    judge = "the ratings of " + path.name
    if path.is_dir():
        path, judge = _of_run(path)
    table = _read(path)
    named = None if ratings is None else tuple(part.strip() for part in ratings.split(","))
    if named is not None and len(named) != 3:
        raise TagsteerError(
            f"--ratings {ratings!r} names {len(named)} columns: wanted three, of concept, instruction and fluency"
        )
    if {"label", "instruction_text", "generation"} <= set(table.columns):
        # A run's: "concept" and "instruction" are ratings there, with or without "_rating" behind.
        short = {f"{part}_rating": part for part in ("concept", "instruction", "fluency")}
        table = table.rename({old: new for old, new in short.items() if old in table.columns})
        if named is None:
            named = AXBENCH
            parts = dict(zip(("concept", "instruction", "fluency"), AXBENCH, strict=True))
            table = table.rename({old: new for old, new in parts.items() if old in table.columns})
        else:
            table = table.drop([c for c in ("concept", "instruction") if c not in named], strict=False)
        table = table.rename({old: new for old, new in OF_A_RUN.items() if old in table.columns})
    return table, judge, named or AXBENCH


def _of_run(folder: Path) -> tuple[Path, str]:
    """The ratings of a run folder; those of an offline judge teach nothing new."""
    path = folder / "judge" / "ratings.parquet"
    if not path.is_file():
        raise TagsteerError(f"{folder} has no judge/ratings.parquet: give a run that was judged, or a table")
    judge = json.loads((folder / "judge" / "judge.json").read_text("utf-8"))
    if judge["name"].startswith("offline"):
        raise TagsteerError(
            f"{folder} was rated by the {judge['description']}: train on ratings of an LLM or of people "
            "(`tagsteer judge RUN --judge server`)"
        )
    return path, str(judge["description"])


def _read(path: Path) -> pl.DataFrame:
    import polars as pl

    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
        ".jsonl": pl.read_ndjson,
        ".ndjson": pl.read_ndjson,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TagsteerError(
            f"{path} is no table of ratings: give a .parquet, .csv or .jsonl file, or a run folder"
        )
    if not path.is_file():
        raise TagsteerError(f"no table of ratings at {path}: give a .parquet, .csv or .jsonl file")
    try:
        return reader(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TagsteerError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
