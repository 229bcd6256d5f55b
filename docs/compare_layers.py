"""Which SAE steers better? `python docs/compare_layers.py RUN [RUN ...]` writes docs/layer-comparison.json.

Each run steers the best feature of every label on a few instructions (examples/layers.toml with another [sae]).
The measure is the rise of the judge's concept rating over the unsteered texts of the same label.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl

RISE = 0.3
"""Rise of the concept rating (0 to 2) from which a pair counts as acting."""


def rows_of(run: Path) -> list[dict]:
    """One row per strength: pairs, mean rise, share that acts, and what the texts lose."""
    config = json.loads((run / "config.json").read_text("utf-8"))
    ratings = pl.read_parquet(run / "judge" / "ratings.parquet")
    judge = json.loads((run / "judge" / "judge.json").read_text("utf-8"))["description"]
    plain = (
        ratings.filter(pl.col("method") == "unsteered").group_by("label").agg(floor=pl.col("concept").mean())
    )
    steered = ratings.filter(pl.col("method") == "steered")
    per_pair = (
        steered.group_by("label", "feature", "strength")
        .agg(pl.col("concept", "instruction", "fluency").mean())
        .join(plain, on="label")
        .with_columns(rise=pl.col("concept") - pl.col("floor"))
    )
    table = per_pair.group_by("strength").agg(
        pairs=pl.len(),
        mean_rise=pl.col("rise").mean(),
        acting=(pl.col("rise") > RISE).sum(),
        instruction=pl.col("instruction").mean(),
        fluency=pl.col("fluency").mean(),
    )
    instructions = ratings["instruction_id"].n_unique()
    shared = {
        "sae": config["sae"]["name"], "dtype": config["model"]["dtype"], "prior": config["score"]["prior"],
        "instructions": instructions, "judge": judge,
    }  # fmt: skip
    return [{**shared, **row} for row in table.sort("strength").iter_rows(named=True)]


if __name__ == "__main__":
    found = [row for run in sys.argv[1:] for row in rows_of(Path(run))]
    target = Path(__file__).with_name("layer-comparison.json")
    target.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
