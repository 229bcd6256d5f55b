"""What the offline judges count in a judged text: repetition, marks, and the words shared with a concept.

Pure functions from text to named numbers. Must not know embeddings, ratings, rules or learners. The formulas are
this project's own.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|\n+")

STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are as at be because been before being
    below between both but by can cannot could did do does doing don down during each even few for from
    further had has have having he her here hers herself him himself his how i if in into is it its
    itself just let like ll may me might more most much must my myself need no nor not now of off on
    once one only or other our ours ourselves out over own per re s same she should so some such t than
    that the their theirs them themselves then there these they this those through to too under until up
    upon us use very via was we well were what when where which while who whom why will with would yes
    yet you your yours yourself yourselves
    """.split()  # noqa: SIM905
)
# Words of explanations that say nothing about the concept ("the main thing this neuron does is find ...").
_FRAME_WORDS = frozenset(
    """
    activate activates activation activations aligned appear appears array associated characterized
    collection concept concepts context contexts detect detects discussion discussions diverse find
    finds focus focused focusing function functions identifier identifiers identify identifies
    identifying include includes including indicate indicating instance instances involve involves
    involving language main mention mentions mix mixture neuron often output outputs outputting
    particularly phrase phrases potentially presence primarily primary process processing producing
    range recognize recognizes refer reference references refers reflect reflecting relate related
    relates represent represents respond responds respect specific specifically suggest suggesting
    suggests term terms theme themes thing token tokens topic topics trigger triggered triggering
    triggers typically unrelated variation variations various wide word words
    """.split()  # noqa: SIM905
)
_OUTPUT_PART = re.compile(
    r"[,.;]?\s*(?:\b(?:and|which|while|that)\b\s+)?(?:\b(?:then|it|its|subsequently|also)\b\s+)*"
    r"\b(?:outputs?|outputting|producing outputs|leading (?:it )?to outputs?|triggering an output|when triggered|"
    r"upon activation|once (?:it is )?(?:activated|triggered))\b",
    re.IGNORECASE,
)
_FRAME = re.compile(
    r"^\s*(?:the main (?:thing|function) (?:of )?this neuron (?:does |identifies )?is(?: to)?|"
    r"(?:this )?neuron(?: \d+)?(?: (?:appears to be|appears to|is|primarily|refers|responds|activates|activate))*|"
    r"represents)\s+"
    r"(?:(?:find|identify|identifies|detect|recognize|process|respond|responds|trigger|triggered|activate|activates|"
    r"activated|focus|to|on|by|in|primarily|response|the|presence|of|context|concepts?|about)\s+)*"
    r"(?:(?:various|specific|different)\s+)?"
    r"(?:(?:references|mentions|instances|terms?|phrases|words|discussions|themes|elements|expressions|language)\s+"
    r"(?:and phrases\s+)?(?:(?:that|or)\s+)?(?:of|to|about|related to|associated with|indicating|surrounding)\s+)?"
    r"(?:concepts related to\s+)?",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Lower-case words of letters (any script), digits and marks left out."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """A light English stem: enough that "rankings" meets "ranked" and "investment" meets "invests"."""
    word = word.removesuffix("'s").removesuffix("’s")
    for suffix, kept in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= kept:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 4 and word[-1] in "eyi" else word


_SUFFIXES = (
    ("izations", 3), ("ization", 3), ("fulness", 3), ("ements", 4), ("ations", 3), ("nesses", 3), ("ement", 4),
    ("ments", 3), ("ation", 3), ("ities", 3), ("ness", 3), ("ment", 3), ("ings", 3), ("ions", 4), ("ists", 4),
    ("ers", 4), ("ies", 3), ("ing", 3), ("ity", 4), ("ion", 4), ("ist", 4), ("ful", 3), ("est", 4), ("ed", 3),
    ("er", 4), ("es", 3), ("ly", 4), ("al", 4), ("s", 3),
)  # fmt: skip


def content_words(text: str, frame: bool = False) -> list[str]:
    """Words that carry meaning; `frame` also drops the vocabulary of explanations ("neuron", "outputs", ...)."""
    dropped = STOP_WORDS | _FRAME_WORDS if frame else STOP_WORDS
    kept = [w for w in words(text) if len(w) > 1 and w not in dropped]
    # A tag may be a stop word or one letter ("c"): better that than nothing.
    return kept or words(text)


def concept_core(concept: str) -> str:
    """What a Neuronpedia-like explanation is about; a short tag comes back with its hyphens opened.

    >>> concept_core("the main thing this neuron does is identify mentions of roller coasters, and then outputs rides.")
    'roller coasters'
    """
    text = concept.strip()
    if len(words(text)) <= 3 and not _FRAME.match(text):
        return re.sub(r"[-_/]+", " ", text).strip() or text
    head = _OUTPUT_PART.split(text, maxsplit=1)[0]
    core = _FRAME.sub("", head).strip(" ,.;:'\"")
    return core if words(core) else text


def sentences(text: str, most: int = 24) -> list[tuple[int, int]]:
    """Character spans of sentences and lines, blank ones left out; the last one takes what is beyond `most`."""
    spans, at = [], 0
    for end in [*_SENTENCE_END.finditer(text), None]:
        stop = end.start() if end else len(text)
        if text[at:stop].strip():
            spans.append((at, stop))
        at = end.end() if end else stop
    return spans if len(spans) <= most else [*spans[: most - 1], (spans[most - 1][0], spans[-1][1])]


# ---- counts of one text ----------------------------------------------------------------------------------------------

STATISTICS = (
    "chars", "words", "sentences", "lines", "mean_word", "mean_sentence", "distinct_1", "distinct_2", "distinct_3",
    "top_word", "top_bigram", "longest_run", "repeated_4", "repeated_tail", "new_in_tail", "repeated_lines",
    "compression", "char_entropy", "word_entropy", "letters", "digits", "marks", "blanks", "newlines", "upper",
    "non_ascii", "stars", "backticks", "quotes", "mark_run", "stop_words", "capitalised", "one_letter", "long_words",
    "starts_lower", "starts_mark", "ends_sentence", "bullets", "numbered", "question_marks",
)  # fmt: skip


def statistics(text: str) -> np.ndarray:
    """Counts of one text in the order of STATISTICS, float32; of an empty text all are 0."""
    if not text.strip():
        return np.zeros(len(STATISTICS), np.float32)
    n, tokens = len(text), words(text)
    m = max(len(tokens), 1)
    n_sentences = max(len(sentences(text, 10_000)), 1)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    pairs, triples = (
        list(itertools.pairwise(tokens)),
        list(zip(tokens, tokens[1:], tokens[2:], strict=False)),
    )
    fours = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    tail = fours[2 * len(fours) // 3 :]
    raw = text.encode("utf-8", "replace")
    half = tokens[: len(tokens) // 2]
    classes = Counter(text)

    def share(wanted: Iterable[str]) -> float:
        return sum(classes[c] for c in wanted) / n

    letters = sum(v for c, v in classes.items() if c.isalpha())
    blanks = sum(v for c, v in classes.items() if c.isspace())
    digits = sum(v for c, v in classes.items() if c.isdigit())
    values = (
        n, len(tokens), n_sentences, len(lines), sum(map(len, tokens)) / m, m / n_sentences,
        len(set(tokens)) / m, _distinct(pairs), _distinct(triples),
        max(Counter(tokens).values(), default=0) / m, max(Counter(pairs).values(), default=0) / m,
        _longest_run(tokens), _repeated(fours), _repeated(tail),
        len(set(tokens[len(tokens) // 2 :]) - set(half)) / max(len(tokens) - len(half), 1),
        1 - len(set(lines)) / max(len(lines), 1),
        len(zlib.compress(raw, 6)) / len(raw), _entropy(classes.values()), _entropy(Counter(tokens).values()),
        letters / n, digits / n, 1 - (letters + blanks + digits) / n, blanks / n, classes["\n"] / n,
        sum(v for c, v in classes.items() if c.isupper()) / max(letters, 1),
        sum(v for c, v in classes.items() if ord(c) > 127) / n,
        share("*#"), share("`"), share("\"'“”"), max(map(len, re.findall(r"[^\w\s]+", text)), default=0),
        sum(t in STOP_WORDS for t in tokens) / m, len(re.findall(r"\b[A-Z]", text)) / m,
        sum(len(t) == 1 for t in tokens) / m, sum(len(t) > 12 for t in tokens) / m,
        text.lstrip()[0].islower(), not text.lstrip()[0].isalnum(), text.rstrip()[-1] in ".!?\"”)",
        sum(line[0] in "*-•+" for line in lines) / max(len(lines), 1),
        sum(line[0].isdigit() for line in lines) / max(len(lines), 1), classes["?"] / n_sentences,
    )  # fmt: skip
    return np.asarray(values, np.float32)


def _distinct(grams: Sequence) -> float:
    return len(set(grams)) / len(grams) if grams else 1.0


def _repeated(grams: Sequence) -> float:
    """Share of n-grams that stand more than once."""
    counts = Counter(grams)
    return sum(v for v in counts.values() if v > 1) / len(grams) if grams else 0.0


def _longest_run(tokens: Sequence[str]) -> int:
    longest = run = 0
    before = None
    for token in tokens:
        run = run + 1 if token == before else 1
        longest, before = max(longest, run), token
    return longest


def _entropy(counts: Iterable[int]) -> float:
    """Bits per symbol."""
    values = list(counts)
    total = sum(values)
    return -sum(v / total * math.log2(v / total) for v in values) if total else 0.0


# ---- overlap of words ------------------------------------------------------------------------------------------------

OVERLAP = (
    "exact", "stem_share", "stem_share_idf", "stem_hits", "stem_density", "rarest_hit", "first_hit", "trigram_share",
    "trigram_best", "phrase",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WordWeights:
    """How telling a word is: the logarithm of its place in a vocabulary ordered by frequency, 0 to 1."""

    rank: dict[str, int]

    def __call__(self, word: str) -> float:
        place = self.rank.get(word)
        return 1.0 if place is None else math.log1p(place) / math.log1p(len(self.rank))


def overlap(concept_text: str, text: str, weight: WordWeights, frame: bool = True) -> np.ndarray:
    """How far the words of `concept_text` stand in `text`, in the order of OVERLAP, float32."""
    wanted = list(dict.fromkeys(content_words(concept_text, frame)))
    have = words(text)
    out = np.zeros(len(OVERLAP), np.float32)
    if not wanted or not have:
        return out
    have_set, stems = set(have), [stem(w) for w in have]
    counts = Counter(stems)
    wanted_stems = {stem(w): max(weight(w), 0.05) for w in wanted}
    hits = {s: w for s, w in wanted_stems.items() if s in counts}
    total = sum(wanted_stems.values())
    n_hits = sum(counts[s] for s in hits)
    grams = _trigrams(have)
    shares = [len(g & grams) / len(g) for g in (_trigrams([w]) for w in wanted) if g]
    out[:] = (
        sum(w in have_set for w in wanted) / len(wanted),
        len(hits) / len(wanted_stems),
        sum(hits.values()) / total,
        math.log1p(n_hits),
        n_hits / len(have),
        max(hits.values(), default=0.0),
        next((1 - i / len(stems) for i, s in enumerate(stems) if s in hits), 0.0),
        float(np.mean(shares)) if shares else 0.0,
        max(shares, default=0.0),
        " ".join(words(concept_text)) in " ".join(have),
    )
    return out


def _trigrams(tokens: Iterable[str]) -> set[str]:
    return {f"^{t}$"[i : i + 3] for t in set(tokens) for i in range(len(t))}
