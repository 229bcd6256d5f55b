"""How far one judge agrees with another: rank correlation, errors, calibration, and the choices that follow.

Arrays of ratings in, plain dictionaries out (they go on cards and into JSON). Must not know judges or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PARTS = ("concept", "instruction", "fluency", "overall")


def overall_of(ratings: np.ndarray) -> np.ndarray:
    """Harmonic mean of the first three columns [rows], 0 where one is 0, NaN where one is NaN (AxBench 3.2)."""
    three = np.asarray(ratings, float)[:, :3]
    positive = np.where(three > 0, three, 1.0)
    return np.where(
        np.isnan(three).any(1), np.nan, np.where((three > 0).all(1), 3 / (1 / positive).sum(1), 0.0)
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation, ties at their mean rank; None for fewer than 3 pairs or a constant side."""
    from scipy.stats import rankdata

    known = ~(np.isnan(a) | np.isnan(b))
    a, b = np.asarray(a, float)[known], np.asarray(b, float)[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def rating_agreement(judged: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Agreement of two tables of ratings [rows, 4] (concept, instruction, fluency, overall; NaN = missing).

    Returns for each part: n, spearman, mean absolute error, bias (judged - real), mean of both, share of equal
    rounded ratings, confusion [real 0-2][judged 0-2], and the calibration curve (tenths of the judged ratings:
    mean judged, mean real, n).
    """
    out: dict[str, Any] = {"n": len(judged)}
    for name in ("spearman", "mean_absolute_error", "bias", "equal"):
        out[name] = {}
    out["confusion"], out["calibration"] = {}, {}
    for k, part in enumerate(PARTS):
        known = ~(np.isnan(judged[:, k]) | np.isnan(real[:, k]))
        p, y = judged[known, k], real[known, k]
        if not len(p):
            continue
        out["spearman"][part] = _short(spearman(p, y))
        out["mean_absolute_error"][part] = _short(np.abs(p - y).mean())
        out["bias"][part] = _short((p - y).mean())
        whole_p, whole_y = _whole(p), _whole(y)
        if part != "overall":
            out["equal"][part] = _short((whole_p == whole_y).mean())
            out["confusion"][part] = np.bincount(whole_y * 3 + whole_p, minlength=9).reshape(3, 3).tolist()
        tenths = np.array_split(np.argsort(p, kind="stable"), min(10, len(p)))
        out["calibration"][part] = [[_short(p[t].mean()), _short(y[t].mean()), len(t)] for t in tenths]
    return out


def group_agreement(judged: np.ndarray, real: np.ndarray, groups: Sequence[Any]) -> dict[str, Any]:
    """Means of groups (methods, concepts) by both judges [rows, 4]: rank correlation, and differences of each group."""
    keys, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    means = []
    for table in (judged, real):
        known = ~np.isnan(table)
        sums = np.stack(
            [np.bincount(index, np.where(known[:, k], table[:, k], 0), len(keys)) for k in range(4)], 1
        )
        counts = np.stack([np.bincount(index, known[:, k], len(keys)) for k in range(4)], 1)
        means.append(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))
    difference = means[0] - means[1]
    return {
        "groups": len(keys),
        "spearman": {p: _short(spearman(means[0][:, k], means[1][:, k])) for k, p in enumerate(PARTS)},
        "largest_difference": {p: _short(np.nanmax(np.abs(difference[:, k]))) for k, p in enumerate(PARTS)},
        "mean_absolute_difference": {p: _short(np.nanmean(np.abs(difference[:, k]))) for k, p in enumerate(PARTS)},
        "difference": {
            str(key): {p: _short(difference[g, k]) for k, p in enumerate(PARTS)} for g, key in enumerate(keys)
        } if len(keys) <= 12 else {},
    }  # fmt: skip


def choice_agreement(
    judged: np.ndarray,
    real: np.ndarray,
    groups: Sequence[Any],
    factors: Sequence[float],
    halves: Sequence[int],
) -> dict[str, Any]:
    """The factor that each judge would choose in each group, both scored by the real ratings of texts not used.

    `judged` and `real` are overall scores [rows], `halves` 0 or 1 [rows] (AxBench: by instruction). The factor is
    the first maximum of the mean over half 0 and is scored on half 1, then the other way round. Returns the
    mean score of the judged choice, of the real judge's choice and of the best factor on the scored half itself
    (an upper bound that no judge reaches), and the shares between them. Factors that are not in both halves of
    a group are left out; groups with fewer than two factors are skipped and counted.
    """
    keys = np.asarray(groups).astype(str)
    factor, half = np.asarray(factors, float), np.asarray(halves)
    scores: list[tuple[float, float, float]] = []
    skipped = same = 0
    for key in np.unique(keys):
        inside = (keys == key) & ~np.isnan(judged) & ~np.isnan(real)
        curves = []
        for side in (0, 1):
            rows = inside & (half == side)
            curves.append(
                {
                    f: (judged[rows & (factor == f)].mean(), real[rows & (factor == f)].mean())
                    for f in np.unique(factor[rows])
                }
            )
        shared = sorted(set(curves[0]) & set(curves[1]))
        if len(shared) < 2:
            skipped += 1
            continue
        for choose, score in ((0, 1), (1, 0)):
            by_judged = max(shared, key=lambda f: curves[choose][f][0])
            by_real = max(shared, key=lambda f: curves[choose][f][1])
            best = max(curves[score][f][1] for f in shared)
            same += by_judged == by_real
            scores.append((curves[score][by_judged][1], curves[score][by_real][1], best))
    if not scores:
        return {"choices": 0, "skipped_groups": skipped}
    ours, theirs, best = np.mean(scores, axis=0)
    return {
        "choices": len(scores), "skipped_groups": skipped, "same_factor": _short(same / len(scores)),
        "score_of_judged_choice": _short(ours), "score_of_real_choice": _short(theirs), "upper_bound": _short(best),
        "share_of_real_choice": _short(ours / theirs) if theirs else None,
    }  # fmt: skip


def _whole(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 2).astype(int)


def _short(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4)
