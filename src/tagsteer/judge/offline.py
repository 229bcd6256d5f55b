"""The offline judge by rules: three ratings from text alone, without a key, a network or training.

Concept and instruction come from MiniLM similarities, fluency from repetition and, if a model is given, its
surprise; each number is mapped to 0-2 by the piecewise-linear rules below. The floor that the trained judge of
`learned.py` is measured against. Must not know SAEs, methods or strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.judge.features import STATISTICS, statistics
from tagsteer.judge.types import PARTS, JudgeItem, Rating, check_keys

if TYPE_CHECKING:
    from tagsteer.judge.similarity import Similarity
    from tagsteer.lm.model import LanguageModel

NAME = "offline judge, not gpt-4o-mini"
CHUNK = 256
"""Texts embedded together; it bounds the memory, and ratings arrive by chunks."""

Surprise = Callable[[Sequence[str]], "np.ndarray | Sequence[float]"]

# (value, rating) corners of piecewise-linear maps, flat beyond their ends. Read off isotonic fits to 5,127 ratings
# by gpt-4o-mini over 81 concepts, half of the concepts also reduced to a tag of one to three words, and rounded:
# one map serves long explanations and short tags.
CONCEPT_RULE = ((0.24, 0.0), (0.31, 0.1), (0.36, 0.25), (0.44, 0.58), (0.56, 0.87), (0.85, 1.05), (0.98, 1.3))
"""Of the mean of `tokens_late` and `core_late`: how well each word of the concept is matched in the text."""
INSTRUCTION_RULE = ((0.22, 0.05), (0.40, 0.9), (0.51, 1.4), (0.62, 1.67), (0.80, 1.87), (0.90, 1.95))
"""Of the mean of the instruction's similarity to the text, to its best window, and to its words."""
FLUENCY_RULES = {
    "compression": ((0.12, 0.0), (0.33, 0.05), (0.42, 0.5), (0.52, 2.0)),
    "longest_run": ((2, 2.0), (6, 0.6), (11, 0.0)),
    "repeated_4": ((0.1, 2.0), (0.2, 0.9), (0.4, 0.4), (0.75, 0.0)),
    "top_word": ((0.17, 2.0), (0.25, 0.8), (0.35, 0.1), (0.6, 0.0)),
    "distinct_1": ((0.15, 0.0), (0.34, 0.1), (0.44, 0.6), (0.55, 2.0)),
    "char_entropy": ((2.6, 0.0), (3.3, 0.1), (3.8, 0.8), (4.1, 2.0)),
}
"""Each repetition count caps the rating; the lowest cap counts."""
SURPRISE_RULE = ((0.55, 2.0), (0.9, 1.0), (1.3, 0.4), (2.0, 0.0))
"""Nats per character under the unsteered model."""
WHOLE, CUT = 1.3, 1.05
"""Fluency of a text without fault that ends with a sentence, and of one that is cut (judges mark that down)."""


def piecewise(corners: Sequence[tuple[float, float]], value: np.ndarray | float) -> np.ndarray:
    """Linear between the corners (value, rating), flat outside."""
    at, rating = zip(*corners, strict=True)
    return np.interp(value, at, rating)


class RuleJudge:
    """Judges by the rules of this file. `surprise` maps texts to nats per character (or give a LanguageModel).

    An empty text is rated 0, 0, 0. Without `surprise` fluency knows repetition only, and `describe()` says so.
    """

    name = NAME
    version = "rules-1"

    def __init__(
        self, surprise: Surprise | LanguageModel | None = None, *, device: str = "cpu", dtype: str = "auto"
    ) -> None:
        self._surprise = _as_callable(surprise)
        self._device, self._dtype = device, dtype

    def describe(self) -> str:
        fluency = "repetition and perplexity" if self._surprise else "repetition"
        return f"{self.name} ({self.version}: MiniLM similarities and word overlap; fluency by {fluency})"

    @cached_property
    def _similarity(self) -> Similarity:
        from tagsteer.judge.embedder import load_embedder
        from tagsteer.judge.similarity import Similarity

        return Similarity.of(load_embedder(self._device, self._dtype))

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """(key, rating) in the order of the items, by chunks."""
        check_keys(items)
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            for item, values in zip(chunk, self._values(chunk), strict=True):
                yield item.key, as_rating(values, self.describe())

    def _values(self, items: Sequence[JudgeItem]) -> np.ndarray:
        from tagsteer.judge.similarity import SIMILARITIES

        texts = [i.generation for i in items]
        near = self._similarity([i.concept for i in items], [i.instruction for i in items], texts)
        column = {n: near[:, k] for k, n in enumerate(SIMILARITIES)}
        out = ratings_by_rules(column, texts, self._surprise(texts) if self._surprise else None)
        out[[not t.strip() for t in texts]] = 0.0
        return out


def ratings_by_rules(
    column: Mapping[str, np.ndarray],
    texts: Sequence[str],
    surprise: np.ndarray | Sequence[float] | None = None,
) -> np.ndarray:
    """Concept, instruction and fluency [texts, 3] from similarities by name, each [texts] (similarity.SIMILARITIES)."""
    concept = piecewise(CONCEPT_RULE, (column["tokens_late"] + column["core_late"]) / 2)
    topic = (column["instruction_whole"] + column["instruction_best_window"] + column["instruction_late"]) / 3
    return np.stack([concept, piecewise(INSTRUCTION_RULE, topic), fluency_by_rules(texts, surprise)], axis=1)


def fluency_by_rules(
    texts: Sequence[str], surprise: np.ndarray | Sequence[float] | None = None
) -> np.ndarray:
    """Fluency 0-2 of each text [texts]: the lowest of the caps of FLUENCY_RULES and SURPRISE_RULE."""
    counts = np.stack([statistics(t) for t in texts]) if len(texts) else np.zeros((0, len(STATISTICS)))
    column = {n: counts[:, k] for k, n in enumerate(STATISTICS)}
    rating = np.where(column["ends_sentence"] > 0, WHOLE, CUT)
    # A few words can neither repeat nor compress.
    long = column["chars"] >= 100
    for name, corners in FLUENCY_RULES.items():
        rating = np.minimum(
            rating, np.where(long | (name == "longest_run"), piecewise(corners, column[name]), 2.0)
        )
    if surprise is not None:
        known = np.asarray(surprise, float)
        cap = piecewise(SURPRISE_RULE, np.nan_to_num(known, nan=0.0))
        rating = np.minimum(rating, np.where(long & ~np.isnan(known), cap, 2.0))
    return np.where([bool(t.strip()) for t in texts], rating, 0.0)


def as_rating(values: Sequence[float] | np.ndarray, judge: str, integers: bool = False) -> Rating:
    """A Rating from three expected values; NaN becomes missing with its reason, `integers` rounds to 0, 1, 2."""
    kept: list[float | None] = []
    reasons = {}
    for part, value in zip(PARTS, values, strict=True):
        if np.isnan(value):
            reasons[part] = "the offline judge gave no number"
            kept.append(None)
        else:
            clipped = min(max(float(value), 0.0), 2.0)
            kept.append(float(round(clipped)) if integers else clipped)
    return Rating(kept[0], kept[1], kept[2], reasons, judge)


def _as_callable(surprise: Surprise | LanguageModel | None) -> Surprise | None:
    if surprise is None:
        return None
    if hasattr(surprise, "hf"):
        from tagsteer.judge.perplexity import surprise_per_character

        model = surprise
        return lambda texts: surprise_per_character(model, texts)  # type: ignore[arg-type]
    if not callable(surprise):
        raise TagsteerError(
            f"cannot take surprise from a {type(surprise).__name__}: give a LanguageModel, or a function from texts"
            " to nats per character"
        )
    return surprise
