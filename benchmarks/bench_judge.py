"""Offline judges: texts judged a second; with --train, the shipped judge and its card from AxBench's ratings.

    python -m benchmarks judge
    python -m benchmarks.bench_judge --train --data ../shared/data/axbench [--rows 20000] [--cache DIR]

--cache keeps the inputs of each text, so that an interrupted or a larger training starts where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Row
from tagsteer.judge.agreement import overall_of, rating_agreement
from tagsteer.judge.learned import HEADS, LearnedJudge, shipped_weights
from tagsteer.judge.offline import CONCEPT_RULE, INSTRUCTION_RULE, RuleJudge, fluency_by_rules, piecewise
from tagsteer.judge.types import JudgeItem

HERE = Path(__file__).resolve().parent
TARGETS = {"concept": 0.80, "instruction": 0.76, "fluency": 0.70, "overall": 0.78}
TARGETS_SAE = {"concept": 0.85, "instruction": 0.85, "fluency": 0.80}
SENTENCES = (
    "The garden needs water every morning before the sun is high.", "A pitcher throws the ball to the batter.",
    "Prices of houses rose again last year in most large cities.", "She opened the window and listened to the rain.",
    "Mix the flour with butter, then fold in the sugar and the eggs.", "The train to the coast leaves at noon.",
    "Several members of the council asked for a second vote.", "Old maps show a river where the road runs now.",
)  # fmt: skip


def run(quick: bool) -> list[Row]:
    """Texts of about 128 tokens, each new to the judge; concepts and instructions repeat as in a run."""
    import torch

    n = 64 if quick else 1024
    rng = np.random.default_rng(0)
    items = [
        JudgeItem(str(i), ("baseball", "gardening", "cooking")[i % 3], "Tell me about your day.",
                  " ".join(rng.choice(SENTENCES, 10)) + f" {i}")
        for i in range(n)
    ]  # fmt: skip
    judges: list[tuple[str, Any]] = [("rules", RuleJudge())]
    if shipped_weights().is_file():
        judges.append(("learned", LearnedJudge.load()))
    rows = []
    for name, judge in judges:
        list(judge.rate(items[:8]))
        start, cpu = time.perf_counter(), time.process_time()
        list(judge.rate(items))
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        rows.append(
            Row(
                f"judge {n:,} texts of 128 tokens, {name}",
                n / seconds,
                "texts/s",
                higher_is_better=True,
                target="≥ 50 texts/s on 2 cores",
                note=f"{torch.get_num_threads()} threads; {n / used:.0f} texts a second of processor time",
            )
        )
    return rows


def stratified(table: Any, seed: int = 0) -> Any:
    """Completely rated, distinct texts in an order whose every beginning holds concepts and methods evenly."""
    import polars as pl

    ratings = ("relevance_concept", "relevance_instruction", "fluency")
    rated = table.filter(pl.all_horizontal(pl.col(c).is_not_null() for c in ratings))
    kept = rated.unique(["concept", "instruction", "generation"], keep="first", maintain_order=True)
    kept = kept.with_columns(pl.Series("u", np.random.default_rng(seed).random(len(kept))))
    return kept.with_columns(pl.col("u").rank("ordinal").over("concept", "method").alias("k")).sort("k", "u")


def cached_inputs(folder: Path | None) -> Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]:
    """`judge_inputs` that keeps what it computed in files of `folder`, by a digest of the three texts."""
    from tagsteer.judge.embedder import load_embedder
    from tagsteer.judge.inputs import INPUTS, judge_inputs
    from tagsteer.judge.similarity import Similarity

    of = hashlib.sha256("\0".join(INPUTS).encode()).hexdigest()[:12]
    known: dict[str, np.ndarray] = {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"inputs-{of}-*.npz")):
            with np.load(path, allow_pickle=False) as file:
                known.update(zip(file["keys"].tolist(), file["x"], strict=True))
    similarity: list[Similarity] = []

    def compute(concepts: Sequence[str], instructions: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        keys = [digest(*three) for three in zip(concepts, instructions, texts, strict=True)]
        new = [i for i, k in enumerate(keys) if k not in known]
        if new:
            if not similarity:
                similarity.append(Similarity.of(load_embedder()))
            x = judge_inputs(
                similarity[0],
                [concepts[i] for i in new],
                [instructions[i] for i in new],
                [texts[i] for i in new],
            )
            known.update(zip([keys[i] for i in new], x, strict=True))
            if folder is not None:
                np.savez(
                    folder / f"inputs-{of}-{keys[new[0]]}.npz", keys=np.array([keys[i] for i in new]), x=x
                )
        return np.stack([known[k] for k in keys])

    return compute


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def ceiling(data: Path) -> dict[str, Any]:
    """gpt-4o-mini against itself on the texts that it judged twice."""
    import polars as pl

    pairs = pl.read_parquet(data / "derived" / "rejudged_pairs.parquet")
    names = ("relevance_concept", "relevance_instruction", "fluency")
    a, b = (pairs.select(f"{n}_rating_{side}" for n in names).to_numpy().astype(float) for side in "ab")
    return rating_agreement(np.column_stack([a, overall_of(a)]), np.column_stack([b, overall_of(b)]))


def by_rules(x: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The rule judge's ratings [rows, 4] from the same inputs."""
    from tagsteer.judge.inputs import INPUTS

    column = {n: x[:, k] for k, n in enumerate(INPUTS)}
    concept = piecewise(CONCEPT_RULE, (column["tokens_late"] + column["core_late"]) / 2)
    topic = (column["instruction_whole"] + column["instruction_best_window"] + column["instruction_late"]) / 3
    three = np.column_stack([concept, piecewise(INSTRUCTION_RULE, topic), fluency_by_rules(texts)])
    return np.column_stack([three, overall_of(three)])


def train(
    data: Path, rows: int, short_rows: int, folds: int, cache: Path | None, version: str
) -> dict[str, Any]:
    """Train, measure, and write weights, card.json and card.md to where the package ships them."""
    import polars as pl
    from rich.console import Console

    from tagsteer.judge.training import (
        Learner,
        calibration_knots,
        fit_rows,
        learn,
        prepare,
    )
    from tagsteer.progress import show_progress

    everything = stratified(pl.read_parquet(data / "judged_generations.parquet"))
    table = everything.head(rows)
    of = json.loads((HERE / "short_tags.json").read_text("utf-8"))
    tags = {c: of[digest(c)] for c in table["concept"].unique() if digest(c) in of}
    with show_progress(Console(stderr=True)):
        inputs = cached_inputs(cache)
        examples = prepare(table, inputs=inputs)
        short = np.full_like(examples.x, np.nan)
        for at in range(0, min(short_rows, len(table)), 256):
            part = table[at : min(at + 256, short_rows)]
            named = [tags.get(c, c) for c in part["concept"]]
            short[at : at + len(part)] = inputs(
                named, part["instruction"].to_list(), part["generation"].to_list()
            )
        examples, learner = dataclasses.replace(examples, short=short), Learner()
        fitted = learn(examples, version=version, judge="gpt-4o-mini", learner=learner, folds=folds)
    card, y = fitted.weights.card, examples.y
    card["source"] = (
        f"{len(table):,} of {len(everything):,} distinct texts of AxBench runs (stanfordnlp/axbench@f9a6a599)"
    )
    card["short_rows"] = short_rows
    card["ceiling_judged_twice"] = ceiling(data)
    rules = by_rules(examples.x, table["generation"].to_list())
    card["floor_rules"] = rating_agreement(rules, y)
    # In the mix of all texts instead of the even sample: each drawn as often as its cell is large.
    cell = pl.struct("concept", "method").hash(0)
    sizes = everything.select(cell.alias("c"))["c"].value_counts()
    drawn = table.select(cell.alias("c"))["c"]
    weight = (
        drawn.replace_strict(sizes["c"], sizes["count"]).to_numpy()
        / drawn.replace_strict(drawn.value_counts()["c"], drawn.value_counts()["count"]).to_numpy()
    )
    mix = np.random.default_rng(0).choice(len(table), 4 * len(table), p=weight / weight.sum())
    card["held_out_natural_mix"] = rating_agreement(fitted.held[mix], y[mix])
    # An unseen kind of method: trained on ReFT, LoRA and prompts, tested on SAE steering of unseen concepts.
    sae = examples.methods == "GemmaScopeSAE"
    raw = np.full(y.shape, np.nan)
    for f in np.unique(fitted.fold):
        for k, model in enumerate(fit_rows(examples, (fitted.fold != f) & ~sae, learner)):
            raw[fitted.fold == f, k] = model.predict(examples.x[fitted.fold == f])
    held = np.column_stack(
        [np.interp(raw[:, k], *calibration_knots(raw[~sae, k], y[~sae, k])) for k in range(4)]
    )
    card["held_out_method_sae"] = rating_agreement(held[sae], y[sae])
    # Half and a quarter of the training concepts, tested on the same folds.
    card["learning_curve"] = {}
    names = np.random.default_rng(0).permutation(np.unique(examples.concepts.astype(str)))
    for share in (0.25, 0.5):
        few, raw = set(names[: int(share * len(names))]), np.full(y.shape, np.nan)
        inside = np.array([str(c) in few for c in examples.concepts])
        for f in np.unique(fitted.fold)[::2]:
            for k, model in enumerate(fit_rows(examples, (fitted.fold != f) & inside, learner)):
                raw[fitted.fold == f, k] = model.predict(examples.x[fitted.fold == f])
        some = ~np.isnan(raw[:, 0])
        card["learning_curve"][f"{len(few)} concepts"] = rating_agreement(raw[some], y[some])["spearman"]
    some = np.isin(fitted.fold, np.unique(fitted.fold)[::2])
    card["learning_curve"][f"{len(names)} concepts"] = rating_agreement(fitted.held[some], y[some])[
        "spearman"
    ]
    folder = shipped_weights().parent
    folder.mkdir(exist_ok=True)
    path = fitted.weights.save(shipped_weights())
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    (folder / "card.md").write_text(markdown(card, path.stat().st_size), "utf-8")
    return card


def markdown(card: dict[str, Any], size: int) -> str:
    """card.json for readers; every figure is read from it."""

    def line(name: str, found: dict[str, Any], key: str = "spearman") -> str:
        cells = ("—" if found[key].get(h) is None else f"{found[key][h]:.2f}" for h in HEADS)
        return f"| {name} | " + " | ".join(cells) + " |"

    head = ["| | concept | instruction | fluency | overall |", "|---|--:|--:|--:|--:|"]
    held, choice = card["held_out_concepts"], card["factor_choice"]
    lines = [
        f"# The offline judge `{card['version']}`",
        "",
        "Written by `python -m benchmarks.bench_judge --train`; do not edit. Not gpt-4o-mini: a model of its ratings.",
        "",
        f"Trained on {card['source']}, {card['concepts']} concepts, rated by {card['judge']};",
        f"{card['short_rows']:,} of them also with their concept named by a short tag. Inputs: MiniLM similarities, word overlap, repetition and counts; no network,",
        f"no perplexity. Gradient-boosted trees, {size / 1e6:.1f} MB. Every figure below is of concepts that were not seen in",
        f"training ({card['folds']} folds by concept); calibration too is read off other folds.",
        "",
        "## Spearman correlation with gpt-4o-mini", "", *head,
        line("unseen concepts, methods and concepts evenly", held),
        line("the same, in the mix of all texts", card["held_out_natural_mix"]),
        line("the concept given as a short tag", card["held_out_short_tags"]),
        *(line(f"{m} alone", found) for m, found in card["by_method"].items()),
        line("SAE steering, judge trained without it", card["held_out_method_sae"]),
        "| *target* | " + " | ".join(f"{TARGETS[h]:.2f}" for h in HEADS) + " |",
        "| *target, SAE steering* | " + " | ".join(f"{TARGETS_SAE[h]:.2f}" if h in TARGETS_SAE else "" for h in HEADS) + " |",
        line("ceiling: gpt-4o-mini judged twice (62 texts)", card["ceiling_judged_twice"]),
        line("floor: rules", card["floor_rules"]),
        "", "## Mean absolute error", "", *head,
        line("unseen concepts", held, "mean_absolute_error"),
        line("ceiling", card["ceiling_judged_twice"], "mean_absolute_error"),
        line("floor: rules", card["floor_rules"], "mean_absolute_error"),
        line("floor: constant", card["floor_constant"], "mean_absolute_error"),
        "", "## Means: judged minus real", "", *head,
        *(
            f"| {m} | " + " | ".join(f"{d[h]:+.3f}" for h in HEADS) + " |"
            for m, d in card["method_means"]["difference"].items()
        ),
        line("rank correlation of concept means", card["concept_means"]),
        "", "## Choice of factor", "",
        f"{choice['choices']} choices (method and concept; chosen on half of the instructions, scored on the rest by gpt-4o-mini):",
        f"score {choice['score_of_judged_choice']} by this judge's choice, {choice['score_of_real_choice']} by gpt-4o-mini's own,",
        f"share {choice['share_of_real_choice']} (asked for: 0.92); best factor on the scored half itself {choice['upper_bound']}.",
        "", "## Learning curve (Spearman, half of the folds)", "", *head,
        *(line(n, {"spearman": s}) for n, s in card["learning_curve"].items()),
        "", "## Confusion (rows: gpt-4o-mini's 0, 1, 2; columns: rounded)", "",
        *(f"- {h}: {m}" for h, m in held["confusion"].items()),
        "", "## Calibration (mean judged → mean real, by tenths)", "",
        *(f"- {h}: " + ", ".join(f"{p:.2f} → {r:.2f}" for p, r, _ in c) for h, c in held["calibration"].items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true", required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "axbench")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--short-rows", type=int, default=10_000, help="texts learned under short tags too")
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--version", default="learned-1")
    given = parser.parse_args()
    found = train(given.data, given.rows, given.short_rows, given.folds, given.cache, given.version)
    print(
        json.dumps({k: found["held_out_concepts"][k] for k in ("spearman", "mean_absolute_error")}, indent=1)
    )
