"""WordNet: the pinned file against a second, slow way of reading it, and small hand-made files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tagsteer.assets.fetch import fetch
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.wordnet import Synset, from_wordnet, label_names
from tagsteer.errors import TagsteerError


@pytest.fixture(scope="module")
def wordnet() -> Corpus:
    return from_wordnet()


def labels_of(corpus: Corpus, i: int) -> set[str]:
    return {corpus.label_names[j] for j in corpus.label_matrix[i].indices}


def test_the_counts_of_the_design(wordnet: Corpus) -> None:
    # 82,115 noun synsets: wnstats(7WN) of WordNet 3.0.
    assert len(wordnet) == 82_115
    support = wordnet.support
    assert int(((support >= 50) & (support <= 1500)).sum()) == 911
    assert wordnet.skipped.total == 0
    assert wordnet.support.min() >= 1


def test_supports_equal_a_plain_walk_over_the_file(wordnet: Corpus) -> None:
    above: dict[str, list[str]] = {}
    for line in fetch("wordnet-3.0").read_text("utf-8").splitlines():
        if re.match(r"\d{8} ", line):
            above[line[:8]] = re.findall(r" @i? (\d{8}) n 0000", line.split(" | ")[0])
    support: Counter[str] = Counter()
    per_document = []
    for start in above:
        seen: set[str] = set()
        level = set(above[start])
        while level:
            seen |= level
            level = {up for offset in level for up in above[offset]} - seen
        support.update(seen)
        per_document.append(len(seen))
    assert [f"{offset}-n" for offset in above] == list(wordnet.ids)
    assert per_document == wordnet.label_matrix.sum(axis=1).ravel().tolist()[0]
    assert sorted(support.values()) == sorted(wordnet.support.tolist())


def test_a_dog_is_an_animal_and_not_itself(wordnet: Corpus) -> None:
    i = list(wordnet.ids).index("02084071-n")
    assert wordnet.texts[i] == (
        "dog, domestic dog, Canis familiaris: a member of the genus Canis (probably descended from the common wolf) "
        "that has been domesticated by man since prehistoric times; occurs in many breeds\n"
        "the dog barked all night"
    )
    labels = {name.split(" (")[0] for name in labels_of(wordnet, i)}
    # The two paths that WordNet 3.0 shows for dog, n, 1.
    assert labels == {
        *("canine", "carnivore", "placental", "mammal", "vertebrate", "chordate", "animal", "organism"),
        *("living thing", "whole", "object", "physical entity", "entity", "domestic animal"),
    }


def test_instances_have_labels_and_the_top_has_none(wordnet: Corpus) -> None:
    by_id = {identifier: i for i, identifier in enumerate(wordnet.ids)}
    assert labels_of(wordnet, by_id["00001740-n"]) == set()  # entity
    einstein = next(i for i, text in enumerate(wordnet.texts) if text.startswith("Einstein, Albert Einstein"))
    assert {"physicist", "scientist"} <= labels_of(wordnet, einstein)


def test_names_are_unique_readable_and_only_marked_where_needed(wordnet: Corpus) -> None:
    names = wordnet.label_names
    assert len({name.casefold() for name in names}) == len(names) == 17_157
    assert not [name for name in names if re.search(r"\(\d+\)|_|\(\)", name)]
    assert {"bank (slope)", "plant (organism)", "plant (building complex)", "unit of measurement"} <= set(
        names
    )
    bare = Counter(re.sub(r" \(.*", "", name).casefold() for name in names)
    unneeded = [name for name in names if " (" in name and bare[re.sub(r" \(.*", "", name).casefold()] == 1]
    assert unneeded == []
    assert max(map(len, names)) < 80


def test_names_that_share_everything_still_differ() -> None:
    twin = {"1": Synset("1", ("x",), "same", (), ()), "2": Synset("2", ("X",), "same", (), ())}
    assert label_names(["1", "2"], twin) == {"1": "x (1)", "2": "X (2)"}


GOOD = '00000001 03 n 01 top 0 000 | the top; "an example"\n'
LOOP = "00000002 03 n 02 b_c 0 d 0 002 @ 00000003 n 0000 @ 00000001 n 0000 | (x) a thing\n"
BACK = '00000003 03 n 01 c 0 001 @ 00000002 n 0000 | another; it says "so"\n'


def test_broken_lines_and_circles(tmp_path: Path) -> None:
    bad = "junk\n00000009 03 n 05 a 0 000 | too few words\n00000008 03 v 01 a 0 000 | a verb\n"
    orphan = "00000004 03 n 01 o 0 001 @ 99999999 n 0000 | an orphan\n"
    path = tmp_path / "data.noun"
    path.write_text(f"  1 licence\n{GOOD}{bad}{LOOP}{BACK}{orphan}")
    corpus = from_wordnet(path)
    assert list(corpus.texts) == [
        "top: the top\nan example",
        "b c, d: (x) a thing",
        'c: another; it says "so"',
        "o: an orphan",
    ]
    assert [labels_of(corpus, i) for i in range(4)] == [set(), {"top", "c"}, {"top", "b c"}, set()]
    assert corpus.skipped.counts == {"malformed line": 3, "hypernym that is not there": 1}
    assert corpus.skipped.examples["malformed line"][0].startswith("data.noun:3 ")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TagsteerError, match="no such file"):
        from_wordnet(tmp_path / "gone")
    (tmp_path / "other").write_bytes(bytes(range(256)))
    with pytest.raises(TagsteerError, match="no noun synset"):
        from_wordnet(tmp_path / "other")
