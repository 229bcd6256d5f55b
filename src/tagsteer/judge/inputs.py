"""The learned judge's inputs: every number of `features` and `similarity` side by side, under one list of names.

Must not know ratings or learners. The names are part of the weights: a judge refuses inputs that it was not
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tagsteer.judge.features import OVERLAP, STATISTICS, concept_core, overlap, statistics
from tagsteer.judge.similarity import SIMILARITIES

if TYPE_CHECKING:
    from tagsteer.judge.embedder import TokenEmbeddings
    from tagsteer.judge.similarity import Similarity

INPUTS: tuple[str, ...] = (
    *SIMILARITIES,
    *STATISTICS,
    *(f"{where}_word_{name}" for where in ("core", "full", "instruction") for name in OVERLAP),
)
"""Names of the columns of `judge_inputs`, in order."""
SURPRISE_INPUTS = (
    "surprise_per_char", "surprise_mean", "surprise_median", "surprise_std", "surprise_first", "surprise_last",
    "surprise_worst_window", "surprise_best_window", "surprise_high_share", "surprise_low_share",
)  # fmt: skip
"""Names of the columns of `surprise_inputs`: the slow group, absent from a judge trained without it."""


def judge_inputs(
    similarity: Similarity,
    concepts: Sequence[str],
    instructions: Sequence[str],
    texts: Sequence[str],
    embedded: Sequence[TokenEmbeddings] | None = None,
) -> np.ndarray:
    """float32 [texts, len(INPUTS)]; deterministic for each text up to the rounding of the embedder's batches."""
    near = similarity(concepts, instructions, texts, embedded)
    counts = [statistics(t) for t in texts]
    shared = [
        np.concatenate(
            [
                overlap(concept_core(c), t, similarity.weight),
                overlap(c, t, similarity.weight),
                overlap(i, t, similarity.weight, frame=False),
            ]
        )
        for c, i, t in zip(concepts, instructions, texts, strict=True)
    ]
    if not counts:
        return np.zeros((0, len(INPUTS)), np.float32)
    return np.concatenate([near, np.stack(counts), np.stack(shared)], axis=1).astype(np.float32)


def surprise_inputs(surprise: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, len(SURPRISE_INPUTS)] from token surprises (`perplexity.token_surprise`); NaN without tokens."""
    out = np.full((len(texts), len(SURPRISE_INPUTS)), np.nan, np.float32)
    for row, (s, text) in enumerate(zip(surprise, texts, strict=True)):
        if len(s) == 0 or not text:
            continue
        thirds = [part.mean() for part in np.array_split(s, min(3, len(s)))]
        sums = np.concatenate([[0.0], np.cumsum(s, dtype=float)])
        width = min(16, len(s))
        windows = (sums[width:] - sums[:-width]) / width
        out[row] = (
            s.sum() / len(text), s.mean(), np.median(s), s.std(), thirds[0], thirds[-1], windows.max(), windows.min(),
            (s > 7).mean(), (s < 0.1).mean(),
        )  # fmt: skip
    return out
