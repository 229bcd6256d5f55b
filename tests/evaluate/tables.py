"""Small ratings tables and AxBench folders for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

RATINGS = ("concept", "instruction", "fluency")


def ratings_table(
    method="steered", pairs=("a",), strengths=(1.0, 2.0, 4.0), instructions=20, seed=0, feature=7, missing=0.0
) -> pl.DataFrame:
    """A full table of random ratings 0, 1, 2, a share of them missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for pair in pairs:
        for strength in strengths:
            for instruction in range(instructions):
                row = {"method": method, "pair": pair, "feature": feature, "label": f"label of {pair}"}
                row |= {"strength": strength, "instruction_id": instruction}
                for name in RATINGS:
                    row[name] = None if rng.random() < missing else float(rng.integers(0, 3))
                rows.append(row)
    schema = {"strength": pl.Float64, "feature": pl.Int64, **dict.fromkeys(RATINGS, pl.Float64)}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


def table_of(overall: dict[float, list[float | None]], method="steered", pair="a", feature=7) -> pl.DataFrame:
    """A table whose overall scores are the given ones: all three ratings equal the score."""
    rows = [
        {"method": method, "pair": pair, "feature": feature, "label": "x", "strength": s, "instruction_id": i}
        | dict.fromkeys(RATINGS, value)
        for s, values in overall.items()
        for i, value in enumerate(values)
    ]
    schema = {"strength": pl.Float64, "feature": pl.Int64, **dict.fromkeys(RATINGS, pl.Float64)}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


def reply(rating: float | None) -> str:
    return "The judge was cut" if rating is None else f"The fragment is fine.\n\nRating: [[{rating:g}]]"


def hm(c: float, i: float, f: float) -> float:
    return 0.0 if 0 in (c, i, f) else 3 / (1 / c + 1 / i + 1 / f)


def axbench_folder(
    folder: Path, judged: pl.DataFrame, kind: str, method="GemmaScopeSAE", replies=True, metadata=None
) -> Path:
    """An AxBench run folder of kind A, B or C from judge's ratings (null = a reply without one)."""
    prefix = f"{method}_LMJudgeEvaluator"
    c, i, f = (judged[name].fill_null(0.0).to_list() for name in RATINGS)
    stored = [2 - x for x in c] if kind == "C" else c
    counted = [2 - x for x in c] if kind == "B" else stored
    table = judged.select(
        pl.col("pair").alias("concept_id"),
        pl.col("label").alias("input_concept"),
        pl.col("instruction_id").alias("input_id"),
        pl.col("strength").alias("factor"),
        pl.col("feature").alias("sae_id"),
    ).with_columns(
        pl.Series(f"{prefix}_relevance_concept_ratings", stored),
        pl.Series(f"{prefix}_relevance_instruction_ratings", i),
        pl.Series(f"{prefix}_fluency_ratings", f),
        pl.Series(prefix, [hm(*row) for row in zip(counted, i, f, strict=True)]),
    )
    if replies:
        parts = ("relevance_concept", "relevance_instruction", "fluency")
        table = table.with_columns(
            pl.Series(f"{prefix}_{part}_completions", [reply(x) for x in judged[name]])
            for part, name in zip(parts, RATINGS, strict=True)
        )
    (folder / "evaluate").mkdir(parents=True, exist_ok=True)
    table.write_parquet(folder / "evaluate" / "steering_data.parquet")
    if metadata is not None:
        (folder / "generate").mkdir(exist_ok=True)
        lines = "".join(f'{{"concept_id": {k}}}\n' for k in metadata)
        (folder / "generate" / "metadata.jsonl").write_text(lines)
    return folder
