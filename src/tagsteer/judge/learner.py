"""The learner behind the offline judge: boosted trees by scikit-learn, their calibration, and their export to arrays.

Knows matrices of inputs and ratings; must not know texts, concepts or cards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.judge.learned import Trees

KNOTS = 24
STEPS = 255
"""Steps of each input, scikit-learn's largest number."""


@dataclass(frozen=True, eq=False)
class Bins:
    """The edges that turn each input into steps 0, 1, 2, ...: x lies in step k when edges[k − 1] < x <= edges[k].

    Found here and not by scikit-learn (1.9), whose weighted quantiles take 97 % of a fit's time.
    """

    edges: tuple[np.ndarray, ...]
    """float32, ascending, for each input at most STEPS − 1."""

    @classmethod
    def of(cls, x: np.ndarray) -> Bins:
        """Quantiles of float32 [rows, inputs], of 20,000 evenly spread rows at most; NaN belongs to no step."""
        some = x[:: max(1, len(x) // 20_000)]
        edges = []
        for column in some.T:
            known = np.sort(column[~np.isnan(column)])
            places = np.linspace(0, max(len(known) - 1, 0), STEPS + 1)[1:-1].astype(int)
            edges.append(np.unique(known[places]) if len(known) else known)
        return cls(tuple(edges))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Steps as float32 [rows, inputs]; NaN stays NaN."""
        steps = [np.searchsorted(e, column, side="left") for e, column in zip(self.edges, x.T, strict=True)]
        return np.where(np.isnan(x), np.float32(np.nan), np.stack(steps, axis=1).astype(np.float32))

    def threshold(self, feature: np.ndarray, step: np.ndarray) -> np.ndarray:
        """float32 [nodes]: x <= threshold is the same question as (step of x) <= step, for each node."""
        # Beyond the last edge: the split that only parts what is known from NaN.
        edges = (self.edges[f] for f in feature)
        return np.array(
            [e[int(s)] if s < len(e) else np.inf for e, s in zip(edges, step, strict=True)], np.float32
        )


@dataclass(frozen=True, eq=False)
class Boosted:
    """A fitted regressor on steps."""

    bins: Bins
    model: Any

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Uncalibrated predictions float64 [rows] for inputs float32 [rows, inputs]."""
        return np.asarray(self.model.predict(self.bins(np.asarray(x, np.float32))))


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

    def fit(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Boosted:
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
        x = np.asarray(x[known], np.float32)
        bins = Bins.of(x)
        return Boosted(bins, model.fit(bins(x), y[known], weight[known]))


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


def export(fitted: Boosted) -> Trees:
    """Flat arrays of a fitted HistGradientBoostingRegressor (squared error, no categories)."""
    model = fitted.model
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
        threshold = np.zeros(len(nodes), np.float32)
        asked = ~leaf
        threshold[asked] = fitted.bins.threshold(nodes["feature_idx"][asked], nodes["num_threshold"][asked])
        parts["threshold"].append(threshold)
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
