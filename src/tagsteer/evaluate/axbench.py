"""`tagsteer evaluate --from-axbench`: scores of a real AxBench output folder under AxBench's own protocol.

Every way in which such a run has been reported stands in a column of its own; duplicates, missing cells and
failed judge replies are listed. Knows tables, nothing of models or SAEs.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tagsteer.errors import TagsteerError, one_of
from tagsteer.evaluate.axbench_files import AxBenchRun, read_axbench
from tagsteer.evaluate.detection import detect_table, detection_summary
from tagsteer.evaluate.protocols import AxBenchScore, axbench_score, dev_test, global_factor, protocol
from tagsteer.evaluate.scores import (
    RATINGS,
    Duplicates,
    PairRatings,
    duplicate_rows,
    none_if_nan,
    overall_score,
    pair_ratings,
    strength_curves,
)
from tagsteer.evaluate.statistics import bootstrap_interval, paired_test

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("tagsteer.evaluate")

FACTOR_FREE = ("PromptSteering", "LoReFT", "LoRA", "SFT")  # AxBench resamples these at every factor
_AXBENCH_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class AxBenchReport:
    """The evaluation of one AxBench folder.

    tables: "summary" (a row per method), "concepts" (per method and concept), "curves" (per factor),
    "duplicates", "absent" (cells without a row), "failures" (judge replies without a rating), "win_rates"
    (several methods), "detection" and "detection_summary" (where there are latents); only those that apply.
    """

    folder: Path
    protocol: str  # the line every table of scores carries
    suppression: bool
    tables: dict[str, pl.DataFrame]
    notes: tuple[str, ...] = field(default=())


def evaluate_axbench(
    folder: str | Path,
    suppression: bool = False,
    family: str = "auto",
    *,
    duplicates: Duplicates = "keep",
    failures: str = "auto",
    baseline: str = "GemmaScopeSAE",
    seed: int = 0,
) -> AxBenchReport:
    """Evaluate an AxBench output folder by AxBench's protocol.

    suppression: score 2 - concept instead of concept. family: how the file was scored (axbench_files).
    duplicates: "keep" rows that a rerun appended in the means, as AxBench's code does, or "first", "last",
    "refuse". failures: replies without a rating count as AxBench's "zero" or as "missing"; "auto" is zero,
    and missing for suppression, where a zero turned round would be the best rating of all.
    """
    if failures not in ("auto", "zero", "missing"):
        raise one_of(failures, ["auto", "zero", "missing"], "treatment of failed replies")
    if duplicates not in get_args(Duplicates):
        raise one_of(duplicates, list(get_args(Duplicates)), "treatment of duplicates")
    run = read_axbench(folder, family)
    as_missing = failures == "missing" or (failures == "auto" and suppression)
    tables: dict[str, pl.DataFrame] = {}
    notes = list(run.notes)
    if run.rows is not None:
        tables |= _steering_tables(run, run.rows, suppression, as_missing, duplicates, baseline, seed, notes)
        notes += _kind_notes(run, suppression)
        notes += _stored_curve_notes(run, run.rows)
    if run.latents is not None:
        tables["detection"] = detect_table(run.latents)
        tables["detection_summary"] = detection_summary(tables["detection"])
    for note in notes:
        log.info("%s: %s", run.folder.name, note)
    score = "hm(2 - concept, instruction, fluency)" if suppression else "hm(concept, instruction, fluency)"
    line = (
        f"{protocol('axbench').line}; overall = {score}; duplicates: {duplicates}; "
        f"failed replies: {'missing' if as_missing else '0, as AxBench'}; judge: as stored in the run"
    )
    return AxBenchReport(run.folder, line, suppression, tables, tuple(notes))


def _steering_tables(
    run: AxBenchRun,
    rows: pl.DataFrame,
    suppression: bool,
    as_missing: bool,
    duplicates: Duplicates,
    baseline: str,
    seed: int,
    notes: list[str],
) -> dict[str, pl.DataFrame]:
    import polars as pl

    scored = _scored(rows, suppression, as_missing)
    grids = pair_ratings(scored, duplicates)
    strict = pair_ratings(_scored(rows, suppression, True), duplicates)
    tables: dict[str, pl.DataFrame] = {}
    tables["duplicates"] = duplicate_rows(scored).rename({"strength": "factor", "pair": "concept_id"})
    tables["absent"] = _absent(run, rows)
    tables["failures"] = _failures(rows)
    if tables["duplicates"].height:
        notes.append(f"{tables['duplicates'].height} keys have several rows; treatment: {duplicates}")
    if tables["absent"].height:
        notes.append(
            f"{tables['absent']['n_absent'].sum()} cells of concept x factor x instruction have no row"
        )
    failed = int(tables["failures"]["n_failed"].sum()) if tables["failures"].height else 0
    if failed:
        notes.append(
            f"{failed} judge replies hold no rating; they count as {'missing' if as_missing else '0'}"
        )
    summary, concepts = [], []
    test_scores: dict[str, dict[int, float]] = {}
    for method in run.families:
        pairs = [grid for grid in grids if grid.method == method]
        each = [axbench_score(grid) for grid in pairs]
        test_scores[method] = {p.pair: s.test_overall for p, s in zip(pairs, each, strict=True)}
        concepts += [_concept_row(p, s) for p, s in zip(pairs, each, strict=True)]
        kept = scored.filter(pl.col("method") == method)
        if duplicates in ("first", "last"):
            kept = kept.unique(["pair", "strength", "instruction_id"], keep=duplicates, maintain_order=True)
        row = _summary_row(run, method, pairs, each, kept, seed)
        without = [axbench_score(grid).test_overall for grid in strict if grid.method == method]
        row["test_overall_failures_missing"] = _mean(without)
        row["n_failed"] = int(tables["failures"].filter(pl.col("method") == method)["n_failed"].sum())
        row["n_absent"] = int(tables["absent"].filter(pl.col("method") == method)["n_absent"].sum())
        summary.append(row)
        if method in FACTOR_FREE:
            notes.append(f"{method} ignores the factor in AxBench: its figure there is mean_all_rows")
    tables["summary"] = pl.DataFrame(summary, infer_schema_length=None)
    tables["concepts"] = pl.DataFrame(concepts, infer_schema_length=None)
    tables["curves"] = strength_curves(grids).rename({"strength": "factor", "pair": "concept_id"})
    if len(test_scores) > 1:
        tables["win_rates"] = _win_rates(test_scores, baseline, seed)
    return tables


def _scored(rows: pl.DataFrame, suppression: bool, as_missing: bool) -> pl.DataFrame:
    """The ratings that count: concept turned round for suppression, failed replies as told."""
    import polars as pl

    table = rows.with_columns(pl.col(name).fill_nan(None) for name in RATINGS)
    if as_missing:
        table = table.with_columns(
            pl.when(pl.col(f"failed_{name}").fill_null(False)).then(None).otherwise(pl.col(name)).alias(name)
            for name in RATINGS
        )
    return table.with_columns((2 - pl.col("concept")).alias("concept")) if suppression else table


def _concept_row(pair: PairRatings, score: AxBenchScore) -> dict[str, Any]:
    return {
        "method": pair.method,
        "concept_id": pair.pair,
        "feature": pair.feature,
        "label": pair.label,
        **{
            name: none_if_nan(value) if isinstance(value, float) else value
            for name, value in vars(score).items()
        },
        "n_missing": pair.n_missing,
        "n_absent": pair.n_absent,
        "n_duplicates": pair.n_duplicates,
    }


def _summary_row(
    run: AxBenchRun,
    method: str,
    pairs: list[PairRatings],
    each: list[AxBenchScore],
    rows: pl.DataFrame,
    seed: int,
) -> dict[str, Any]:
    import polars as pl

    # In file order, so that sums round as AxBench's do.
    c, i, f = (rows[name].to_numpy() for name in RATINGS)
    overall = overall_score(c, i, f)
    interval = bootstrap_interval([s.test_overall for s in each], resamples=_AXBENCH_RESAMPLES, seed=seed)
    factor = global_factor(pairs)
    ids = rows["instruction_id"].to_numpy()
    _, test = dev_test(ids)
    at_factor = rows["strength"].to_numpy() == factor
    unsteered = rows["strength"].to_numpy() == 0
    return {
        "method": method,
        "family": run.families[method],
        "rows": rows.height,
        "n_concepts": len(pairs),
        "n_factors": rows.filter(pl.col("strength").is_not_null())["strength"].n_unique(),
        "n_instructions": int(np.unique(ids).size),
        "n_duplicates": sum(p.n_duplicates for p in pairs),
        "n_missing": int(np.isnan(overall).sum()),
        "mean_all_rows": _mean(overall),
        "mean_concept": _mean(c),
        "mean_instruct": _mean(i),
        "mean_fluency": _mean(f),
        "dev_max_mean": _mean([s.dev_max for s in each]),
        "test_overall_mean": _mean([s.test_overall for s in each]),
        "test_low": none_if_nan(interval.low),
        "test_high": none_if_nan(interval.high),
        "test_concept": _mean([s.test_concept for s in each]),
        "test_instruct": _mean([s.test_instruct for s in each]),
        "test_fluency": _mean([s.test_fluency for s in each]),
        "hm_of_means_mean": _mean([s.hm_of_means for s in each]),
        "max_over_all_mean": _mean([s.max_over_all for s in each]),
        "concepts_with_ties": sum(s.n_tied > 1 for s in each),
        "concepts_unscored": sum(math.isnan(s.test_overall) for s in each),
        "global_best_factor": none_if_nan(factor),
        "global_test": _mean(overall[at_factor & test]),
        # Unsteered for additions; for clamps factor 0 is the ablation of the feature.
        "factor_0_overall": _mean(overall[unsteered]),
    }


def _mean(values: Any) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    return float(np.mean(known)) if known.size else None


def _absent(run: AxBenchRun, rows: pl.DataFrame) -> pl.DataFrame:
    """Method, concept and factor with the number of instructions for which there is no row.

    Wanted is every factor and every instruction that the method has anywhere, for every concept that the
    metadata names (without metadata: every id up to the largest). Newer AxBench keeps the test half at the
    best factor only; there just the dev half is looked at.
    """
    import polars as pl

    found = []
    for method in run.families:
        own = rows.filter(pl.col("method") == method)
        if run.has_test_file:
            dev, _ = dev_test(own["instruction_id"].to_numpy())
            own = own.filter(pl.Series(dev))
        ids = run.concepts if run.concepts is not None else range(int(own["pair"].max() or 0) + 1)  # type: ignore[arg-type]
        wanted = (
            pl.DataFrame({"pair": list(ids)}, schema={"pair": pl.Int64})
            .join(own.select("strength").unique(), how="cross")
            .join(own.select("instruction_id").unique(), how="cross")
        )
        absent = wanted.join(own, on=["pair", "strength", "instruction_id"], how="anti")
        grouped = absent.group_by("pair", "strength").agg(pl.len().alias("n_absent"))
        found.append(grouped.select(pl.lit(method).alias("method"), pl.all()).sort("pair", "strength"))
    return pl.concat(found).rename({"pair": "concept_id", "strength": "factor"})


def _failures(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    long = pl.concat(
        rows.group_by("method", maintain_order=True).agg(
            pl.lit(name).first().alias("rating"),
            pl.col(f"failed_{name}").sum().alias("n_failed"),
            pl.col(f"failed_{name}").is_not_null().sum().alias("n_replies"),
        )
        for name in RATINGS
    )
    return long.sort("method", maintain_order=True)


def _win_rates(scores: dict[str, dict[int, float]], baseline: str, seed: int) -> pl.DataFrame:
    import polars as pl

    reference = baseline if baseline in scores else next(iter(scores))
    rows = []
    for method in scores:
        if method == reference:
            continue
        shared = sorted(scores[method].keys() & scores[reference].keys())
        test = paired_test(
            [scores[method][k] for k in shared], [scores[reference][k] for k in shared], seed=seed
        )
        rows.append({"method": method, "baseline": reference, **vars(test)})
    return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None)


def _kind_notes(run: AxBenchRun, suppression: bool) -> list[str]:
    notes = []
    for method, kind in run.families.items():
        stored = "steering" if kind == "A" else "suppression"
        asked = "suppression" if suppression else "steering"
        if stored != asked:
            notes.append(
                f"{method}: the run itself was scored as {stored} (kind {kind}); these figures score {asked}"
            )
    if suppression:
        notes.append("concept columns of the tables are 2 - concept: high means suppressed")
    if run.has_test_file:
        notes.append("the test half exists at the best factor only: max_over_all mixes halves")
    return notes


def _stored_curve_notes(run: AxBenchRun, rows: pl.DataFrame) -> list[str]:
    """Compares the run's own steering.jsonl with the means of its stored overall scores."""
    import polars as pl

    path = run.folder / "evaluate" / "steering.jsonl"
    if not path.is_file() or run.has_test_file or rows["stored_overall"].null_count() == rows.height:
        return []
    means = rows.group_by("method", "pair", "strength").agg(pl.col("stored_overall").mean())
    ours = {tuple(row[:3]): row[3] for row in means.iter_rows()}
    compared, off = 0, 0
    try:
        for line in path.read_text("utf-8").splitlines():
            entry = json.loads(line)
            for method, stored in entry["results"].get("LMJudgeEvaluator", {}).items():
                for factor, value in zip(stored["factor"], stored["lm_judge_rating"], strict=True):
                    mean = ours.get((method, int(entry["concept_id"]), float(factor)))
                    compared += 1
                    off += mean is None or abs(mean - value) > 1e-9
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TagsteerError(
            f"{path} is not AxBench's steering.jsonl ({error!r}): remove or copy it again"
        ) from error
    if off:
        return [f"{off} of {compared} means in steering.jsonl differ from the rows of steering_data.parquet"]
    return [f"all {compared} means in steering.jsonl agree with the rows"]
