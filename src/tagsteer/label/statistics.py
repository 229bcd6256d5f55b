"""What keeps a match from being luck: held-out scores with intervals, a permutation null, duplicate groups.

The maximum over a hundred thousand features and ten thresholds finds something in noise. So pairs are found
on one part of the documents and measured on the other, and scored again with the labels shuffled. Works on
matrices and tables of matches; must not know models, texts, or the filters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.label import kernels
from tagsteer.label.calibration import calibrated_f1
from tagsteer.label.confusion import columns, confusion
from tagsteer.label.scoring import LabelSet, Scores, check_labels, check_matrix
from tagsteer.progress import track

if TYPE_CHECKING:
    import polars as pl


class Split(NamedTuple):
    """Two disjoint sets of document indices, ascending, that together are all documents."""

    selection: np.ndarray
    heldout: np.ndarray


def split_documents(n_docs: int, *, heldout: float = 0.3, seed: int = 0) -> Split:
    """Split documents at random, once: pairs are chosen on `selection`, measured on `heldout`."""
    if not 0.0 < heldout < 1.0 or not 1 <= round(n_docs * heldout) < n_docs:
        raise TagsteerError(
            f"heldout = {heldout} of {n_docs} documents: wanted a share in (0, 1) that leaves some in both"
        )
    order = np.random.default_rng(np.random.SeedSequence([seed, 0])).permutation(n_docs)
    n = round(n_docs * heldout)
    return Split(np.sort(order[n:]), np.sort(order[:n]))


def heldout_columns(
    matches: pl.DataFrame,
    matrix: Any,
    label_matrix: Any,
    *,
    prior: float | None = 1e-3,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Add heldout_{f1,precision,recall} with _low and _high, and heldout_support, to a table of matches.

    `matches` needs feature, label, threshold; matrix [n, d_sae] and label_matrix [n, n_labels] hold
    documents the matches were not found on. The intervals are percentiles over bootstrap samples of
    documents. A pair's scores depend on its documents only through the four counts, and those of a resample
    are multinomial, so drawing them is the bootstrap itself. Each pair has its own stream of random
    numbers: other rows change nothing.

    Null, never 0: everything where no held-out document carries the label; precision where the probe never
    fires.
    """
    import polars as pl

    feature, label = matches["feature"].to_numpy(), matches["label"].to_numpy()
    matrix, labels = check_matrix(matrix), check_labels(label_matrix)
    counts = confusion(matrix, labels, feature, label, matches["threshold"].to_numpy())
    support = counts.tp + counts.fn
    f1 = np.where(support > 0, calibrated_f1(*counts, prior=prior), np.nan)
    names = ("f1", "precision", "recall")
    bounds = np.full((len(feature), 3, 2), np.nan)
    tail = 100 * (1 - confidence) / 2
    cells = np.stack(counts, axis=1) / max(matrix.shape[0], 1)
    for row in np.flatnonzero(support > 0):
        rng = np.random.default_rng(np.random.SeedSequence([seed, 1, int(feature[row]), int(label[row])]))
        tp, fp, fn, tn = rng.multinomial(matrix.shape[0], cells[row], size=n_bootstrap).T
        with np.errstate(invalid="ignore"):
            samples = (
                np.where(tp + fn > 0, calibrated_f1(tp, fp, fn, tn, prior=prior), np.nan),
                tp / (tp + fp),
                tp / (tp + fn),
            )
        for i, sample in enumerate(samples):
            defined = sample[
                ~np.isnan(sample)
            ]  # a resample without the label, or without a firing, has no value
            if len(defined):
                bounds[row, i] = np.percentile(defined, [tail, 100 - tail])
    values = np.stack([f1, counts.precision, counts.recall], axis=1)
    return matches.with_columns(
        *(
            pl.Series(f"heldout_{name}{suffix}", column, dtype=pl.Float64).fill_nan(None)
            for i, name in enumerate(names)
            for suffix, column in (("", values[:, i]), ("_low", bounds[:, i, 0]), ("_high", bounds[:, i, 1]))
        ),
        pl.Series("heldout_support", support),
    )


def permutation_null(
    scores: Scores, matches: pl.DataFrame, *, n_permutations: int = 20, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Score again with the labels shuffled over documents; return (matches with q_value, a table per label).

    A permutation moves whole rows of the label matrix, so supports and the labels' overlap stay as they
    are. For a match with score s of label l, V = null scores of l that reach s (all features, all
    permutations) and R = real scores of l that reach s, the false-discovery estimate is min(1, (1 + V) /
    ((1 + n_permutations) · R)), and the q-value its minimum over the scores at or below s. The 1s count the
    real labelling as one of the permutations (Phipson & Smyth 2010), so a q-value is never 0 and never
    below 1 / ((1 + n_permutations) · R).

    Per label: label, support, n_matches, best_f1, null_f1 (the median over permutations of the best null
    score), null_f1_max, p_value (of the label's best score against the best null scores), fdr (the
    estimated share of false ones among its listed matches), expected_false (that share times their number).
    """
    import polars as pl

    if n_permutations < 1:
        raise TagsteerError(
            f"n_permutations = {n_permutations}: wanted at least 1 (20 gives q-values down to 0.05 / R)"
        )
    label, f1 = matches["label"].to_numpy(), matches["f1"].to_numpy()
    order = np.lexsort((f1, label))
    cuts, n_labels = f1[order], scores.n_labels
    ptr = np.searchsorted(label[order], np.arange(n_labels + 1))
    real, null = np.zeros(len(cuts), np.int64), np.zeros(len(cuts), np.int64)
    best = np.zeros((n_permutations + 1, n_labels))  # row 0: the real labels
    with track("permutations", n_permutations + 1, "pass") as bar:
        for p in range(n_permutations + 1):
            labels = scores.labels if p == 0 else permuted(scores.labels, seed, p)
            for _, block, _ in scores.blocks(labels):
                kernels.count_exceeding(block, ptr, cuts, real if p == 0 else null)
                np.maximum(best[p], block.max(axis=0, initial=0.0), out=best[p])
            bar.advance()
    q = np.empty(len(cuts))
    fdr = np.full(n_labels, np.nan)
    for lab in np.unique(label):
        at = slice(int(ptr[lab]), int(ptr[lab + 1]))
        reach_real = np.maximum(np.cumsum(real[at][::-1])[::-1], 1)
        reach_null = np.cumsum(null[at][::-1])[::-1]
        estimate = np.minimum(1.0, (1 + reach_null) / ((1 + n_permutations) * reach_real))
        q[at] = np.minimum.accumulate(estimate)
        # Equal cuts are counted at the last of them; the first of a run sees all, so the others take its
        # value.
        first = np.searchsorted(cuts[at], cuts[at])
        q[at], fdr[lab] = q[at][first], estimate[0]
    q_value = np.empty(len(cuts))
    q_value[order] = q
    listed = np.diff(ptr)
    per_label = pl.DataFrame(
        {
            "label": np.arange(n_labels),
            "support": scores.support,
            "n_matches": listed,
            "best_f1": best[0],
            "null_f1": np.median(best[1:], axis=0),
            "null_f1_max": best[1:].max(axis=0),
            "p_value": (1 + (best[1:] >= best[0]).sum(axis=0)) / (1 + n_permutations),
            "fdr": fdr,
            "expected_false": fdr * listed,
        }
    ).with_columns(pl.col("fdr", "expected_false").fill_nan(None))
    return matches.with_columns(pl.Series("q_value", q_value, dtype=pl.Float64)), per_label


def permuted(labels: LabelSet, seed: int, number: int) -> LabelSet:
    """The labels with their rows in a random order that depends on (seed, number) alone."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2, number]))
    matrix = labels.matrix[rng.permutation(labels.matrix.shape[0])]
    return LabelSet(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), labels.support, labels.weight, matrix
    )


def duplicate_groups(
    matches: pl.DataFrame,
    matrix: Any,
    decoder: Any = None,
    *,
    min_jaccard: float = 0.5,
    min_cosine: float = 0.7,
) -> pl.DataFrame:
    """Group near-duplicate features of each label: add group, representative, group_size, jaccard, cosine.

    Two features of a label are near-duplicates if the documents on which their probes fire overlap (Jaccard
    index >= min_jaccard) and their decoder rows point the same way (cosine >= min_cosine; not asked without
    `decoder`, [d_sae, d_model], numpy or torch). Going down the scores, each feature joins the best
    representative it duplicates or becomes one itself, so every member is close to its representative and
    chains don't form. `group` is the representative's feature; jaccard and cosine are a member's with its
    representative (1 for itself; cosine null without a decoder).
    """
    import polars as pl

    matrix = check_matrix(matrix)
    label, f1, feature = (matches[name].to_numpy() for name in ("label", "f1", "feature"))
    threshold = matches["threshold"].to_numpy()
    directions = None if decoder is None else _unit_rows(decoder, feature)
    group, jaccard, cosine = feature.copy(), np.ones(len(feature)), np.ones(len(feature))
    if decoder is None:
        cosine[:] = np.nan
    unique, column = np.unique(feature, return_inverse=True)
    csc = columns(matrix, unique)
    for lab in np.unique(label):
        rows = np.flatnonzero(label == lab)
        rows = rows[np.lexsort((feature[rows], -f1[rows]))]
        overlap = _jaccard(csc, column[rows], threshold[rows])
        near = overlap >= min_jaccard
        angle = None
        if directions is not None:
            angle = directions[rows] @ directions[rows].T
            near &= angle >= min_cosine
        leaders: list[int] = []
        for i, row in enumerate(rows):
            leader = next((j for j in leaders if near[i, j]), None)
            if leader is None:
                leaders.append(i)
                continue
            group[row], jaccard[row] = feature[rows[leader]], overlap[i, leader]
            if angle is not None:
                cosine[row] = angle[i, leader]
    return matches.with_columns(
        pl.Series("group", group),
        pl.Series("representative", group == feature),
        pl.Series("jaccard", jaccard),
        pl.Series("cosine", cosine, dtype=pl.Float64).fill_nan(None),
    ).with_columns(pl.len().over("label", "group").cast(pl.Int64).alias("group_size"))


def _jaccard(csc: Any, column: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of the documents on which the probes fire, [n, n]; 0 where neither ever fires."""
    part = csc[:, column]
    fires = part.data > np.repeat(threshold, np.diff(part.indptr))
    part = type(part)((fires.astype(np.float64), part.indices, part.indptr), shape=part.shape)
    both = (part.T @ part).toarray()
    size = np.diag(both)
    either = size[:, None] + size[None, :] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def _unit_rows(decoder: Any, feature: np.ndarray) -> np.ndarray:
    """The decoder rows of these features, float64 [n, d_model], of length 1 (a zero row stays zero)."""
    n = decoder.shape[0]
    if len(feature) and feature.max() >= n:
        raise TagsteerError(
            f"feature {feature.max()} has no row in a decoder of {n:,}: pass the decoder of the same SAE"
        )
    if hasattr(decoder, "detach"):  # torch: pick the rows before they leave their device
        rows = decoder.detach()[feature.tolist()].double().cpu().numpy()
    else:
        rows = np.asarray(decoder)[feature].astype(np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
