"""Ratings to scores: the overall score of one text, and the grid of strengths × instructions of one pair.

Knows tables of ratings (columns below), nothing of models, judges or protocols. A rating that is missing is
null in a table and NaN here; it is never turned into a number.

    method, pair, feature, label, strength, instruction_id, concept, instruction, fluency
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    import polars as pl

KEY = ("method", "pair", "feature", "strength", "instruction_id")
RATINGS = ("concept", "instruction", "fluency")
REQUIRED = ("method", "pair", "strength", "instruction_id", *RATINGS)
HIGHEST = 2.0  # every rating of the rubric lies in 0..2
Duplicates = Literal["refuse", "keep", "first", "last"]


def overall_score(concept: Any, instruction: Any, fluency: Any) -> Any:
    """Harmonic mean of the three ratings, 0 where one is 0, NaN where one is NaN (or None); broadcasts.

    3 / (1/c + 1/i + 1/f), as AxBench computes it (arXiv 2501.17148, section 3). Scalars give a float, arrays
    a float64 array. Suppression is `overall_score(2 - concept, instruction, fluency)`.

    >>> overall_score(2, 1, 1), overall_score(2, 2, 0)
    (1.2, 0.0)
    """
    parts = [
        _as_ratings(value, name) for value, name in zip((concept, instruction, fluency), RATINGS, strict=True)
    ]
    try:
        c, i, f = np.broadcast_arrays(*parts)
    except ValueError:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise TagsteerError(
            f"ratings of shapes {shapes} do not broadcast: give one rating of each kind per text"
        ) from None
    missing = np.isnan(c) | np.isnan(i) | np.isnan(f)
    zero = (c == 0) | (i == 0) | (f == 0)
    score = np.zeros(c.shape)
    some = ~zero & ~missing
    score[some] = 3 / (1 / c[some] + 1 / i[some] + 1 / f[some])
    score[missing] = np.nan
    return float(score) if score.ndim == 0 else score


def _as_ratings(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TagsteerError(
            f"{name} rating {value!r} is not a number: give numbers, None or NaN for missing"
        ) from None
    wrong = array[(array < 0) | np.isinf(array)]
    if wrong.size:
        raise TagsteerError(
            f"{name} rating {wrong.flat[0]} is not a rating: wanted 0 to {HIGHEST:g}, NaN for missing"
        )
    return array


def mean_known(values: np.ndarray, axis: int | None = None) -> Any:
    """Mean of what is not NaN along an axis; NaN, without a warning, where nothing is known."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=axis)
    count = known.sum(axis=axis)
    mean = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return float(mean) if mean.ndim == 0 else mean


def curve_mean(grid: np.ndarray) -> np.ndarray:
    """Mean over instructions for every strength: [strengths, instructions] -> [strengths], NaN left out.

    Kahan's compensated sum in the order of the columns: what a grouped mean of today's pandas computes, and
    with it AxBench's code, to the last bit.
    """
    total, lost = np.zeros(len(grid)), np.zeros(len(grid))
    for column in grid.T:
        known = ~np.isnan(column)
        term = np.where(known, column, 0.0) - lost
        step = total + term
        lost = np.where(known, (step - total) - term, lost)
        total = np.where(known, step, total)
    count = (~np.isnan(grid)).sum(axis=1)
    return np.divide(total, count, out=np.full(len(grid), np.nan), where=count > 0)


@dataclass(frozen=True, eq=False)
class PairRatings:
    """All ratings of one (method, pair, feature), as grids over strengths (ascending) and instructions."""

    method: str
    pair: Any
    feature: int | None
    label: str | None
    strengths: np.ndarray  # (strengths,) float64, ascending; NaN for a method without one
    instruction_ids: np.ndarray  # (instructions,) int64, ascending; an id repeats where duplicates are kept
    concept: np.ndarray  # (strengths, instructions), NaN = missing
    instruction: np.ndarray
    fluency: np.ndarray
    overall: np.ndarray
    present: np.ndarray  # (strengths, instructions) bool: the table has this row
    n_duplicates: int  # rows beyond the first of their key

    @property
    def n_missing(self) -> int:
        """Rows whose overall score is missing."""
        return int((self.present & np.isnan(self.overall)).sum())

    @property
    def n_absent(self) -> int:
        """Cells of strengths × instructions for which the table has no row at all."""
        ids, column = np.unique(self.instruction_ids, return_inverse=True)
        seen = np.zeros((len(self.strengths), len(ids)), dtype=bool)
        for j, at in enumerate(column):
            seen[:, at] |= self.present[:, j]
        return int((~seen).sum())

    def curve(self, rating: str = "overall") -> np.ndarray:
        """Mean of one kind of rating at every strength, (strengths,)."""
        return curve_mean(getattr(self, rating))


def check_table(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the columns a grid needs, or an error that names what is wrong with it."""
    import polars as pl

    absent = [name for name in REQUIRED if name not in table.columns]
    if absent:
        raise TagsteerError(
            f"the ratings table lacks {', '.join(absent)} (it has {', '.join(table.columns[:12])}): "
            f"wanted {', '.join(REQUIRED)}"
        )
    if table.is_empty():
        raise TagsteerError("the ratings table has no rows: run `tagsteer judge` first")
    for name in ("method", "pair", "instruction_id"):
        if nulls := table[name].null_count():
            raise TagsteerError(
                f"{nulls} of {table.height} rows of the ratings table have no {name}: fill it in"
            )
    for name in ("feature", "label"):
        if name not in table.columns:
            table = table.with_columns(pl.lit(None).alias(name))
    numbers = [pl.col(name).cast(pl.Float64).fill_nan(None) for name in RATINGS]
    table = table.with_columns(*numbers, pl.col("strength").cast(pl.Float64).fill_nan(None))
    for name in RATINGS:
        wrong = table.filter((pl.col(name) < 0) | (pl.col(name) > HIGHEST))
        if wrong.height:
            raise TagsteerError(
                f"{wrong.height} {name} ratings lie outside 0..{HIGHEST:g} (the first is {wrong[name][0]}): "
                "an answer that gives no valid rating is missing, null"
            )
    return table


def duplicate_rows(table: pl.DataFrame, key: Sequence[str] = KEY) -> pl.DataFrame:
    """The keys that occur more than once, with the number of their rows in column `rows`."""
    import polars as pl

    found = table.group_by(*key, maintain_order=True).agg(pl.len().alias("rows"))
    return found.filter(pl.col("rows") > 1)


def pair_ratings(table: pl.DataFrame, duplicates: Duplicates = "refuse") -> list[PairRatings]:
    """A ratings table as one grid per (method, pair, feature), in order of appearance.

    duplicates: "refuse" rows with one key (an error), "keep" them all in the means (AxBench's own code does
    that after a rerun has appended to its files), or use the "first" or the "last" of them.
    """
    if duplicates not in ("refuse", "keep", "first", "last"):
        raise one_of(duplicates, ["refuse", "keep", "first", "last"], "treatment of duplicates")
    table = check_table(table)
    if duplicates == "refuse" and (found := duplicate_rows(table)).height:
        row = found.row(0, named=True)
        where = ", ".join(f"{name} {row[name]}" for name in KEY)
        raise TagsteerError(
            f"{found.height} keys of the ratings table have several rows, the first: {where}: "
            'drop them, or say duplicates="first", "last" or "keep"'
        )
    groups = table.partition_by("method", "pair", "feature", maintain_order=True)
    return [_grid(group, duplicates) for group in groups]


def _grid(rows: pl.DataFrame, duplicates: Duplicates) -> PairRatings:
    import polars as pl

    cell = ["strength", "instruction_id"]
    n_duplicates = rows.height - rows.select(cell).n_unique()
    if duplicates in ("first", "last"):
        rows = rows.unique(cell, keep=duplicates, maintain_order=True)
    # The how-manieth row of its cell each row is; further ones get columns of their own behind the first.
    copy = rows.select(pl.int_range(pl.len()).over(cell).alias("copy"))["copy"].to_numpy()
    given = rows["strength"].to_numpy().astype(np.float64)  # null -> NaN
    ids = rows["instruction_id"].to_numpy()
    strengths, at_strength = np.unique(given, return_inverse=True)
    columns, at_column = np.unique(np.stack([copy, ids]), axis=1, return_inverse=True)
    shape = (len(strengths), columns.shape[1])
    grids = {}
    for name in RATINGS:
        grids[name] = np.full(shape, np.nan)
        grids[name][at_strength, at_column.ravel()] = rows[name].to_numpy()
    present = np.zeros(shape, dtype=bool)
    present[at_strength, at_column.ravel()] = True
    first = rows.row(0, named=True)
    return PairRatings(
        method=first["method"],
        pair=first["pair"],
        feature=first["feature"],
        label=first["label"],
        strengths=strengths,
        instruction_ids=columns[1],
        **grids,
        overall=overall_score(grids["concept"], grids["instruction"], grids["fluency"]),
        present=present,
        n_duplicates=n_duplicates,
    )


def strength_curves(pairs: Iterable[PairRatings]) -> pl.DataFrame:
    """One row per pair and strength: mean ratings, rows scored, missing and absent."""
    import polars as pl

    rows: list[dict[str, Any]] = []
    for p in pairs:
        means = {name: p.curve(name) for name in (*RATINGS, "overall")}
        scored = (~np.isnan(p.overall)).sum(axis=1)
        for s, strength in enumerate(p.strengths):
            rows.append(
                {
                    "method": p.method,
                    "pair": p.pair,
                    "feature": p.feature,
                    "label": p.label,
                    "strength": none_if_nan(strength),
                    **{name: none_if_nan(mean[s]) for name, mean in means.items()},
                    "n_scored": int(scored[s]),
                    "n_missing": int(p.present[s].sum() - scored[s]),
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def none_if_nan(value: float) -> float | None:
    """A float for a table: null instead of NaN."""
    return None if np.isnan(value) else float(value)
