"""Train the judge that tagsteer ships on AxBench's ratings, measure it on unseen concepts, write weights and card.

    python -m benchmarks.train_judge --cache scratch/judge                       # about an hour; resumes from the cache
    python -m benchmarks.train_judge --cache scratch/judge --inputs-only         # only compute and keep the inputs

--cache keeps the inputs of each text, so that an interrupted or a larger training starts where it was. The card is
written by benchmarks/judge_card.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge_card import markdown
from tagsteer.judge.agreement import overall_of, rating_agreement
from tagsteer.judge.inputs import COMPONENTS, INPUTS, SLOW_INPUTS, judge_inputs
from tagsteer.judge.learned import load_reader, shipped_weights
from tagsteer.judge.learner import Learner, calibration_knots
from tagsteer.judge.offline import ratings_by_rules
from tagsteer.judge.training import Examples, Fitted, fit_rows, learn, prepare

HERE = Path(__file__).resolve().parent
RATINGS = ("relevance_concept", "relevance_instruction", "fluency")
Compute = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]


def stratified(table: Any, seed: int = 0) -> Any:
    """Completely rated, distinct texts in an order whose every beginning holds concepts and methods evenly."""
    import polars as pl

    rated = table.filter(pl.all_horizontal(pl.col(c).is_not_null() for c in RATINGS))
    kept = rated.unique(["concept", "instruction", "generation"], keep="first", maintain_order=True)
    kept = kept.with_columns(pl.Series("u", np.random.default_rng(seed).random(len(kept))))
    return kept.with_columns(pl.col("u").rank("ordinal").over("concept", "method").alias("k")).sort("k", "u")


def write_basis(texts: Sequence[str]) -> None:
    """Principal components of the texts' own vectors, to where `inputs.text_basis` reads them."""
    from safetensors.numpy import save_file

    from tagsteer.judge.embedder import load_embedder

    vectors = load_embedder().embed(list(texts)).astype(np.float64)
    mean = vectors.mean(0)
    values, directions = np.linalg.eigh(np.cov((vectors - mean).T))
    top = directions[:, np.argsort(-values)[:COMPONENTS]]
    held = {"mean": mean.astype(np.float32), "components": np.ascontiguousarray(top.astype(np.float32))}
    save_file(held, str(shipped_weights().parent / "text_basis.safetensors"))


def kept_in(folder: Path | None, kind: str, names: Sequence[str], make: Callable[[], Compute]) -> Compute:
    """The inputs of `make()`, kept in files of `folder` by a digest of the three texts; made only if needed."""
    of = hashlib.sha256("\0".join([kind, *names]).encode()).hexdigest()[:12]
    known: dict[str, np.ndarray] = {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"{kind}-{of}-*.npz")):
            with np.load(path, allow_pickle=False) as file:
                known.update(zip(file["keys"].tolist(), file["x"], strict=True))
    made: list[Compute] = []

    def compute(concepts: Sequence[str], instructions: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        keys = [digest(*three) for three in zip(concepts, instructions, texts, strict=True)]
        new = [i for i, k in enumerate(keys) if k not in known]
        if new:
            if not made:
                made.append(make())
            three = ([part[i] for i in new] for part in (concepts, instructions, texts))
            x = made[0](*three)
            known.update(zip([keys[i] for i in new], x, strict=True))
            if folder is not None:
                held = {"keys": np.array([keys[i] for i in new]), "x": x}
                np.savez(folder / f"{kind}-{of}-{keys[new[0]]}.npz", **held)
        return np.stack([known[k] for k in keys])

    return compute


def fast() -> Compute:
    from tagsteer.judge.embedder import load_embedder
    from tagsteer.judge.similarity import Similarity

    similarity = Similarity.of(load_embedder())
    return lambda concepts, instructions, texts: judge_inputs(similarity, concepts, instructions, texts)


def slow() -> Compute:
    return load_reader()


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def ceiling(data: Path) -> dict[str, Any]:
    """gpt-4o-mini against itself on the texts that it judged twice."""
    import polars as pl

    pairs = pl.read_parquet(data / "derived" / "rejudged_pairs.parquet")
    a, b = (
        pairs.select(f"{n}_rating_{side}" for n in RATINGS).to_numpy().astype(float)
        for side in "ab"
    )  # fmt: skip
    return rating_agreement(np.column_stack([a, overall_of(a)]), np.column_stack([b, overall_of(b)]))


def by_rules(x: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The rule judge's ratings [rows, 4] from the same inputs."""
    three = ratings_by_rules({n: x[:, k] for k, n in enumerate(INPUTS)}, texts)
    return np.column_stack([three, overall_of(three)])


def examples_of(table: Any, short_rows: int, read_rows: int, cache: Path | None) -> Examples:
    """Inputs of all texts; the first `short_rows` under short tags too, the first `read_rows` read by the model."""
    of = json.loads((HERE / "short_tags.json").read_text("utf-8"))
    tags = {c: of[digest(c)] for c in table["concept"].unique() if digest(c) in of}
    inputs, reader = kept_in(cache, "inputs", INPUTS, fast), kept_in(cache, "slow", SLOW_INPUTS, slow)
    examples = prepare(table, inputs=inputs)
    short = np.full_like(examples.x, np.nan)
    read = np.full((len(table), len(SLOW_INPUTS)), np.nan, np.float32)
    for at in range(0, min(max(short_rows, read_rows), len(table)), 256):
        part = table[at : at + 256]
        texts = [part[c].to_list() for c in ("concept", "instruction", "generation")]
        if at < short_rows:
            short[at : at + len(part)] = inputs([tags.get(c, c) for c in texts[0]], *texts[1:])
        if at < read_rows:
            read[at : at + len(part)] = reader(*texts)
            print(f"read {at + len(part):,} of {read_rows:,} texts", flush=True)
    return dataclasses.replace(examples, short=short, slow=read if read_rows else None)


def train(
    data: Path, rows: int, short_rows: int, read_rows: int, folds: int, cache: Path | None, version: str
) -> dict[str, Any]:
    """Train, measure, and write weights, card.json and card.md to where the package ships them."""
    import polars as pl

    everything = stratified(pl.read_parquet(data / "judged_generations.parquet"))
    table = everything.head(rows)
    examples, learner = examples_of(table, short_rows, read_rows, cache), Learner()
    fitted = learn(examples, version=version, judge="gpt-4o-mini", learner=learner, folds=folds)
    card, y = fitted.weights.card, examples.y
    card["slow_trees"] = _reading_helps(card)
    if not card["slow_trees"]:
        weights = dataclasses.replace(fitted.weights, slow_trees={}, slow_calibration={})
        fitted = dataclasses.replace(fitted, weights=weights)
    fitted.weights.save(shipped_weights())
    print(json.dumps(card["held_out_concepts"]["spearman"]), flush=True)
    card["source"] = (
        f"{len(table):,} of {len(everything):,} distinct texts of AxBench runs (stanfordnlp/axbench@f9a6a599)"
    )
    card["short_rows"] = short_rows
    card["ceiling_judged_twice"] = ceiling(data)
    card["floor_rules"] = rating_agreement(by_rules(examples.x, table["generation"].to_list()), y)
    card["held_out_even_mix"] = rating_agreement(*_even(table, fitted.held, y))
    card["held_out_method_sae"] = without_method(examples, fitted, learner, "GemmaScopeSAE")
    card["learning_curve"] = learning_curve(examples, fitted, learner)
    folder = shipped_weights().parent
    path = fitted.weights.save(shipped_weights())
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    (folder / "card.md").write_text(markdown(card, path.stat().st_size), "utf-8")
    return card


def _reading_helps(card: dict[str, Any]) -> bool:
    """Whether the second set of trees ranks unseen concepts better than the first: else it is not shipped."""
    if "held_out_with_perplexity" not in card:
        return False
    with_it, without = card["held_out_with_perplexity"], card["held_out_same_texts_without"]
    return with_it["spearman"]["overall"] > without["spearman"]["overall"]


def _even(table: Any, held: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first texts of each concept and method, as many of each: no run that was repeated often drowns others."""
    keep = (table["k"] <= 45).to_numpy()
    return held[keep], y[keep]


def without_method(examples: Examples, fitted: Fitted, learner: Learner, method: str) -> dict[str, Any]:
    """Agreement on an unseen kind of method and unseen concepts: trained without both."""
    y, of = examples.y, examples.methods == method
    raw = np.full(y.shape, np.nan)
    for f in np.unique(fitted.fold):
        for k, model in enumerate(fit_rows(examples, (fitted.fold != f) & ~of, learner)):
            raw[fitted.fold == f, k] = model.predict(examples.x[fitted.fold == f])
    held = [np.interp(raw[:, k], *calibration_knots(raw[~of, k], y[~of, k])) for k in range(y.shape[1])]
    return rating_agreement(np.column_stack(held)[of], y[of])


def learning_curve(examples: Examples, fitted: Fitted, learner: Learner) -> dict[str, Any]:
    """Spearman on every second fold, for fewer concepts and for fewer texts of all concepts."""
    names = np.random.default_rng(0).permutation(np.unique(examples.concepts.astype(str)))
    of, y, found = examples.concepts.astype(str), examples.y, {}
    parts: dict[str, np.ndarray] = {}
    for share in (0.25, 0.5):
        few = names[: int(share * len(names))]
        parts[f"{len(few)} concepts"] = np.isin(of, few)
    for share in (1 / 16, 1 / 4):
        parts[f"{int(share * len(y)):,} texts of {len(names)} concepts"] = np.arange(len(y)) < share * len(y)
    for name, inside in parts.items():
        raw = np.full(y.shape, np.nan)
        for f in np.unique(fitted.fold)[::2]:
            for k, model in enumerate(fit_rows(examples, (fitted.fold != f) & inside, learner)):
                raw[fitted.fold == f, k] = model.predict(examples.x[fitted.fold == f])
        some = ~np.isnan(raw[:, 0])
        found[name] = rating_agreement(raw[some], y[some])["spearman"]
    some = np.isin(fitted.fold, np.unique(fitted.fold)[::2])
    found[f"all {len(y):,} texts"] = rating_agreement(fitted.held[some], y[some])["spearman"]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "axbench")
    parser.add_argument("--rows", type=int, default=60_000, help="at most; there are 56,628")
    parser.add_argument("--short-rows", type=int, default=12_000, help="texts learned under short tags too")
    parser.add_argument(
        "--read-rows", type=int, default=2_560, help="texts that a language model reads too (1 s for 4)"
    )
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--version", default="learned-3")
    parser.add_argument("--basis", action="store_true", help="only renew the components of text vectors")
    parser.add_argument("--inputs-only", action="store_true")
    given = parser.parse_args()
    if given.basis or given.inputs_only:
        import polars as pl

        ordered = stratified(pl.read_parquet(given.data / "judged_generations.parquet")).head(given.rows)
        if given.basis:
            write_basis(ordered["generation"].head(6_000).to_list())
        else:
            examples_of(ordered, given.short_rows, given.read_rows, given.cache)
    else:
        card = train(
            given.data, given.rows, given.short_rows, given.read_rows, given.folds, given.cache, given.version
        )
        print(json.dumps(card["held_out_concepts"]["spearman"], indent=1))
