"""How near a judged text is to its concept and its instruction, by MiniLM vectors of texts, sentences and words.

Turns texts and an embedder into named numbers. Must not know ratings, rules or learners.
The late-interaction mean (each concept word's best match in the text) is ColBERT's (Khattab & Zaharia 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tagsteer.judge.embedder import WIDTH, SentenceEmbedder, TokenEmbeddings
from tagsteer.judge.features import STOP_WORDS, WordWeights, concept_core, content_words, sentences, words

WINDOW = 24
"""Tokens of a sliding window, moved by half its width: a sentence's length where there are no sentences."""
MOST_WORDS = 160
"""Distinct words of a text that are compared one by one; a text of 128 tokens has fewer."""

_PLACES = (
    "whole",
    "best_sentence",
    "mean_sentence",
    "first_sentence",
    "last_sentence",
    "best_window",
    "last_window",
)
_WORDS = ("best_word", "top3_words", "top10_words", "near_words", "late", "late_least")
SIMILARITIES = (
    *(f"core_{n}" for n in (*_PLACES, *_WORDS)),
    *(f"full_{n}" for n in (*_PLACES, *_WORDS)),
    *(f"instruction_{n}" for n in (*_PLACES, *_WORDS)),
    "tokens_late", "tokens_late_least", "tokens_best", "tokens_top10",
    "core_instruction", "full_instruction", "core_beyond_instruction",
    "adjacent_mean", "adjacent_least", "token_unity", "window_spread", "pieces_per_word", "known_pieces",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Unit vectors of words by themselves, embedded once each."""

    embedder: SentenceEmbedder
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def learn(self, wanted: Iterable[str]) -> None:
        """Embed the words that are not known yet, in one go."""
        new = sorted({w for w in wanted if w not in self.known})
        # A run's vocabulary is small; a hostile one must not fill memory (1 kB a word).
        if len(self.known) + len(new) > 400_000:
            self.known.clear()
            new = sorted(set(wanted))
        vectors = self.embedder.embed(new).astype(np.float16)
        self.known.update(zip(new, vectors, strict=True))

    def __call__(self, wanted: Sequence[str]) -> np.ndarray:
        """float32 [words, 384]; words must have been learned."""
        if not wanted:
            return np.zeros((0, WIDTH), np.float32)
        return np.stack([self.known[w] for w in wanted]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Query:
    """A concept or an instruction, ready to be looked for in many texts."""

    vector: np.ndarray
    """Unit vector [384]."""
    content: tuple[str, ...]
    weights: np.ndarray
    """How telling each content word is [content], summing to 1."""
    tokens: np.ndarray
    """Unit contextual vectors of the tokens [tokens, 384]."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Computes SIMILARITIES for texts; concepts and instructions are embedded once each and kept."""

    embedder: SentenceEmbedder
    weight: WordWeights
    word_vectors: WordVectors
    _queries: dict[str, Query] = field(default_factory=dict)

    @classmethod
    def of(cls, embedder: SentenceEmbedder) -> Similarity:
        # BERT's vocabulary is ordered by frequency: a free table of how common a word is.
        vocabulary = embedder.tokenizer.get_vocab()
        ordered = sorted((i, t) for t, i in vocabulary.items() if t.isalpha() and len(t) > 1)
        return cls(embedder, WordWeights({t: n for n, (_, t) in enumerate(ordered)}), WordVectors(embedder))

    def queries(self, texts: Iterable[str], frame: bool) -> None:
        """Embed concepts (`frame`: without the vocabulary of explanations) or instructions not seen before."""
        new = list(dict.fromkeys(t for t in texts if t not in self._queries))
        if len(self._queries) + len(new) > 20_000:
            self._queries.clear()
        content = [tuple(dict.fromkeys(content_words(t, frame)))[:64] for t in new]
        self.word_vectors.learn(w for c in content for w in c)
        for text, kept, embedded in zip(new, content, self.embedder.embed_tokens(new), strict=True):
            weights = np.array([max(self.weight(w), 0.05) for w in kept], np.float32)
            self._queries[text] = Query(
                embedded.pooled,
                kept,
                weights / max(weights.sum(), 1e-9),
                _unit(_telling(embedded, text, set(kept))),
            )

    def __call__(
        self,
        concepts: Sequence[str],
        instructions: Sequence[str],
        texts: Sequence[str],
        embedded: Sequence[TokenEmbeddings] | None = None,
    ) -> np.ndarray:
        """float32 [texts, len(SIMILARITIES)]; `embedded` are the texts' token vectors, where they are known."""
        self.queries([*map(concept_core, concepts), *concepts], frame=True)
        self.queries(instructions, frame=False)
        if embedded is None:
            embedded = self.embedder.embed_tokens(texts)
        own = [_distinct_words(t) for t in texts]
        self.word_vectors.learn(w for kept in own for w in kept)
        out = np.zeros((len(texts), len(SIMILARITIES)), np.float32)
        for row, (concept, instruction, text) in enumerate(zip(concepts, instructions, texts, strict=True)):
            asked = (self._queries[concept_core(concept)], self._queries[concept], self._queries[instruction])
            out[row] = self._row(asked, text, embedded[row], own[row])
        return out

    def _row(
        self, asked: tuple[Query, Query, Query], text: str, e: TokenEmbeddings, own: list[str]
    ) -> list[float]:
        core, full, instruction = asked
        if not len(e.vectors):
            return [0.0] * len(SIMILARITIES)
        units = _spans(e, sentences(text))
        windows = _unit(np.stack([e.vectors[a : a + WINDOW].mean(0) for a in _starts(len(e.vectors))]))
        tokens = _unit(e.vectors)
        vectors = self.word_vectors(own)
        values: list[float] = []
        for query in asked:
            values += _places(query.vector, e.pooled, units, windows)
            values += self._words(query, vectors)
        near = (
            core.tokens @ tokens.T if len(core.tokens) else np.zeros((1, len(tokens)), np.float32)
        )  # (core, text)
        best = near.max(1)
        values += [best.mean(), best.min(), best.max(), _top(near.max(0), 10)]
        both, shared = float(e.pooled @ core.vector), float(core.vector @ instruction.vector)
        values += [
            shared,
            float(full.vector @ instruction.vector),
            both - shared * float(e.pooled @ instruction.vector),
        ]
        adjacent = (windows[:-2:2] * windows[2::2]).sum(1) if len(windows) > 2 else np.ones(1, np.float32)
        n_words = max(len(words(text)), 1)
        values += [
            adjacent.mean(), adjacent.min(), float(np.linalg.norm(tokens.mean(0))), float((windows @ e.pooled).std()),
            len(tokens) / n_words, sum(w in self.weight.rank for w in own) / max(len(own), 1),
        ]  # fmt: skip
        return values

    def _words(self, query: Query, vectors: np.ndarray) -> list[float]:
        if not len(vectors):
            return [0.0] * len(_WORDS)
        near = vectors @ query.vector  # (words,)
        late = (
            (self.word_vectors(query.content) @ vectors.T).max(1)
            if query.content
            else np.zeros(1, np.float32)
        )
        weights = query.weights if query.content else np.ones(1, np.float32)
        return [
            near.max(),
            _top(near, 3),
            _top(near, 10),
            float((near > 0.4).sum()),
            float(late @ weights),
            late.min(),
        ]


def _places(query: np.ndarray, pooled: np.ndarray, units: np.ndarray, windows: np.ndarray) -> list[float]:
    by_sentence, by_window = units @ query, windows @ query
    return [
        float(pooled @ query),
        by_sentence.max(),
        by_sentence.mean(),
        by_sentence[0],
        by_sentence[-1],
        by_window.max(),
        by_window[-1],
    ]


def _spans(e: TokenEmbeddings, spans: list[tuple[int, int]]) -> np.ndarray:
    """Unit means of the tokens of each character span [spans, 384]; spans without tokens are left out."""
    starts, sums = e.spans[:, 0], np.vstack([np.zeros(WIDTH, np.float32), np.cumsum(e.vectors, 0)])
    cuts = [(np.searchsorted(starts, a), np.searchsorted(starts, b)) for a, b in spans]
    kept = [sums[b] - sums[a] for a, b in cuts if b > a]
    return _unit(np.stack(kept)) if kept else e.pooled[None]


def _telling(e: TokenEmbeddings, text: str, content: set[str]) -> np.ndarray:
    """Token vectors of the content words of a text; all of them if it has none."""
    low = text.lower()
    rows = [
        i
        for i, (a, b) in enumerate(e.spans)
        if any(low[a:b] in w for w in content) and low[a:b] not in STOP_WORDS
    ]
    return e.vectors[rows] if rows else e.vectors


def _starts(n: int) -> range:
    return range(0, max(n - WINDOW // 2, 1), WINDOW // 2)


def _distinct_words(text: str) -> list[str]:
    kept = dict.fromkeys(w for w in words(text) if w not in STOP_WORDS and len(w) > 1 and len(w) < 40)
    return list(kept)[:MOST_WORDS]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _top(values: np.ndarray, n: int) -> float:
    return float(np.sort(values)[-n:].mean())
