"""From a table of ratings to the tables that the report and the command line show.

Beside every score stand its interval, the number of pairs, the missing ratings, the unsteered floor, random
features, prompting, and the protocol by which it was reached. Knows tables, nothing of models or judges.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError, one_of
from tagsteer.evaluate.protocols import PairScore, protocol, score_pairs
from tagsteer.evaluate.scores import (
    RATINGS,
    Duplicates,
    mean_known,
    none_if_nan,
    pair_ratings,
    strength_curves,
)
from tagsteer.evaluate.statistics import JudgeNoise, bootstrap_interval, holm, paired_test

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("tagsteer.evaluate")

TARGET = "steered"
BESIDE = ("unsteered", "random", "prompt")  # stand beside the target in the table of pairs
TABLES = ("pairs", "methods", "comparisons", "curves")
_SCORES = ("overall", *RATINGS)
_PAIR_RESAMPLES = 2000  # intervals of single pairs, of which there are hundreds


@dataclass(frozen=True, eq=False)
class Summary:
    """The evaluation of one table of ratings.

    pairs: a row per method and pair: chosen strength, overall with its interval over instructions, ratings,
    and the overall of unsteered, random and prompt on the same pair. methods: a row per method, intervals
    over pairs. comparisons: the target against every other method, paired. curves: per pair and strength.
    """

    pairs: pl.DataFrame
    methods: pl.DataFrame
    comparisons: pl.DataFrame
    curves: pl.DataFrame
    provenance: dict[str, Any]  # protocol, selection, split, averaging, judge, date, seed, counts
    notes: tuple[str, ...]

    @property
    def line(self) -> str:
        """What every table drawn from this has to carry."""
        p = self.provenance
        return (
            f"{p['protocol_line']}; judge: {p['judge']}; date: {p['date']}; missing ratings: {p['n_missing']}"
        )

    def save(self, folder: str | Path) -> Path:
        """Write <table>.parquet and summary.json; the folder is made."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            getattr(self, name).write_parquet(path / f"{name}.parquet")
        head = {"provenance": self.provenance, "notes": list(self.notes)}
        (path / "summary.json").write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return path


def load_summary(folder: str | Path) -> Summary:
    """What `Summary.save` wrote."""
    import polars as pl

    path = Path(folder)
    absent = [
        name for name in (*(f"{t}.parquet" for t in TABLES), "summary.json") if not (path / name).is_file()
    ]
    if absent:
        raise TagsteerError(f"{path} has no {', '.join(absent)}: run `tagsteer evaluate` first")
    head = json.loads((path / "summary.json").read_text("utf-8"))
    tables = {name: pl.read_parquet(path / f"{name}.parquet") for name in TABLES}
    return Summary(**tables, provenance=head["provenance"], notes=tuple(head["notes"]))


def summarise(
    ratings: pl.DataFrame,
    *,
    protocol_name: str = "paper",
    judge: str,
    date: str | None = None,
    target: str = TARGET,
    duplicates: Duplicates = "refuse",
    noise: JudgeNoise | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Summary:
    """Evaluate a ratings table (columns in scores.py) by a named protocol.

    judge: what rated the texts, for the tables. noise: what `judge_noise` measured on re-judged texts, stated
    beside the comparisons. options go to the protocol. Several features of one method and pair (random
    features) are scored one by one and averaged.
    """

    used = protocol(protocol_name)
    grids = pair_ratings(ratings, duplicates)
    methods = list(dict.fromkeys(grid.method for grid in grids))
    if target not in methods:
        raise one_of(target, methods, "method in the ratings table")
    scored = score_pairs(grids, protocol_name, seed=seed, **options)
    by_method = {method: _per_pair([s for s in scored if s.ratings.method == method]) for method in methods}
    notes = _notes(scored, by_method, target)
    for note in notes:
        log.info(note)
    missing = sum(grid.n_missing for grid in grids)
    provenance = {
        "protocol": used.name,
        "protocol_line": used.line,
        "selection": used.selection,
        "split": used.split,
        "averaging": used.averaging,
        "protocol_source": used.source,
        "options": {name: options[name] for name in sorted(options)},
        "judge": judge,
        "date": date or datetime.date.today().isoformat(),
        "target": target,
        "seed": seed,
        "confidence": confidence,
        "n_rows": ratings.height,
        "n_missing": missing,
        "n_absent": sum(grid.n_absent for grid in grids),
        "n_duplicates": sum(grid.n_duplicates for grid in grids),
        "judge_noise": None if noise is None else vars(noise),
    }
    pair_rows = [_pair_row(s, by_method, confidence, seed) for s in scored]
    return Summary(
        pairs=_table(pair_rows),
        methods=_table([_method_row(m, scored, by_method[m], confidence, seed) for m in methods]),
        comparisons=_comparisons(by_method, target, noise, scored, confidence, seed),
        curves=strength_curves(grids),
        provenance=provenance,
        notes=tuple(notes),
    )


_Means = dict[str, float]


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """A table whose columns have their type even where every value is null."""
    import polars as pl

    table = pl.DataFrame(rows, infer_schema_length=None)
    types = {"feature": pl.Int64, "label": pl.String, "reason": pl.String}
    empty = [name for name, dtype in table.schema.items() if dtype == pl.Null]
    return table.with_columns(pl.col(name).cast(types.get(name, pl.Float64)) for name in empty)


def _per_pair(scores: Sequence[PairScore]) -> dict[Any, _Means]:
    """Mean scores of one method by pair: over its features, where a pair has several (random features)."""
    found: dict[Any, list[PairScore]] = {}
    for score in scores:
        found.setdefault(score.ratings.pair, []).append(score)
    return {
        pair: {name: mean_known(np.array([getattr(s, name) for s in several])) for name in _SCORES}
        for pair, several in found.items()
    }


def _pair_row(
    score: PairScore, by_method: dict[str, dict[Any, _Means]], confidence: float, seed: int
) -> dict[str, Any]:
    grid = score.ratings
    interval = bootstrap_interval(
        score.per_instruction, confidence=confidence, resamples=_PAIR_RESAMPLES, seed=seed
    )
    row = {
        "method": grid.method,
        "pair": grid.pair,
        "feature": grid.feature,
        "label": grid.label,
        "strength": none_if_nan(score.strength),
        "strength_share": none_if_nan(score.strength_share),
        "overall": none_if_nan(score.overall),
        "low": none_if_nan(interval.low),
        "high": none_if_nan(interval.high),
        **{name: none_if_nan(getattr(score, name)) for name in RATINGS},
        "n_instructions": int(np.unique(grid.instruction_ids).size),
        "n_strengths": len(grid.strengths),
        "n_missing": grid.n_missing,
        "n_absent": grid.n_absent,
        "reason": score.reason,
    }
    for other in BESIDE:
        beside = by_method.get(other, {}).get(grid.pair, {}).get("overall", math.nan)
        row[f"{other}_overall"] = none_if_nan(beside)
    return row


def _method_row(
    method: str, scored: Sequence[PairScore], means: dict[Any, _Means], confidence: float, seed: int
) -> dict[str, Any]:
    own = [s.ratings for s in scored if s.ratings.method == method]
    row: dict[str, Any] = {"method": method, "n_pairs": len(means)}
    for name in _SCORES:
        values = [value[name] for value in means.values()]
        interval = bootstrap_interval(values, confidence=confidence, seed=seed)
        row |= {
            name: none_if_nan(interval.mean),
            f"{name}_low": none_if_nan(interval.low),
            f"{name}_high": none_if_nan(interval.high),
        }
    rows = sum(int(grid.present.sum()) for grid in own)
    missing = sum(grid.n_missing for grid in own)
    return row | {
        "n_pairs_unscored": sum(math.isnan(value["overall"]) for value in means.values()),
        "n_ratings": rows,
        "n_missing": missing,
        "n_absent": sum(grid.n_absent for grid in own),
        "missing_share": missing / rows,
    }


def _comparisons(
    by_method: dict[str, dict[Any, _Means]],
    target: str,
    noise: JudgeNoise | None,
    scored: Sequence[PairScore],
    confidence: float,
    seed: int,
) -> pl.DataFrame:
    """The target against every other method on the pairs that both have, for overall and for concept."""
    rows: list[dict[str, Any]] = []
    for name in ("overall", "concept"):
        tests = {}
        for method, means in by_method.items():
            pairs = [pair for pair in by_method[target] if pair in means]
            if method != target and pairs:
                first = [by_method[target][pair][name] for pair in pairs]
                second = [means[pair][name] for pair in pairs]
                tests[method] = paired_test(first, second, confidence=confidence, seed=seed)
        adjusted = holm([test.p_value for test in tests.values()])
        for (method, test), p in zip(tests.items(), adjusted, strict=True):
            texts = [len(s.per_instruction) for s in scored if s.ratings.method in (target, method)]
            rows.append(
                {
                    "score": name,
                    "target": target,
                    "baseline": method,
                    **{
                        key: none_if_nan(value) if isinstance(value, float) else value
                        for key, value in vars(test).items()
                    },
                    "p_holm": none_if_nan(p),
                    "judge_deviation": _judge_deviation(noise, name, texts, test.n),
                }
            )
    if not rows:  # the same columns without a row
        nothing = vars(paired_test([], [])) | {"p_holm": None, "judge_deviation": None}
        return _table([{"score": "", "target": target, "baseline": "", **nothing}]).clear()
    return _table(rows)


def _judge_deviation(noise: JudgeNoise | None, name: str, texts: list[int], n_pairs: int) -> float | None:
    """Standard deviation that the judge alone gives to a mean difference over n pairs of so many texts."""
    if noise is None or name != "overall" or not texts or not n_pairs:
        return None
    per_mean = noise.deviation_of_mean(max(1, int(np.median(texts))) * n_pairs)
    return math.sqrt(2) * per_mean


def _notes(scored: Sequence[PairScore], by_method: dict[str, dict[Any, _Means]], target: str) -> list[str]:
    notes = []
    unscored = [s for s in scored if s.reason is not None]
    if unscored:
        first = unscored[0]
        notes.append(
            f"{len(unscored)} of {len(scored)} pairs have no score, the first: {first.ratings.method} "
            f"{first.ratings.pair}: {first.reason}"
        )
    for method in BESIDE:
        if method not in by_method and method != target:
            notes.append(f"no {method} baseline in this table: run it, scores mean little without it")
    for method, means in by_method.items():
        lacking = [pair for pair in by_method[target] if pair not in means]
        if lacking:
            notes.append(f"{method} lacks {len(lacking)} of {len(by_method[target])} pairs of {target}")
    at_edge = [
        s
        for s in scored
        if s.ratings.method == target
        and len(s.ratings.strengths) > 1
        and s.strength == s.ratings.strengths[-1]
    ]
    if at_edge:
        notes.append(
            f"{len(at_edge)} pairs of {target} choose the largest strength tried: a larger one may be better"
        )
    return notes
