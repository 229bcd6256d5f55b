"""The corpus itself: saving, choosing labels and documents, and texts that outgrow memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from tagsteer.corpus.describe import describe
from tagsteer.corpus.labels import LabelBuilder, SkipLog, Skipped
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.texts import TextBuilder, Texts
from tagsteer.errors import TagsteerError

ROWS = [[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]]


def small(**changes: object) -> Corpus:
    parts: dict = {
        "texts": Texts.of(["eins", "zwei 🍞", "", "vier\nlines"]),
        "ids": Texts.of(["a", "b", "c", "d"]),
        "label_names": ("x", "never", "y"),
        "label_matrix": csr_matrix(np.array(ROWS, dtype=np.uint8)),
        "source": "hand",
        "skipped": Skipped({"malformed": 2, "left out: wiki": 3}, {"malformed": ("f:1 bad", "f:2 bad")}),
    }
    return Corpus(**(parts | changes))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    corpus = small()
    corpus.save(tmp_path / "corpus")
    names = {path.name for path in (tmp_path / "corpus").iterdir()}
    assert names == {"documents.parquet", "labels.parquet", "label_matrix.npz", "corpus.json"}
    loaded = Corpus.load(tmp_path / "corpus")
    assert list(loaded.texts) == list(corpus.texts)
    assert list(loaded.ids) == list(corpus.ids)
    assert loaded.label_names == corpus.label_names
    assert loaded.label_matrix.toarray().tolist() == ROWS
    assert loaded.label_matrix.dtype == np.uint8
    assert (loaded.source, loaded.skipped) == (corpus.source, corpus.skipped)
    labels = pq.read_table(tmp_path / "corpus" / "labels.parquet").to_pydict()
    assert labels == {"label": [0, 1, 2], "name": ["x", "never", "y"], "support": [2, 0, 3]}


def test_a_corpus_without_texts_is_saved_too(tmp_path: Path) -> None:
    small(texts=()).save(tmp_path)
    loaded = Corpus.load(tmp_path)
    assert not loaded.has_texts
    assert len(loaded) == 4
    assert list(loaded.ids) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["documents.parquet", "labels.parquet", "label_matrix.npz", "corpus.json"])
def test_incomplete_or_damaged_folders_are_refused(tmp_path: Path, name: str) -> None:
    small().save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(TagsteerError, match="tagsteer corpus"):
        Corpus.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(TagsteerError, match="tagsteer corpus"):
        Corpus.load(tmp_path)


def test_parts_of_two_corpora_in_one_folder_are_refused(tmp_path: Path) -> None:
    small().save(tmp_path / "a")
    small().subset([0, 1]).save(tmp_path / "b")
    (tmp_path / "b" / "label_matrix.npz").replace(tmp_path / "a" / "label_matrix.npz")
    with pytest.raises(TagsteerError, match="do not fit"):
        Corpus.load(tmp_path / "a")


def test_a_killed_save_leaves_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scipy.sparse.save_npz", killed)
    with pytest.raises(KeyboardInterrupt):
        small().save(tmp_path)
    with pytest.raises(TagsteerError, match=r"no corpus\.json"):
        Corpus.load(tmp_path)


def test_support_and_labels_above_it() -> None:
    corpus = small()
    assert corpus.support.tolist() == [2, 0, 3]
    assert corpus.with_min_support(1).label_names == ("x", "y")
    kept = corpus.with_min_support(3)
    assert kept.label_names == ("y",)
    assert kept.label_matrix.toarray().tolist() == [[1], [1], [0], [1]]
    with pytest.raises(TagsteerError, match=r"no label has 4 .* largest support is 3 \(y\)"):
        corpus.with_min_support(4)
    with pytest.raises(TagsteerError, match="did you mean never"):
        corpus.label_index("nver")


def test_subset_and_sample() -> None:
    corpus = small()
    part = corpus.subset([3, 0])
    assert (list(part.texts), list(part.ids)) == (["vier\nlines", "eins"], ["d", "a"])
    assert part.label_matrix.toarray().tolist() == [ROWS[3], ROWS[0]]
    assert part.label_names == corpus.label_names
    first, again = corpus.sample(3, seed=1), corpus.sample(3, seed=1)
    assert list(first.ids) == list(again.ids) == sorted(first.ids)
    assert {tuple(corpus.sample(2, seed=s).ids) for s in range(40)} == {
        (a, b) for a in "abcd" for b in "abcd" if a < b
    }
    for wrong in (0, 5, -1):
        with pytest.raises(TagsteerError, match="cannot sample"):
            corpus.sample(wrong, seed=0)
    with pytest.raises(TagsteerError, match="document 4 of 4"):
        corpus.subset([0, 4])
    with pytest.raises(TagsteerError, match="positions go from 0"):
        corpus.subset([-1])
    with pytest.raises(TagsteerError, match="bool"):
        corpus.subset(np.array([True, False, True, False]))
    plain = small(texts=["1", "2", "3", "4"], ids=["a", "b", "c", "d"]).subset([2])
    assert (list(plain.texts), list(plain.ids)) == (["3"], ["c"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["too", "few"]}, "2 texts"),
        ({"ids": ["a"]}, "1 ids"),
        ({"label_names": ("x",)}, "1 label names"),
        ({"label_names": ("x", "x", "y")}, "'x' is used twice"),
        (
            {"label_matrix": csr_matrix((0, 3), dtype=np.uint8)},
            "no usable document: 3 left out: wiki; 2 malformed",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(TagsteerError, match=message):
        small(**changes)


def test_describe_tells_what_is_there_and_what_was_skipped() -> None:
    table = describe(small())
    rows = {(section, item): (count, detail) for section, item, count, detail in table.iter_rows()}
    assert rows["documents", "documents"] == (4, "hand")
    assert rows["labels", "labels"][0] == 3
    assert rows["support", "labels with 1 or more documents"][0] == 2
    assert rows["support", "labels with 10 or more documents"][0] == 0
    assert ("support", "labels with 20 or more documents") not in rows
    assert rows["frequent", "y"][0] == 3
    assert rows["skipped", "malformed"] == (2, "f:1 bad; f:2 bad")
    assert rows["skipped", "left out: wiki"] == (3, "")


def test_describe_counts_documents_without_a_label() -> None:
    matrix = csr_matrix(np.array([[1], [0], [0], [1]], dtype=np.uint8))
    table = describe(small(label_names=("x",), label_matrix=matrix, texts=()))
    assert table.filter(item="documents without a label")["count"].to_list() == [2]
    assert table.filter(item="characters").is_empty()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=60), st.integers(0, 200), st.integers(1, 50))
def test_texts_are_the_strings_that_went_in(strings: list[str], spill: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagsteer.corpus.texts.CHUNK_CHARS", chunk)
        builder = TextBuilder(spill_chars=spill)
        for string in strings:
            builder.append(string)
        assert len(builder) == len(strings)
        texts = builder.finish()
    assert list(texts) == [texts[i] for i in range(len(texts))] == strings
    assert list(texts[1::2]) == strings[1::2]
    assert list(texts[2:9]) == strings[2:9]
    assert list(texts[::-1]) == strings[::-1]
    order = list(range(len(strings)))[::-2]
    assert list(texts.take(order)) == [strings[i] for i in order]
    if strings:
        assert texts[-1] == strings[-1]
    with pytest.raises(IndexError):
        texts[len(strings)]


def test_much_text_lies_in_a_file_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tagsteer.corpus.texts.CHUNK_CHARS", 1000)
    before = pa.total_allocated_bytes()
    builder = TextBuilder(spill_chars=10_000)
    for i in range(1000):
        builder.append(f"{i:05d}" * 100)
    assert len(list(tmp_path.iterdir())) == 1
    texts = builder.finish()
    assert pa.total_allocated_bytes() - before < 50_000  # of 500,000
    assert texts[777] == "00777" * 100
    del texts, builder
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["b", "a", "ü", "c c", "z"]), max_size=6), min_size=1, max_size=20))
def test_labels_become_a_binary_matrix(documents: list[list[str]]) -> None:
    builder = LabelBuilder()
    for names in documents:
        builder.append(names)
    columns, matrix = builder.finish()
    assert list(columns) == sorted({name for names in documents for name in names})
    dense = matrix.toarray()
    assert dense.shape == (len(documents), len(columns))
    for i, names in enumerate(documents):
        assert dense[i].tolist() == [int(name in names) for name in columns]


def test_the_skip_log_keeps_the_first_places() -> None:
    log = SkipLog()
    for i in range(9):
        log.add("bad", f"f:{i}")
    log.add("left out: worse")
    skipped = log.result()
    assert skipped.counts == {"bad": 9, "left out: worse": 1}
    assert skipped.examples == {"bad": ("f:0", "f:1", "f:2", "f:3", "f:4")}
    assert (skipped.total, skipped.malformed) == (10, 9)
    assert skipped.first() == "9 bad (first: f:0); 1 left out: worse"
    json.dumps(dict(skipped.counts))
