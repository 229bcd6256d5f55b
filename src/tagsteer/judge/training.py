"""Train an offline judge on a table of ratings (AxBench's, a run's own by an LLM, or people's).

    weights = train_judge(pl.read_parquet("judged.parquet"), version="mine-1")
    weights.save("my_judge.safetensors")

Needs scikit-learn (an extra of development); what it writes does not. Concepts are never split between
training and test. Knows the learner and the card; must not know where ratings come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.judge.agreement import choice_agreement, group_agreement, overall_of, rating_agreement
from tagsteer.judge.learned import HEADS, Trees, Weights
from tagsteer.progress import track

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("tagsteer.judge")

TEXTS = ("concept", "instruction", "generation")
RATINGS = ("relevance_concept", "relevance_instruction", "fluency")
KNOTS = 24

Inputs = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]
"""(concepts, instructions, texts) -> float32 [texts, len(INPUTS)]."""


@dataclass(frozen=True)
class Learner:
    """Settings of scikit-learn's HistGradientBoostingRegressor; heavy regularisation, since concepts are few."""

    iterations: int = 220
    learning_rate: float = 0.06
    leaves: int = 15
    least_in_leaf: int = 60
    l2: float = 5.0
    inputs_per_split: float = 0.3
    seed: int = 0

    def fit(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Any:
        """A fitted regressor; rows whose rating is NaN are left out."""
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError:
            raise TagsteerError(
                "training a judge needs scikit-learn: pip install 'scikit-learn>=1.5'"
            ) from None
        known = ~np.isnan(y)
        model = HistGradientBoostingRegressor(
            max_iter=self.iterations, learning_rate=self.learning_rate, max_leaf_nodes=self.leaves,
            min_samples_leaf=min(self.least_in_leaf, max(1, int(known.sum()) // 20)), l2_regularization=self.l2,
            max_features=self.inputs_per_split, early_stopping=False, random_state=self.seed,
        )  # fmt: skip
        return model.fit(x[known], y[known], weight[known])


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


def train_judge(
    table: pl.DataFrame,
    *,
    version: str,
    judge: str = "gpt-4o-mini",
    ratings: Sequence[str] = RATINGS,
    short_tags: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    learner: Learner | None = None,
    folds: int = 8,
    seed: int = 0,
) -> Weights:
    """Learn `judge`'s ratings from text and measure the agreement on concepts held out by `folds`-fold splits.

    `table` has the texts `concept`, `instruction`, `generation` and the three columns named in `ratings`
    (0 to 2, null = missing); `method` and `factor`, where present, add the card's tables on methods and choices.
    `short_tags` (concept -> tag) adds the same texts under the short name of their concept. The card is measured
    on the long concepts, and beside them on the short ones. Raises for fewer than 4 concepts or 100 texts.
    """
    examples = prepare(table, ratings=ratings, short_tags=short_tags, inputs=inputs)
    return learn(examples, version=version, judge=judge, learner=learner, folds=folds, seed=seed).weights


def prepare(
    table: pl.DataFrame,
    *,
    ratings: Sequence[str] = RATINGS,
    short_tags: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
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
    return Fitted(Weights(dict(zip(HEADS, trees, strict=True)), calibration, INPUTS, card), held, fold)


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


def calibration_knots(raw: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Isotonic regression of the ratings on raw predictions, as at most KNOTS corners float32 [2, knots] in [0, 2]."""
    from sklearn.isotonic import IsotonicRegression

    known = ~(np.isnan(raw) | np.isnan(real))
    raw, real = raw[known], real[known]
    fitted = IsotonicRegression(y_min=0.0, y_max=2.0).fit(raw, real)
    # Means of equally filled bins of both sides: smoother than isotonic steps, and strictly increasing in x.
    order = np.argsort(raw, kind="stable")
    bins = np.array_split(order, min(KNOTS, max(2, len(order) // 20)))
    at = np.array([raw[b].mean() for b in bins])
    knots = np.array([at, fitted.predict(at)])
    knots = knots[:, np.concatenate([[True], np.diff(knots[0]) > 1e-6])]
    knots[1] = np.clip(knots[1], 0, 2)
    return knots.astype(np.float32)


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
    if examples.methods is not None:
        card["method_means"] = group_agreement(held, examples.y, examples.methods.tolist())
        card["by_method"] = {
            str(m): rating_agreement(held[examples.methods == m], examples.y[examples.methods == m])
            for m in np.unique(examples.methods)
        }
    if examples.factors is not None and examples.instructions is not None:
        groups = [
            f"{m}\0{c}" for m, c in zip(_or_blank(examples.methods, held), examples.concepts, strict=True)
        ]
        instructions = {i: n % 2 for n, i in enumerate(sorted(set(map(str, examples.instructions))))}
        halves = [instructions[str(i)] for i in examples.instructions]
        card["factor_choice"] = choice_agreement(
            held[:, 3], examples.y[:, 3], groups, examples.factors.tolist(), halves
        )
    return card


def export(model: Any) -> Trees:
    """Flat arrays of a fitted HistGradientBoostingRegressor (squared error, no categories)."""
    parts: dict[str, list[np.ndarray]] = {
        n: [] for n in ("feature", "threshold", "left", "right", "missing_left", "value")
    }
    roots, offset, depth = [], 0, 0
    for (tree,) in model._predictors:
        nodes = tree.nodes
        if nodes["is_categorical"].any():
            raise TagsteerError("this tree splits on categories, which the judge's format does not hold")
        leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
        parts["feature"].append(np.where(leaf, 0, nodes["feature_idx"]).astype(np.int16))
        parts["threshold"].append(_float32_below(nodes["num_threshold"]))
        parts["left"].append((np.where(leaf, own, nodes["left"]) + offset).astype(np.int32))
        parts["right"].append((np.where(leaf, own, nodes["right"]) + offset).astype(np.int32))
        parts["missing_left"].append(nodes["missing_go_to_left"].astype(np.uint8))
        parts["value"].append(nodes["value"].astype(np.float32))
        roots.append(offset)
        offset, depth = offset + len(nodes), max(depth, int(nodes["depth"].max()))
    arrays = {n: np.concatenate(a) for n, a in parts.items()}
    return Trees(
        **arrays, root=np.array(roots, np.int32), start=float(model._baseline_prediction.item()), depth=depth
    )


def _float32_below(values: np.ndarray) -> np.ndarray:
    """Largest float32 not above each value: x <= t for a float32 x is the same question for both."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


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
