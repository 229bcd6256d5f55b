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
