"""Reads the output folder of an AxBench run into a ratings table, and finds out how its rows were scored.

AxBench's outputs exist in three kinds that look alike; which one is read off the data, never assumed:

    A  overall = hm(c, i, f)        concept rating stored as the judge gave it (steering)
    B  overall = hm(2 - c, i, f)    stored as given, turned round in the overall score only (suppression)
    C  overall = hm(c, i, f)        c stored already turned round, 2 - rating (suppression)

Knows AxBench's files and the parser of judge replies, nothing of protocols.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.scores import RATINGS, overall_score

if TYPE_CHECKING:
    import polars as pl

Family = Literal["A", "B", "C"]
PARTS = dict(zip(RATINGS, ("relevance_concept", "relevance_instruction", "fluency"), strict=True))
_JUDGED = re.compile(r"(.+)_LMJudgeEvaluator_relevance_concept_ratings")
_CLOSE = 1e-9


@dataclass(frozen=True, eq=False)
class AxBenchRun:
    """What an AxBench folder holds. `rows` is in file order and has the columns of a ratings table, where

    `concept` is how far the concept is present, in every family, and a failed reply keeps AxBench's 0;
    beside them `failed_<rating>` (null where the replies are not stored) and `stored_overall`.
    """

    folder: Path
    rows: pl.DataFrame | None  # None where the folder has no steering data
    families: dict[str, Family]
    latents: pl.DataFrame | None  # None where the folder has no detection data
    concepts: tuple[int, ...] | None  # ids that the run's metadata names
    has_test_file: bool  # newer AxBench: the test half lies in a file of its own, at the best factor only
    notes: tuple[str, ...]


def read_axbench(folder: str | Path, family: str = "auto") -> AxBenchRun:
    """Read evaluate/steering_data.parquet (and steering_test_data), inference/latent_data, generate/metadata.

    folder is a run's folder or its evaluate/ folder. family "auto" finds out how rows were scored by
    comparing stored ratings with the judge's stored replies; "A", "B" or "C" says it where there are none.
    """
    import polars as pl

    root = Path(folder)
    if root.is_dir() and root.name == "evaluate":
        root = root.parent
    if not root.is_dir():
        raise TagsteerError(
            f"{folder} is not a folder: give the output folder of an AxBench run (it has evaluate/)"
        )
    if family not in ("auto", "A", "B", "C"):
        raise TagsteerError(f"scoring family {family!r}: wanted auto, A, B or C (see docs of read_axbench)")
    steering = _places(root, "evaluate", "steering_data.parquet", "steering_test_data.parquet")
    latent = _places(root, "inference", "latent_data.parquet") or _places(
        root, "evaluate", "latent_data.parquet"
    )
    if not steering and not latent:
        below = sorted(
            {str(p.parent.parent.relative_to(root)) for p in root.glob("**/steering_data.parquet")}
        )
        hint = f"runs below it: {', '.join(below[:5])}" if below else "run AxBench's evaluate.py first"
        raise TagsteerError(
            f"{root} has neither evaluate/steering_data.parquet nor inference/latent_data.parquet: {hint}"
        )
    notes: list[str] = []
    families: dict[str, Family] = {}
    tables = []
    if steering:
        data = pl.concat([_steering_columns(path) for path in steering], how="diagonal_relaxed")
        for method in _methods(data.columns):
            rows, families[method] = _method_rows(data, method, family, notes)
            tables.append(rows)
    return AxBenchRun(
        folder=root,
        rows=pl.concat(tables) if tables else None,
        families=families,
        latents=_latent_columns(latent[0]) if latent else None,
        concepts=_metadata(root),
        has_test_file=len(steering) > 1,
        notes=tuple(notes),
    )


def _places(root: Path, sub: str, *names: str) -> list[Path]:
    return [path for name in names for path in (root / sub / name, root / name) if path.is_file()]


def _read(path: Path, keep: re.Pattern[str]) -> pl.DataFrame:
    import polars as pl

    try:
        names = pl.read_parquet_schema(path)
        return pl.read_parquet(path, columns=[name for name in names if keep.fullmatch(name)])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TagsteerError(f"{path} cannot be read as Parquet ({error}): copy it again") from error


def _steering_columns(path: Path) -> pl.DataFrame:
    table = _read(path, re.compile(r"concept_id|input_concept|input_id|factor|sae_id|.+_LMJudgeEvaluator.*"))
    wanted = [name for name in ("concept_id", "input_id", "factor") if name not in table.columns]
    if not _methods(table.columns):
        wanted.append("<method>_LMJudgeEvaluator_relevance_concept_ratings")
    if wanted:
        raise TagsteerError(
            f"{path} lacks {', '.join(wanted)}: wanted AxBench's evaluate/steering_data.parquet"
        )
    return table


def _latent_columns(path: Path) -> pl.DataFrame:
    return _read(path, re.compile(r"concept_id|category|.+_max_act"))


def _methods(columns: list[str]) -> list[str]:
    return [found.group(1) for name in columns if (found := _JUDGED.fullmatch(name))]


def _metadata(root: Path) -> tuple[int, ...] | None:
    import json

    found = _places(root, "generate", "metadata.jsonl")
    if not found:
        return None
    try:
        lines = [json.loads(line) for line in found[0].read_text("utf-8").splitlines() if line.strip()]
        return tuple(sorted(int(line["concept_id"]) for line in lines))
    except (ValueError, KeyError, TypeError) as error:
        raise TagsteerError(
            f"{found[0]} is not AxBench's metadata.jsonl ({error!r}): copy it again"
        ) from error


def _method_rows(
    data: pl.DataFrame, method: str, family: str, notes: list[str]
) -> tuple[pl.DataFrame, Family]:
    import polars as pl

    prefix = f"{method}_LMJudgeEvaluator"
    columns = {name: f"{prefix}_{part}_ratings" for name, part in PARTS.items()}
    if absent := [column for column in columns.values() if column not in data.columns]:
        raise TagsteerError(f"the run has no {', '.join(absent)}: {method} was not rated completely")
    # A method that another file of the run does not have is null there: those rows are not its own.
    data = data.filter(pl.col(columns["concept"]).is_not_null() | pl.col(columns["fluency"]).is_not_null())
    stored = {name: data[column].cast(pl.Float64).to_numpy().copy() for name, column in columns.items()}
    overall = data[prefix].cast(pl.Float64).to_numpy() if prefix in data.columns else None
    replies: dict[str, np.ndarray | None] = {
        name: _replies(data, f"{prefix}_{part}_completions") for name, part in PARTS.items()
    }
    found = _family(method, stored, overall, replies["concept"], notes) if family == "auto" else family
    concept = 2 - stored["concept"] if found == "C" else stored["concept"]
    for name in ("instruction", "fluency"):
        _compare_with_replies(method, name, stored[name], replies[name], notes)
    rows = data.select(
        pl.lit(method).alias("method"),
        pl.col("concept_id").cast(pl.Int64).alias("pair"),
        _column(data, "sae_id", pl.Int64).alias("feature"),
        _column(data, "input_concept", pl.String).alias("label"),
        pl.col("factor").cast(pl.Float64).alias("strength"),
        pl.col("input_id").cast(pl.Int64).alias("instruction_id"),
    ).with_columns(
        pl.Series("concept", concept),
        *(pl.Series(name, stored[name]) for name in ("instruction", "fluency")),
        *(_failed(name, replies[name], data.height) for name in RATINGS),
        pl.Series(
            "stored_overall", overall if overall is not None else [None] * data.height, dtype=pl.Float64
        ),
    )
    return rows, found  # type: ignore[return-value]


def _column(data: pl.DataFrame, name: str, dtype: Any) -> pl.Expr:
    import polars as pl

    return pl.col(name).cast(dtype) if name in data.columns else pl.lit(None, dtype=dtype)


def _replies(data: pl.DataFrame, column: str) -> np.ndarray | None:
    """Ratings parsed again from the stored replies, NaN for a failed one; None where none are stored."""
    if column not in data.columns:
        return None
    from tagsteer.judge.rubric import parse_rating

    parsed = [None if text is None else parse_rating(text) for text in data[column].to_list()]
    return np.array([np.nan if rating is None else rating for rating in parsed])


def _failed(name: str, parsed: np.ndarray | None, height: int) -> pl.Series:
    import polars as pl

    values = [None] * height if parsed is None else np.isnan(parsed)
    return pl.Series(f"failed_{name}", values, dtype=pl.Boolean)


def _compare_with_replies(
    method: str, name: str, stored: np.ndarray, parsed: np.ndarray | None, notes: list[str]
) -> None:
    if parsed is None:
        notes.append(
            f"{method}: no judge replies for {name}; failed replies cannot be told from ratings of 0"
        )
        return
    wrong = int((~np.isnan(parsed) & (np.abs(stored - parsed) > _CLOSE)).sum())
    if wrong:
        notes.append(
            f"{method}: {wrong} stored {name} ratings differ from the stored replies; the stored are used"
        )


def _family(
    method: str,
    stored: dict[str, np.ndarray],
    overall: np.ndarray | None,
    parsed: np.ndarray | None,
    notes: list[str],
) -> Family:
    """Which of A, B, C the stored numbers are, from the rows on which the three differ."""
    c, i, f = (stored[name] for name in RATINGS)
    reversed_ = False
    if parsed is not None:
        telling = ~np.isnan(parsed) & (np.abs(parsed - 1) > _CLOSE)
        as_given, turned = (int((np.abs(c - x)[telling] < _CLOSE).sum()) for x in (parsed, 2 - parsed))
        rows = int(telling.sum())
        if as_given < rows and turned < rows:
            raise TagsteerError(
                f"{method}: of {rows} telling replies {as_given} agree with the stored concept ratings and "
                f"{turned} with 2 minus them: the file mixes kinds, split it, or say family A, B or C"
            )
        reversed_ = rows > 0 and turned == rows
    if overall is None:
        notes.append(f"{method}: no overall score is stored; computed from the ratings")
        return "C" if reversed_ else "A"
    direct, flipped = overall_score(c, i, f), overall_score(2 - c, i, f)
    telling = ~np.isnan(overall) & ~np.isnan(direct) & (np.abs(direct - flipped) > _CLOSE)
    is_direct, is_flipped = (int((np.abs(overall - x)[telling] < _CLOSE).sum()) for x in (direct, flipped))
    rows = int(telling.sum())
    if is_direct < rows and is_flipped < rows:
        raise TagsteerError(
            f"{method}: of {rows} telling rows {is_direct} have overall = hm(c, i, f) and {is_flipped} "
            "hm(2-c, i, f): the file mixes kinds, split it, or say family A, B or C"
        )
    if rows and is_flipped == rows:
        if reversed_:
            raise TagsteerError(
                f"{method}: concept is turned round twice, which no known kind does: say family A, B or C"
            )
        return "B"
    if parsed is None and rows:
        raise TagsteerError(
            f"{method}: without the judge's replies kinds A (steering) and C (suppression, concept stored "
            'turned round) look alike: say family="A" or family="C"'
        )
    if not rows:
        notes.append(f"{method}: no row tells the kinds of scoring apart; they coincide on this run")
    return "C" if reversed_ else "A"
