"""How near a judged text is to its concept and its instruction, by MiniLM vectors of texts, sentences, words.

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
BACKGROUND_WORDS = 600
"""Words spread over the vocabulary's ranks: what a similarity to any word would be, for each concept."""

_PLACES = (
    "whole",
    "best_sentence",
    "mean_sentence",
    "first_sentence",
    "last_sentence",
    "best_window",
    "last_window",
)
_WORDS = ("best_word", "top3_words", "top10_words", "late", "late_least", "beyond_any", "late_beyond_any")
_WORD_LEVELS, _TOKEN_LEVELS, _LATE_LEVELS = (
    (0.25, 0.35, 0.45, 0.55, 0.65),
    (0.4, 0.5, 0.6, 0.7, 0.8),
    (0.5, 0.7, 0.9),
)
SIMILARITIES = (
    *(f"core_{n}" for n in (*_PLACES, *_WORDS)),
    *(f"full_{n}" for n in (*_PLACES, *_WORDS)),
    *(f"instruction_{n}" for n in (*_PLACES, *_WORDS)),
    "tokens_late", "tokens_late_least", "tokens_best", "tokens_top10",
    "tokens_quarter_least", "tokens_quarter_mean", "tokens_quarter_last", "window_least", "window_mean", "window_std",
    *(f"words_above_{round(100 * level)}" for level in _WORD_LEVELS),
    *(f"tokens_above_{round(100 * level)}" for level in _TOKEN_LEVELS),
    *(f"late_above_{round(100 * level)}" for level in _LATE_LEVELS),
    "core_instruction", "full_instruction", "core_beyond_instruction", "instruction_late_core",
    "instruction_tokens_core", "late_beyond_instruction", "tokens_beyond_instruction",
    "core_any_median", "core_any_high", "core_words", "full_words", "core_rarity", "instruction_words",
    "adjacent_mean", "adjacent_least", "token_unity", "window_spread", "pieces_per_word", "known_pieces",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Unit vectors of words by themselves, embedded once each."""

    embedder: SentenceEmbedder
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def learn(self, wanted: Iterable[str]) -> None:
        """Embed the words that are not known yet, in one go."""
        wanted = set(wanted)
        new = sorted(w for w in wanted if w not in self.known)
        # A run's vocabulary is small; a hostile one must not fill memory (1 kB a word).
        if len(self.known) + len(new) > 400_000:
            self.known.clear()
            new = sorted(wanted)
        self.known.update(zip(new, self.embedder.embed(new).astype(np.float16), strict=True))

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
    words: np.ndarray
    """Unit vectors of the content words by themselves [content, 384]."""
    weights: np.ndarray
    """How telling each content word is [content], summing to 1."""
    tokens: np.ndarray
    """Unit contextual vectors of the content words' tokens [tokens, 384]."""
    any_word: tuple[float, float]
    """Median and 98th percentile of the similarity of any word (the background) to `vector`."""
    any_late: float
    """What `late` would be for the 98th percentile of background words."""
    rarity: float
    """Mean of the content words' unnormalised weights."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Computes SIMILARITIES for texts; concepts and instructions are embedded once each and kept."""

    embedder: SentenceEmbedder
    weight: WordWeights
    word_vectors: WordVectors
    background: np.ndarray
    """Unit vectors of words spread over the vocabulary [BACKGROUND_WORDS, 384]."""
    _queries: dict[str, Query] = field(default_factory=dict)

    @classmethod
    def of(cls, embedder: SentenceEmbedder) -> Similarity:
        """Ready to compare; embeds the background words."""
        # BERT's vocabulary is ordered by frequency: a free table of how common a word is.
        vocabulary = embedder.tokenizer.get_vocab()
        ordered = [t for _, t in sorted((i, t) for t, i in vocabulary.items() if t.isalpha() and len(t) > 1)]
        any_words = [w for w in ordered if len(w) > 3 and w.isascii() and w not in STOP_WORDS]
        step = len(any_words) / BACKGROUND_WORDS
        background = embedder.embed([any_words[int(i * step)] for i in range(BACKGROUND_WORDS)])
        return cls(
            embedder, WordWeights({t: n for n, t in enumerate(ordered)}), WordVectors(embedder), background
        )

    def queries(self, texts: Iterable[str], frame: bool) -> None:
        """Embed concepts (`frame`: without the vocabulary of explanations) or instructions not seen before."""
        new = list(dict.fromkeys(t for t in texts if t not in self._queries))
        if len(self._queries) + len(new) > 20_000:
            self._queries.clear()
        content = [tuple(dict.fromkeys(content_words(t, frame)))[:64] for t in new]
        self.word_vectors.learn(w for c in content for w in c)
        for text, kept, embedded in zip(new, content, self.embedder.embed_tokens(new), strict=True):
            telling = np.array([max(self.weight(w), 0.05) for w in kept], np.float32)
            weights, own = telling / max(telling.sum(), 1e-9), self.word_vectors(kept)
            near = self.background @ embedded.pooled
            any_late = np.quantile(own @ self.background.T, 0.98, axis=1) @ weights if kept else 0.0
            self._queries[text] = Query(
                vector=embedded.pooled,
                content=kept,
                words=own,
                weights=weights,
                tokens=_unit(_telling(embedded, text, set(kept))),
                any_word=(float(np.median(near)), float(np.quantile(near, 0.98))),
                any_late=float(any_late),
                rarity=float(telling.mean()) if kept else 1.0,
            )

    def __call__(
        self,
        concepts: Sequence[str],
        instructions: Sequence[str],
        texts: Sequence[str],
        embedded: Sequence[TokenEmbeddings] | None = None,
    ) -> np.ndarray:
        """float32 [texts, len(SIMILARITIES)]; `embedded` are the texts' token vectors, where they are known."""
        # One call for all: clearing a full memory between two calls would lose what the first has put there.
        self.queries([*map(concept_core, concepts), *concepts], frame=True)
        asked_concepts = [(self._queries[concept_core(c)], self._queries[c]) for c in concepts]
        self.queries(instructions, frame=False)
        if embedded is None:
            embedded = self.embedder.embed_tokens(texts)
        own = [_distinct_words(t) for t in texts]
        self.word_vectors.learn(w for kept in own for w in kept)
        out = np.zeros((len(texts), len(SIMILARITIES)), np.float32)
        for row, (instruction, text) in enumerate(zip(instructions, texts, strict=True)):
            if len(embedded[row].vectors):
                asked = (*asked_concepts[row], self._queries[instruction])
                out[row] = self._row(asked, text, embedded[row], own[row])
        return out

    def _row(
        self, asked: tuple[Query, Query, Query], text: str, e: TokenEmbeddings, own: list[str]
    ) -> list[float]:
        core, full, instruction = asked
        units = _spans(e, sentences(text))
        windows = _unit(np.stack([e.vectors[a : a + WINDOW].mean(0) for a in _starts(len(e.vectors))]))
        tokens, vectors = _unit(e.vectors), self.word_vectors(own)
        values: list[float] = []
        for query in asked:
            values += _places(query.vector, e.pooled, units, windows)
            values += _word_matches(query, vectors)

        near = core.tokens @ tokens.T  # (core tokens, tokens of the text)
        best, by_token, by_window = near.max(1), near.max(0), windows @ core.vector
        quarters = [q.max() for q in np.array_split(by_token, min(4, len(by_token)))]
        values += [best.mean(), best.min(), best.max(), _top(by_token, 10)]
        values += [min(quarters), np.mean(quarters), quarters[-1]]
        values += [by_window.min(), by_window.mean(), by_window.std()]

        by_word, late = vectors @ core.vector, _late(core, vectors)
        values += [np.log1p((by_word > level).sum()) for level in _WORD_LEVELS]
        values += [np.log1p((by_token > level).sum()) for level in _TOKEN_LEVELS]
        values += [float((late > level) @ core.weights) if core.content else 0.0 for level in _LATE_LEVELS]

        # What the instruction alone would bring: a text on its topic may meet the concept by chance.
        shared = float(core.vector @ instruction.vector)
        in_words, in_tokens = _late(core, instruction.words), (core.tokens @ instruction.tokens.T).max(1)
        values += [shared, float(full.vector @ instruction.vector)]
        values += [float(e.pooled @ core.vector) - shared * float(e.pooled @ instruction.vector)]
        values += [in_words.mean(), in_tokens.mean(), (late - in_words).mean(), (best - in_tokens).mean()]
        values += [
            *core.any_word,
            len(core.content),
            len(full.content),
            core.rarity,
            len(instruction.content),
        ]

        adjacent = (windows[:-2:2] * windows[2::2]).sum(1) if len(windows) > 2 else np.ones(1, np.float32)
        values += [
            adjacent.mean(),
            adjacent.min(),
            float(np.linalg.norm(tokens.mean(0))),
            (windows @ e.pooled).std(),
        ]
        values += [len(tokens) / max(len(words(text)), 1)]
        values += [sum(w in self.weight.rank for w in own) / max(len(own), 1)]
        return values


def _places(query: np.ndarray, pooled: np.ndarray, units: np.ndarray, windows: np.ndarray) -> list[float]:
    by_sentence, by_window = units @ query, windows @ query
    return [
        *(pooled @ query, by_sentence.max(), by_sentence.mean(), by_sentence[0], by_sentence[-1]),
        *(by_window.max(), by_window[-1]),
    ]


def _word_matches(query: Query, vectors: np.ndarray) -> list[float]:
    if not len(vectors):
        return [0.0] * len(_WORDS)
    near, late = vectors @ query.vector, _late(query, vectors)
    mean = float(late @ query.weights) if query.content else 0.0
    best = float(near.max())
    return [
        *(best, _top(near, 3), _top(near, 10), mean, float(late.min())),
        *(best - query.any_word[1], mean - query.any_late),
    ]


def _late(query: Query, vectors: np.ndarray) -> np.ndarray:
    """Each content word's best match [content]; zeros where there is nothing to match."""
    if not query.content or not len(vectors):
        return np.zeros(max(len(query.content), 1), np.float32)
    return (query.words @ vectors.T).max(1)


def _spans(e: TokenEmbeddings, spans: list[tuple[int, int]]) -> np.ndarray:
    """Unit means of the tokens of each character span [spans, 384]; spans without tokens are left out."""
    starts, sums = e.spans[:, 0], np.vstack([np.zeros(WIDTH, np.float32), np.cumsum(e.vectors, 0)])
    cuts = [(np.searchsorted(starts, a), np.searchsorted(starts, b)) for a, b in spans]
    kept = [sums[b] - sums[a] for a, b in cuts if b > a]
    return _unit(np.stack(kept)) if kept else e.pooled[None]


def _telling(e: TokenEmbeddings, text: str, content: set[str]) -> np.ndarray:
    """Token vectors of the content words of a text; all of them if it has none, the pooled one if no tokens."""
    if not len(e.vectors):
        return e.pooled[None]
    pieces = [text[a:b].lower() for a, b in e.spans]
    rows = [i for i, p in enumerate(pieces) if p not in STOP_WORDS and any(p in w for w in content)]
    return e.vectors[rows] if rows else e.vectors


def _starts(n: int) -> range:
    return range(0, max(n - WINDOW // 2, 1), WINDOW // 2)


def _distinct_words(text: str) -> list[str]:
    kept = dict.fromkeys(w for w in words(text) if w not in STOP_WORDS and 1 < len(w) < 40)
    return list(kept)[:MOST_WORDS]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _top(values: np.ndarray, n: int) -> float:
    return float(np.sort(values)[-n:].mean())
