"""The learned judge's inputs: every number of `features` and `similarity` side by side, under one list of names.

Must not know ratings or learners. The names are part of the weights: a judge refuses inputs that it was not
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from tagsteer.judge.features import OVERLAP, STATISTICS, concept_core, overlap, statistics
from tagsteer.judge.similarity import SIMILARITIES

if TYPE_CHECKING:
    from tagsteer.judge.embedder import TokenEmbeddings
    from tagsteer.judge.similarity import Similarity
    from tagsteer.lm.model import LanguageModel

COMPONENTS = 32
"""Principal components of a text's own vector: what kind of text it is (a list, a poem, a refusal, noise)."""
INPUTS: tuple[str, ...] = (
    *SIMILARITIES,
    *STATISTICS,
    *(f"{where}_word_{name}" for where in ("core", "full", "instruction") for name in OVERLAP),
    *(f"text_component_{i}" for i in range(COMPONENTS)),
)
"""Names of the columns of `judge_inputs`, in order."""
SURPRISE_INPUTS = (
    "surprise_per_char", "surprise_mean", "surprise_median", "surprise_std", "surprise_first", "surprise_last",
    "surprise_worst_window", "surprise_best_window", "surprise_high_share", "surprise_low_share",
)  # fmt: skip
"""Names of the columns of `surprise_inputs`."""
_READ = ("mean", "most", "gain_mean", "gain_sum", "gain_best", "gain_share")
SLOW_INPUTS = (*SURPRISE_INPUTS, *(f"topic_{n}" for n in _READ), *(f"request_{n}" for n in _READ))
"""Names of the columns of `slow_inputs`: what a language model adds, read only where the judge is told to."""


@cache
def text_basis() -> tuple[np.ndarray, np.ndarray]:
    """(mean [384], components [384, COMPONENTS]) of MiniLM vectors of generated texts; part of the inputs' meaning.

    Written by `python -m benchmarks.train_judge --basis`.
    """
    from safetensors.numpy import load_file

    path = resources.files("tagsteer.judge").joinpath("weights/text_basis.safetensors")
    held = load_file(str(path))
    return held["mean"].astype(np.float32), held["components"].astype(np.float32)


def judge_inputs(
    similarity: Similarity,
    concepts: Sequence[str],
    instructions: Sequence[str],
    texts: Sequence[str],
    embedded: Sequence[TokenEmbeddings] | None = None,
) -> np.ndarray:
    """float32 [texts, len(INPUTS)]; deterministic for each text up to the rounding of the embedder's batches."""
    if embedded is None:
        embedded = similarity.embedder.embed_tokens(texts)
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
    mean, components = text_basis()
    kind = (np.stack([e.pooled for e in embedded]) - mean) @ components
    return np.concatenate([near, np.stack(counts), np.stack(shared), kind], axis=1).astype(np.float32)


class Reader:
    """Computes SLOW_INPUTS with a language model; what a topic or a request surprises alone is kept."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._alone: dict[tuple[str, str], np.ndarray] = {}

    def __call__(
        self, concepts: Sequence[str], instructions: Sequence[str], texts: Sequence[str]
    ) -> np.ndarray:
        """float32 [texts, len(SLOW_INPUTS)]; NaN where there is nothing to read."""
        from tagsteer.judge.perplexity import read_for

        if not len(texts):
            return np.zeros((0, len(SLOW_INPUTS)), np.float32)
        topics = [concept_core(c) for c in concepts]
        self._learn("topic", topics)
        self._learn("request", instructions)
        found = read_for(self.model, texts, topics, instructions)
        own = surprise_inputs([s for s, _, _ in found], texts)
        topic = [_read(s, self._alone["topic", t]) for (_, s, _), t in zip(found, topics, strict=True)]
        request = [
            _read(s, self._alone["request", i]) for (_, _, s), i in zip(found, instructions, strict=True)
        ]
        return np.concatenate([own, np.stack(topic), np.stack(request)], axis=1).astype(np.float32)

    def _learn(self, part: str, wanted: Sequence[str]) -> None:
        from tagsteer.judge.perplexity import read_for

        if len(self._alone) > 20_000:
            self._alone.clear()
        new = [w for w in dict.fromkeys(wanted) if (part, w) not in self._alone]
        blank = [""] * len(new)
        pairs = (new, blank) if part == "topic" else (blank, new)
        for w, (_, topic, request) in zip(new, read_for(self.model, blank, *pairs), strict=True):
            self._alone[part, w] = topic if part == "topic" else request


def _read(after: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """_READ of one topic or request: its surprise after the text, and how much less that is than without."""
    if not len(after):
        return np.full(len(_READ), np.nan, np.float32)
    gain = alone - after
    return np.array(
        [after.mean(), after.max(), gain.mean(), gain.sum(), gain.max(), (gain > 0.5).mean()], np.float32
    )


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
