"""The paper's three filters, in order: label support, output score, the top K pairs left.

Works on a table of matches and a record of what each filter removed; knows no matrices or models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("tagsteer.label")


@dataclass(frozen=True, eq=False)
class Selection:
    """The pairs that passed, and how."""

    pairs: pl.DataFrame
    """The matches that are left, best f1 first, with their output_score, and `pair` counting from 0."""
    record: pl.DataFrame
    """One row per filter in order: filter, requirement, before, removed, missing (of the removed, those that
    had no value to filter by), after. A filter not asked for has a null requirement, removes none."""


def select_pairs(
    matches: pl.DataFrame,
    *,
    min_support: int = 50,
    output_scores: Mapping[int, float] | pl.DataFrame | None = None,
    min_output_score: float = 1e-3,
    top_k: int | None = 100,
    max_q_value: float | None = None,
    representatives_only: bool = False,
    one_per_label: bool = False,
    one_per_feature: bool = False,
) -> Selection:
    """Filter matches: support >= min_support, output score >= min_output_score, then the top_k by f1.

    `matches` needs feature, label, f1, support (from `Scores.top` or `find_matches`). `output_scores` maps
    features to scores (a mapping, or a table with feature and output_score); None skips that filter, unless
    `matches` has the column already. Between the output score and the top K a q-value of at most
    `max_q_value` and, of near-duplicate features, the group's representative alone can be required, and then
    only the best pair of each label or of each feature kept. A
    feature whose output score or q-value is missing is removed and counted as missing. `top_k=None` keeps
    all.

    Raises TagsteerError if nothing is left, naming the filter and the value that would have passed.
    """
    import polars as pl

    wanted = ["feature", "label", "f1", "support"]
    wanted += ["q_value"] * (max_q_value is not None) + ["representative"] * representatives_only
    absent = [name for name in wanted if name not in matches.columns]
    if absent:
        raise TagsteerError(
            f"the table of matches has no column {', '.join(absent)}: make it with Scores.top, or with"
            " find_matches for q_value and representative"
        )
    if top_k is not None and top_k < 1:
        raise TagsteerError(f"top_k = {top_k}: wanted at least one pair, or None for all")
    if not len(matches):
        raise TagsteerError("no matches to select from: no feature fires on a document of any label")
    left = matches.sort("f1", "feature", "label", descending=[True, False, False])
    if output_scores is not None:
        left = _with_output_scores(left, output_scores)
    steps: list[dict[str, Any]] = []

    def keep(name: str, requirement: Any, column: str, passes: pl.Expr, extreme: str) -> None:
        nonlocal left
        before, missing = left, left[column].null_count()
        left = left.filter(passes.fill_null(False))
        steps.append(_step(name, str(requirement), len(before), len(before) - len(left), missing))
        if not len(left):
            raise TagsteerError(_nothing_left(name, requirement, before, column, extreme, missing))

    keep("support", f">= {min_support}", "support", pl.col("support") >= min_support, "largest")
    if "output_score" in left.columns:
        left = left.with_columns(pl.col("output_score").fill_nan(None))
        passes = pl.col("output_score") >= min_output_score
        keep("output_score", f">= {min_output_score:g}", "output_score", passes, "largest")
    else:
        steps.append(_step("output_score", None, len(left), 0, 0))
        log.warning("no output scores given: pairs are selected without the filter on what features cause")
    if max_q_value is not None:
        keep("q_value", f"<= {max_q_value:g}", "q_value", pl.col("q_value") <= max_q_value, "smallest")
    else:
        steps.append(_step("q_value", None, len(left), 0, 0))
    if representatives_only:
        keep("representative", "group's best feature", "representative", pl.col("representative"), "largest")
    else:
        steps.append(_step("representative", None, len(left), 0, 0))
    for wanted_once, column in ((one_per_label, "label"), (one_per_feature, "feature")):
        if wanted_once:
            before = len(left)
            left = left.unique(column, keep="first", maintain_order=True)
            steps.append(_step(f"one per {column}", "best f1", before, before - len(left), 0))
    before = len(left)
    left = left if top_k is None else left.head(top_k)
    steps.append(_step("top_k", None if top_k is None else f"first {top_k}", before, before - len(left), 0))
    text = {"filter": pl.String, "requirement": pl.String}
    counts = dict.fromkeys(("before", "removed", "missing", "after"), pl.Int64)
    record = pl.DataFrame(steps, schema={**text, **counts})
    for step in steps:
        if step["requirement"]:
            log.info(
                "filter %(filter)s %(requirement)s: %(removed)d of %(before)d pairs removed, %(after)d left",
                step,
            )
    return Selection(left.with_row_index("pair").with_columns(pl.col("pair").cast(pl.Int64)), record)


def _step(name: str, requirement: str | None, before: int, removed: int, missing: int) -> dict[str, Any]:
    return {
        "filter": name, "requirement": requirement, "before": before, "removed": removed, "missing": missing,
        "after": before - removed,
    }  # fmt: skip


def _with_output_scores(matches: pl.DataFrame, scores: Mapping[int, float] | pl.DataFrame) -> pl.DataFrame:
    """The matches with a column output_score; features without one get null."""
    import polars as pl

    if isinstance(scores, Mapping):
        scores = pl.DataFrame(
            {"feature": [int(f) for f in scores], "output_score": [float(s) for s in scores.values()]},
            schema={"feature": pl.Int64, "output_score": pl.Float64},
        )
    if not {"feature", "output_score"} <= set(scores.columns):
        raise TagsteerError(
            f"output scores need the columns feature and output_score; found {', '.join(scores.columns)}"
        )
    table = scores.select(
        pl.col("feature").cast(matches["feature"].dtype), pl.col("output_score").cast(pl.Float64)
    )
    if table["feature"].is_duplicated().any():
        raise TagsteerError("output scores name a feature twice: pass one score per feature")
    matches = matches.drop("output_score") if "output_score" in matches.columns else matches
    return matches.join(table, on="feature", how="left", maintain_order="left")


def _nothing_left(
    name: str, requirement: Any, before: pl.DataFrame, column: str, extreme: str, missing: int
) -> str:
    values = before[column].drop_nulls()
    if name == "support":
        row = before.row(before["support"].arg_max() or 0, named=True)
        label = row.get("label_name", row["label"])
        return (
            f"no label with a support {requirement}: the largest is {row['support']} documents"
            f" (label {label!r}); lower min_support or bring more documents"
        )
    if not len(values):
        return f"no pair is left: none of the {missing} before the filter {name} {requirement} has one"
    best = values.max() if extreme == "largest" else values.min()
    shown = f"{best:.3g}" if isinstance(best, float) else str(best)
    return (
        f"no pair is left: the filter {name} {requirement} removed all {len(before)} ({missing} without a"
        f" value); the {extreme} {name} is {shown}: loosen it"
    )
