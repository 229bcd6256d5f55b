"""Train an offline judge on a table of ratings (AxBench's, a run's own by an LLM, or people's).

    weights = train_judge(pl.read_parquet("judged.parquet"), version="mine-1")
    weights.save("my_judge.safetensors")

Needs scikit-learn (an extra of development); what it writes does not. Concepts are never split between
training and test. Knows the learner and the card; must not know where ratings come from.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.judge.agreement import choice_agreement, group_agreement, overall_of, rating_agreement
from tagsteer.judge.learned import HEADS, READER, Weights, second_inputs
from tagsteer.judge.learner import Learner, calibration_knots, export
from tagsteer.progress import track

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("tagsteer.judge")

TEXTS = ("concept", "instruction", "generation")
RATINGS = ("relevance_concept", "relevance_instruction", "fluency")

Inputs = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]
"""(concepts, instructions, texts) -> float32 [texts, len(INPUTS)]."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Rated texts ready to learn from; one row for each (concept, instruction, text), repeated ratings averaged."""

    x: np.ndarray
    y: np.ndarray
    """float64 [rows, 4]: three ratings and their overall score; NaN is missing."""
    concepts: np.ndarray
    methods: np.ndarray | None = None
    factors: np.ndarray | None = None
    instructions: np.ndarray | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    short: np.ndarray | None = None
    """Inputs of the same rows with each concept reduced to a short tag; rows without a tag are NaN."""
    slow: np.ndarray | None = None
    """SLOW_INPUTS of the same rows; rows that no language model has read are NaN."""


def train_judge(
    table: pl.DataFrame,
    *,
    version: str,
    judge: str = "gpt-4o-mini",
    ratings: Sequence[str] = RATINGS,
    short_tags: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    slow: Inputs | None = None,
    learner: Learner | None = None,
    folds: int = 8,
    seed: int = 0,
) -> Weights:
    """Learn `judge`'s ratings from text and measure the agreement on concepts held out by `folds`-fold splits.

    `table` has the texts `concept`, `instruction`, `generation` and the three columns named in `ratings`
    (0 to 2, null = missing); `method` and `factor`, where present, add the card's tables on methods and choices.
    `short_tags` (concept -> tag) adds the same texts under the short name of their concept. The card is measured
    on the long concepts, and beside them on the short ones. `slow` (an `inputs.Reader`) adds what a language model
    reads, as a second set of trees that can be switched off. Raises for fewer than 4 concepts or 100 texts.
    """
    examples = prepare(table, ratings=ratings, short_tags=short_tags, inputs=inputs, slow=slow)
    return learn(examples, version=version, judge=judge, learner=learner, folds=folds, seed=seed).weights


def prepare(
    table: pl.DataFrame,
    *,
    ratings: Sequence[str] = RATINGS,
    short_tags: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    slow: Inputs | None = None,
) -> Examples:
    """Check the table, merge repeated texts, compute the inputs (minutes for 50,000 texts on two cores)."""
    import polars as pl

    absent = [c for c in (*TEXTS, *ratings) if c not in table.columns]
    if absent:
        raise TagsteerError(
            f"the table of ratings lacks {', '.join(absent)} (it has {', '.join(table.columns)}); wanted "
            f"{', '.join(TEXTS)} and three columns of ratings, named by ratings=(...)"
        )
    texts = table.filter(pl.all_horizontal(pl.col(c).is_not_null() for c in TEXTS))
    rated = texts.filter(pl.any_horizontal(pl.col(c).is_not_null() for c in ratings))
    kept = [c for c in ("method", "factor") if c in table.columns]
    merged = rated.group_by(*TEXTS, maintain_order=True).agg(
        *(pl.col(c).cast(pl.Float64).fill_nan(None).mean() for c in ratings),
        *(pl.col(c).first() for c in kept),
    )
    three = merged.select(ratings).to_numpy().astype(float)
    wrong = three[(three < 0) | (three > 2)]
    if len(wrong):
        raise TagsteerError(f"rating {wrong[0]:g} is out of range: wanted 0 to 2, null for missing")
    dropped = {
        "without text": len(table) - len(texts), "without rating": len(texts) - len(rated),
        "repeated texts merged": len(rated) - len(merged),
    }  # fmt: skip
    compute = inputs or _default_inputs()
    concepts, instructions, generations = (merged[c].to_list() for c in TEXTS)
    x = _in_chunks(compute, concepts, instructions, generations, "inputs")
    short = None
    if short_tags:
        short = np.full_like(x, np.nan)
        rows = [i for i, c in enumerate(concepts) if c in short_tags]
        short[rows] = _in_chunks(
            compute, [short_tags[concepts[i]] for i in rows], [instructions[i] for i in rows],
            [generations[i] for i in rows], "inputs, short tags",
        )  # fmt: skip
    return Examples(
        x, np.column_stack([three, overall_of(three)]), np.array(concepts, dtype=object),
        merged["method"].to_numpy() if "method" in kept else None,
        merged["factor"].to_numpy() if "factor" in kept else None,
        np.array(instructions, dtype=object), dropped, short,
        None if slow is None else _in_chunks(slow, concepts, instructions, generations, "reading"),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained judge and what it said of each text before it had seen the text's concept."""

    weights: Weights
    held: np.ndarray
    """Calibrated ratings of held-out concepts [rows, 4]."""
    fold: np.ndarray


def learn(
    examples: Examples,
    *,
    version: str,
    judge: str,
    learner: Learner | None = None,
    folds: int = 8,
    seed: int = 0,
) -> Fitted:
    """Fit, calibrate and measure; see `train_judge`."""
    from tagsteer.judge.inputs import INPUTS

    learner, names = learner or Learner(), np.unique(examples.concepts.astype(str))
    if len(names) < 4 or len(examples.x) < 100:
        raise TagsteerError(
            f"{len(examples.x)} rated texts over {len(names)} concepts are too few to learn and to measure: "
            "give at least 100 over 4, and thousands over 50 for a judge to be trusted"
        )
    fold = split_concepts(examples.concepts, min(folds, len(names)), seed)
    raw, raw_short = held_out(examples, fold, learner)
    held = calibrate_by_fold(raw, examples.y, fold)
    card = card_of(examples, held, fold, version, judge, learner)
    if examples.short is not None:
        with_tag = ~np.isnan(examples.short).all(1)
        short = calibrate_by_fold(np.where(with_tag[:, None], raw_short, raw), examples.y, fold, source=raw)
        card["held_out_short_tags"] = rating_agreement(short[with_tag], examples.y[with_tag])
    trees = [export(model) for model in fit_rows(examples, np.ones(len(examples.x), bool), learner)]
    calibration = {h: calibration_knots(raw[:, k], examples.y[:, k]) for k, h in enumerate(HEADS)}
    weights = Weights(dict(zip(HEADS, trees, strict=True)), calibration, INPUTS, card)
    if examples.slow is None:
        return Fitted(weights, held, fold)
    return Fitted(learn_slow(examples, weights, raw, held, fold, learner), held, fold)


def learn_slow(
    examples: Examples,
    weights: Weights,
    raw: np.ndarray,
    held: np.ndarray,
    fold: np.ndarray,
    learner: Learner,
) -> Weights:
    """The weights with a second set of trees, stacked on held-out sums of the first set.

    The second set learns from sums of trees that had not seen a row's concept, as it will meet them in use.
    """
    assert examples.slow is not None
    read = ~np.isnan(examples.slow).all(1)
    both = second_inputs(examples.x, examples.slow, raw)
    second = np.full(raw.shape, np.nan)
    for f in np.unique(fold):
        test = read & (fold == f)
        for k, model in enumerate(_fit(both, examples, read & (fold != f), learner)):
            second[test, k] = model.predict(both[test])
    better = np.full(raw.shape, np.nan)
    better[read] = calibrate_by_fold(second[read], examples.y[read], fold[read])
    card = {
        **weights.card, "texts_read": int(read.sum()), "reader": READER,
        "held_out_with_perplexity": rating_agreement(better[read], examples.y[read]),
        "held_out_same_texts_without": rating_agreement(held[read], examples.y[read]),
        **{f"{name}_with_perplexity": value for name, value in breakdown(examples, better, read).items()},
    }  # fmt: skip
    trees = [export(model) for model in _fit(both, examples, read, learner)]
    knots = {h: calibration_knots(second[read, k], examples.y[read, k]) for k, h in enumerate(HEADS)}
    return dataclasses.replace(
        weights, card=card, slow_trees=dict(zip(HEADS, trees, strict=True)), slow_calibration=knots
    )


def _fit(x: np.ndarray, examples: Examples, rows: np.ndarray, learner: Learner) -> list[Any]:
    weight = balance(examples.concepts[rows])
    return [learner.fit(x[rows], examples.y[rows, k], weight) for k in range(len(HEADS))]


def fit_rows(examples: Examples, rows: np.ndarray, learner: Learner) -> list[Any]:
    """One fitted regressor for each head on the examples where `rows` is true."""
    weight = balance(examples.concepts[rows])
    x, y = examples.x[rows], examples.y[rows]
    if examples.short is not None:
        # The same texts under the short tag of their concept, at half the weight.
        short = examples.short[rows]
        tagged = ~np.isnan(short).all(1)
        x, y = np.concatenate([x, short[tagged]]), np.concatenate([y, y[tagged]])
        weight = np.concatenate([weight, 0.5 * weight[tagged]])
    return [learner.fit(x, y[:, k], weight) for k in range(len(HEADS))]


def split_concepts(concepts: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row [rows]; all rows of a concept are in one fold, folds as even in rows as concepts allow."""
    names, counts = np.unique(concepts.astype(str), return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    load, of = np.zeros(folds), {}
    for i in order:
        of[names[i]] = int(load.argmin())
        load[load.argmin()] += counts[i]
    return np.array([of[str(c)] for c in concepts])


def balance(concepts: np.ndarray) -> np.ndarray:
    """Weight of each row, mean 1: a concept counts by the square root of its rows, so none drowns the others."""
    _, index, counts = np.unique(concepts.astype(str), return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(counts[index])
    return weight / weight.mean()


def held_out(examples: Examples, fold: np.ndarray, learner: Learner) -> tuple[np.ndarray, np.ndarray]:
    """Uncalibrated predictions [rows, 4] for each row by learners that have not seen its concept; long and short."""
    raw = np.full(examples.y.shape, np.nan)
    raw_short = raw.copy()
    parts = np.unique(fold)
    with track("held-out concepts", len(parts), "folds") as bar:
        for f in parts:
            test = fold == f
            for k, model in enumerate(fit_rows(examples, ~test, learner)):
                raw[test, k] = model.predict(examples.x[test])
                if examples.short is not None:
                    raw_short[test, k] = model.predict(examples.short[test])
            bar.advance()
    return raw, raw_short


def calibrate_by_fold(
    raw: np.ndarray, real: np.ndarray, fold: np.ndarray, source: np.ndarray | None = None
) -> np.ndarray:
    """Calibrated held-out ratings: the calibration of each fold is read off the other folds (of `source`)."""
    out, source = np.full(raw.shape, np.nan), raw if source is None else source
    for f in np.unique(fold):
        for k in range(raw.shape[1]):
            out[fold == f, k] = np.interp(
                raw[fold == f, k], *calibration_knots(source[fold != f, k], real[fold != f, k])
            )
    return out


def card_of(
    examples: Examples, held: np.ndarray, fold: np.ndarray, version: str, judge: str, learner: Learner
) -> dict[str, Any]:
    """What the judge was trained on and how far it is to be trusted, as plain JSON."""
    from tagsteer.judge.learned import FORMAT

    card: dict[str, Any] = {
        "version": version, "format": FORMAT, "judge": judge, "texts": len(held),
        "concepts": len(np.unique(examples.concepts.astype(str))), "folds": int(fold.max() + 1),
        "dropped": examples.dropped, "learner": vars(learner).copy(),
        "held_out_concepts": rating_agreement(held, examples.y),
        "floor_constant": rating_agreement(np.tile(np.nanmean(examples.y, 0), (len(held), 1)), examples.y),
        "concept_means": group_agreement(held, examples.y, examples.concepts.tolist()),
    }  # fmt: skip
    return {**card, **breakdown(examples, held, np.ones(len(held), bool))}


def breakdown(examples: Examples, held: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Agreement by method, and on the choices of a factor, over some rows of held-out ratings."""
    card: dict[str, Any] = {}
    held, y = held[rows], examples.y[rows]
    methods = None if examples.methods is None else examples.methods[rows]
    if methods is not None:
        card["method_means"] = group_agreement(held, y, methods.tolist())
        card["by_method"] = {
            str(m): rating_agreement(held[methods == m], y[methods == m]) for m in np.unique(methods)
        }
    if examples.factors is not None and examples.instructions is not None:
        groups = [f"{m}\0{c}" for m, c in zip(_or_blank(methods, held), examples.concepts[rows], strict=True)]
        named = [str(i) for i in examples.instructions[rows]]
        half = {i: n % 2 for n, i in enumerate(sorted(set(named)))}
        card["factor_choice"] = choice_agreement(
            held[:, 3], y[:, 3], groups, examples.factors[rows].tolist(), [half[i] for i in named]
        )
    return card


def _in_chunks(
    compute: Inputs, concepts: Sequence[str], instructions: Sequence[str], texts: Sequence[str], what: str
) -> np.ndarray:
    done = []
    with track(what, len(texts), "texts") as bar:
        for at in range(0, len(texts), 256):
            part = slice(at, at + 256)
            done.append(compute(concepts[part], instructions[part], texts[part]))
            bar.advance(len(texts[part]))
    return np.concatenate(done)


def _default_inputs() -> Inputs:
    from tagsteer.judge.embedder import load_embedder
    from tagsteer.judge.inputs import judge_inputs
    from tagsteer.judge.similarity import Similarity

    similarity = Similarity.of(load_embedder())
    return lambda concepts, instructions, texts: judge_inputs(similarity, concepts, instructions, texts)


def _or_blank(values: np.ndarray | None, like: np.ndarray) -> Sequence[Any]:
    return [""] * len(like) if values is None else list(values)
