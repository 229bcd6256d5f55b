"""WordNet 3.0's noun synsets as tagged documents, their hypernyms as labels: the embedded default.

Knows the format of data.noun (wndb(5WN), https://wordnet.princeton.edu/documentation/wndb5wn); must not know
how the file is fetched beyond its name in the registry.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagsteer.corpus.labels import LabelBuilder, SkipLog
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.texts import TextBuilder
from tagsteer.errors import TagsteerError

log = logging.getLogger("tagsteer.corpus")

ASSET = "wordnet-3.0"
_QUOTED = re.compile(r'"([^"]+)"?')


@dataclass(frozen=True, slots=True)
class Synset:
    """One line of data.noun: lemmas, the gloss in two parts, and the offsets of the direct hypernyms."""

    offset: str
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    hypernyms: tuple[str, ...]

    @property
    def text(self) -> str:
        """What a document says: "lemma, lemma: definition", and each example on its own line."""
        return "\n".join([f"{', '.join(self.lemmas)}: {self.definition}", *self.examples])


def from_wordnet(path: str | Path | None = None) -> Corpus:
    """82,115 documents (lemmas, definition, examples), labelled with all their hypernyms.

    Hypernym (`@`) and instance hypernym (`@i`) pointers are followed to the top; a synset is not its own
    label. A label is named by its first lemma; where several labels share that name, each gets its own
    hypernym (or another lemma, or the start of its definition) in brackets. `path` names another data.noun;
    by default the pinned one is fetched. A file of another kind is a TagsteerError.
    """
    if path is None:
        from tagsteer.assets.fetch import fetch

        place = fetch(ASSET)
        source = "WordNet 3.0 nouns (lemmas, definition, examples; labels: all hypernyms)"
    else:
        place = Path(path).expanduser()
        source = f"WordNet nouns of {place} (lemmas, definition, examples; labels: all hypernyms)"
    skip = SkipLog()
    synsets = read_nouns(place, skip)
    closures = hypernym_closures(synsets)
    used = sorted({label for labels in closures.values() for label in labels})
    names = label_names(used, synsets)
    texts, ids, labels = TextBuilder(), TextBuilder(), LabelBuilder()
    for offset, synset in synsets.items():
        texts.append(synset.text)
        ids.append(f"{offset}-n")
        labels.append(names[label] for label in closures[offset])
    columns, matrix = labels.finish()
    log.info("%s: %s synsets, %s labels", place, f"{len(synsets):,}", f"{len(columns):,}")
    return Corpus(texts.finish(), ids.finish(), columns, matrix, source, skip.result())


def read_nouns(place: Path, skip: SkipLog) -> dict[str, Synset]:
    """The synsets of a data.noun by offset, in file order; unreadable lines go to the skip log."""
    if not place.is_file():
        raise TagsteerError(f"no such file: {place}; name a data.noun of WordNet 3.x")
    synsets: dict[str, Synset] = {}
    with place.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith("  "):  # the licence
                continue
            try:
                synset = parse_line(line)
            except (ValueError, IndexError) as error:
                skip.add("malformed line", f"{place.name}:{number} {error}")
                continue
            synsets[synset.offset] = synset
    if not synsets:
        raise TagsteerError(f"{place} holds no noun synset: name a data.noun of WordNet 3.x")
    for synset in synsets.values():
        for hypernym in synset.hypernyms:
            if hypernym not in synsets:
                skip.add("hypernym that is not there", f"{place.name} {synset.offset} -> {hypernym}")
    return synsets


def parse_line(line: str) -> Synset:
    """A line: offset file type n_words (hex) [word id]... n_pointers [symbol offset pos st]... | gloss."""
    data, bar, gloss = line.rstrip().partition(" | ")
    fields = data.split()
    if not bar or len(fields) < 6 or fields[2] != "n" or not fields[0].isdigit():
        raise ValueError("not a noun synset")
    n_words = int(fields[3], 16)
    lemmas = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * n_words : 2])
    n_pointers = int(fields[4 + 2 * n_words])
    pointers = fields[5 + 2 * n_words :]
    if len(lemmas) != n_words or not lemmas or len(pointers) != 4 * n_pointers:
        raise ValueError("fewer fields than announced")
    hypernyms = tuple(
        pointers[i + 1]
        for i in range(0, len(pointers), 4)
        if pointers[i] in ("@", "@i") and pointers[i + 2] == "n"
    )
    definition, examples = split_gloss(gloss)
    return Synset(fields[0], lemmas, definition, examples, hypernyms)


def split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Definition and examples of a gloss; examples are the quoted parts after the definition's semicolon.

    >>> split_gloss('an institution; "he cashed a check"; "that bank holds the mortgage"')
    ('an institution', ('he cashed a check', 'that bank holds the mortgage'))
    """
    start = gloss.find('; "')
    if start < 0:
        return gloss.strip(" ;"), ()
    return gloss[:start].strip(" ;"), tuple(
        part.strip(" ;") for part in _QUOTED.findall(gloss[start:]) if part.strip(" ;")
    )


def hypernym_closures(synsets: dict[str, Synset]) -> dict[str, frozenset[str]]:
    """All synsets above each one, itself left out, even where pointers run in a circle."""
    closures: dict[str, frozenset[str]] = {}
    for start in synsets:
        above: set[str] = set()
        waiting = list(synsets[start].hypernyms)
        while waiting:
            offset = waiting.pop()
            if offset in above or offset not in synsets:
                continue
            above.add(offset)
            if offset in closures:
                above |= closures[offset]
            else:
                waiting.extend(synsets[offset].hypernyms)
        closures[start] = frozenset(above - {start})
    return closures


def label_names(used: Sequence[str], synsets: dict[str, Synset]) -> dict[str, str]:
    """A readable name for every offset, no two alike even without regard to case.

    >>> bank = Synset("1", ("bank",), "sloping land", (), ("2",))
    >>> other = Synset("3", ("bank",), "accepts deposits", (), ("4",))
    >>> above = {"2": Synset("2", ("slope",), "", (), ()), "4": Synset("4", ("lender",), "", (), ())}
    >>> label_names(["1", "3"], {"1": bank, "3": other} | above)
    {'1': 'bank (slope)', '3': 'bank (lender)'}
    """
    names = {offset: synsets[offset].lemmas[0] for offset in used}
    taken = Counter(name.casefold() for name in names.values())
    open_names = [offset for offset in used if taken[names[offset].casefold()] > 1]
    settled = {
        name.casefold() for name, count in ((n, taken[n.casefold()]) for n in names.values()) if count == 1
    }
    # One kind of qualifier after the other: each settles those labels that it tells apart.
    for qualifier in (_hypernym, _other_lemma, _hypernym_and_lemma, *_GLOSSES):
        proposed: dict[str, str] = {}
        for offset in open_names:
            if mark := qualifier(synsets[offset], synsets):
                proposed[offset] = f"{synsets[offset].lemmas[0]} ({mark})"
        count = Counter(name.casefold() for name in proposed.values())
        for offset, name in proposed.items():
            if count[name.casefold()] == 1 and name.casefold() not in settled:
                names[offset] = name
                settled.add(name.casefold())
                open_names.remove(offset)
    for offset in open_names:
        names[offset] = f"{synsets[offset].lemmas[0]} ({offset})"
    return names


def _hypernym(synset: Synset, synsets: dict[str, Synset]) -> str:
    return next((synsets[above].lemmas[0] for above in synset.hypernyms if above in synsets), "")


def _other_lemma(synset: Synset, synsets: dict[str, Synset]) -> str:
    del synsets
    return next((lemma for lemma in synset.lemmas[1:] if lemma.casefold() != synset.lemmas[0].casefold()), "")


def _hypernym_and_lemma(synset: Synset, synsets: dict[str, Synset]) -> str:
    above, lemma = _hypernym(synset, synsets), _other_lemma(synset, synsets)
    return f"{above}, {lemma}" if above and lemma else ""


def _gloss_start(n_words: int) -> Callable[[Synset, dict[str, Synset]], str]:
    """The first words of the definition, without an article before or a preposition left hanging behind."""

    def mark(synset: Synset, synsets: dict[str, Synset]) -> str:
        del synsets
        words = re.sub(r"\([^()]*\)|[;:].*", " ", synset.definition).split()
        words = words[words[0].lower() in _HANGING :][:n_words] if words else []
        while words and (words[-1].lower().rstrip(",") in _HANGING or words[-2:-1] == ["that"]):
            words.pop()
        return " ".join(words).rstrip(",")

    return mark


# fmt: off
_HANGING = frozenset((
    "a", "an", "the", "of", "to", "that", "which", "who", "or", "and", "by", "on", "in", "for", "with",
    "from", "as", "at", "is", "are", "its", "their", "his", "her", "into", "not", "some",
))
# fmt: on
_GLOSSES = (*map(_gloss_start, (5, 7, 9, 12, 100)), lambda synset, _: synset.definition)
