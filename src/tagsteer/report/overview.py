"""What the page says of the whole run: its headline, facts, published reference figures, notes and settings.

Knows tables, nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tagsteer.evaluate.published import CLAIMS, METRICS, SITES, VERIFIED, published
from tagsteer.evaluate.summary import TARGET
from tagsteer.report.read import RunRecord
from tagsteer.report.text import interval, known, method_name, number, plural, small, strength, visible

_WHAT = {
    "unsteered": "unsteered ones",
    "random": "those of random features",
    "prompt": "those of prompt steering",
}
_ITS = {"unsteered_overall": "its unsteered score", "random_overall": "that of its random feature"}


def headline(run: RunRecord) -> str:
    """What was done, in a sentence."""
    labels = run.pairs["label_name"].n_unique()
    steer = run.config["steer"]
    return (
        f"{plural(len(run.pairs), 'feature-label pair')} of {plural(labels, 'label')}, named from "
        f"{plural(run.corpus['documents'], 'tagged document')}, each steered on "
        f"{plural(_n_instructions(run), 'instruction')} at {plural(len(steer['strengths']), 'strength')}."
    )


def _n_instructions(run: RunRecord) -> int:
    return int(run.texts["instruction_id"].n_unique())


def findings(run: RunRecord) -> list[str]:
    """What came out, in sentences that say only what the tables hold."""
    found = []
    confidence = f"{100 * run.summary.provenance['confidence']:g} %"
    for row in run.summary.comparisons.to_dicts():
        if row["score"] == "overall" and known(row["difference"]):
            side = "above" if row["difference"] >= 0 else "below"
            what = _WHAT.get(row["baseline"], method_name(row["baseline"]))
            span = interval(row["low"], row["high"]) or "unknown"
            found.append(
                f"Steered texts score {number(abs(row['difference']))} {side} {what} ({confidence} interval of the "
                f"difference {span}, {plural(row['n'], 'pair')}, p = {small(row['p_holm'])} after Holm)."
            )
    scored = [r for r in run.pairs.to_dicts() if known(r["low"])]
    beside = [n for n in ("unsteered_overall", "random_overall") if any(known(r[n]) for r in scored)]
    if scored and beside:
        above = sum(all(known(r[n]) and r["low"] > r[n] for n in beside) for r in scored)
        names = " and ".join(_ITS[n] for n in beside)
        found.append(
            f"On {above} of {len(scored)} pairs the whole interval of the steered score lies above {names}."
        )
    return found


def tiles(run: RunRecord) -> list[dict[str, Any]]:
    """The mean overall score of each method, ours first."""
    rows = run.summary.methods.to_dicts()
    rows.sort(key=lambda row: row["method"] != TARGET)
    kinds = ("steered", "unsteered", "random", "prompt")
    return [
        {
            "name": method_name(row["method"]),
            "kind": row["method"] if row["method"] in kinds else "other",
            "value": number(row["overall"]),
            "interval": interval(row["overall_low"], row["overall_high"]),
        }
        for row in rows
    ]


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """What every figure of the page depends on."""
    c, p = run.config, run.summary.provenance
    layer = c["sae"].get("layer")
    steer = c["steer"]
    options = ", ".join(f"{name} {value}" for name, value in p["options"].items())
    unit = "times the feature's max activation" if steer["unit"] == "max_activation" else "absolute"
    length = f"{steer['max_new_tokens']} new tokens, temperature {steer['temperature']:g}"
    found = [
        ("Model", c["model"]["name"]),
        ("SAE", c["sae"]["name"] + (f", layer {layer}" if layer is not None else "")),
        (
            "Corpus",
            f"{run.corpus['source']}: {run.corpus['documents']:,} documents, {run.corpus['labels']:,} labels",
        ),
        (
            "Steering",
            f"{steer['intervention']} at {', '.join(map(strength, steer['strengths']))} {unit}; {length}",
        ),
        ("Instructions", f"{_n_instructions(run)} of {run.methods['instructions']}"),
        ("Judge", run.judge["description"]),
        (
            "Protocol",
            f"{p['protocol_line']}{f' ({options})' if options else ''}. After {p['protocol_source']}",
        ),
        ("Date", f"{p['date']}, seed {p['seed']}"),
    ]
    return [(name, visible(value)) for name, value in found]


def reference_figures() -> dict[str, Any]:
    """Published figures for the page: the leaderboard as a grid, the rest as lists by metric."""
    sites = (*SITES, "average")
    grid: dict[str, dict[str, Any]] = {}
    for figure in published("overall"):
        row = grid.setdefault(
            figure.method, {"method": figure.method, "cells": dict.fromkeys(sites), "notes": []}
        )
        row["cells"][figure.site] = figure
        if figure.note and figure.note not in row["notes"]:
            row["notes"].append(figure.note)
    lists = [
        (METRICS[m].replace("the same,", "mean overall steering score,"), published(m))
        for m in METRICS
        if m != "overall"
    ]
    sources = sorted({figure.source for figure in published("overall")})
    return {
        "sites": sites, "rows": list(grid.values()), "what": METRICS["overall"], "sources": sources, "lists": lists,
        "claims": CLAIMS, "verified": VERIFIED,
    }  # fmt: skip


def missing_ratings(run: RunRecord) -> list[dict[str, Any]]:
    """Texts without an overall score, by method and reason."""
    import polars as pl

    table = run.texts.filter(pl.col("overall").is_null())
    table = (
        table.group_by("method", "reason", maintain_order=True)
        .agg(pl.len().alias("n"))
        .sort("n", descending=True)
    )
    return [
        {
            "method": method_name(r["method"]),
            "reason": visible(r["reason"] or "no reason was given"),
            "n": r["n"],
        }
        for r in table.to_dicts()
    ]


def settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The configuration as (place, value) lines."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", shown) for key, shown in settings(value))
        else:
            yield visible(name), "not set" if value is None else visible(value)


def stage_lines(run: RunRecord) -> list[dict[str, str]]:
    """When each stage ended and how long it took, in order of time."""
    rows = sorted(run.stages.items(), key=lambda item: str(item[1].get("finished", "")))
    return [
        {
            "stage": visible(name),
            "seconds": number(note.get("seconds"), 1),
            "finished": visible(note.get("finished", "")),
            "version": visible(note.get("version", "")),
        }
        for name, note in rows
    ]


def skipped_documents(run: RunRecord) -> list[dict[str, Any]]:
    """What the corpus left out: reason, count, first examples."""
    found = run.corpus.get("skipped", {})
    examples = found.get("examples", {})
    return [
        {
            "reason": visible(reason),
            "n": n,
            "examples": [visible(e) for e in list(examples.get(reason, ()))[:3]],
        }
        for reason, n in found.get("counts", {}).items()
    ]


def unfinished(run: RunRecord) -> list[tuple[str, int]]:
    """How generations ended, by kind."""
    counts = run.texts.group_by("finish").len().sort("len", descending=True)
    return [(visible(kind), n) for kind, n in counts.iter_rows()]
