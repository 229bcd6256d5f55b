"""CSV, JSONL and Parquet: the real cooking forum, other readers, and broken files."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagsteer.corpus.separators import detect_separator, split_labels
from tagsteer.corpus.stackexchange import from_stackexchange
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.tables import from_table
from tagsteer.errors import TagsteerError


def labels_of(corpus: Corpus) -> list[list[str]]:
    return [[corpus.label_names[j] for j in corpus.label_matrix[i].indices] for i in range(len(corpus))]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.shared
def test_the_cooking_forum_is_the_same_from_csv_and_from_xml(shared: Path) -> None:
    folder = shared / "stackexchange" / "cooking_questions"
    table = from_table(folder / "cooking.csv", text=["title", "content"], labels="tags", id="id")
    assert len(table) == 15_404
    assert len(table.label_names) == 736
    assert int((table.support >= 50).sum()) == 161
    assert table.skipped.total == 0
    dump = from_stackexchange(folder / "Posts.xml")
    assert table.label_names == dump.label_names
    assert (table.label_matrix != dump.label_matrix).nnz == 0
    assert list(table.ids) == list(dump.ids)
    assert list(table.texts) == list(dump.texts)


RECORDS: list[dict[str, Any]] = [
    {"key": "a", "title": "Rye", "body": "Dark, and\nwith \"quotes\"; 'too'", "tags": ["bread", "rye"]},
    {"key": "b", "title": "Wheat|spelt", "body": "Ünïcode 🍞", "tags": ["bread"]},
    {"key": "c", "title": "Tea", "body": "Hot", "tags": ["drink"]},
]


@pytest.mark.parametrize(
    "kind", [".csv", ".tsv", "semicolon.csv", ".csv.gz", ".jsonl", ".ndjson.gz", ".parquet"]
)
def test_every_format_says_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"table{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif "csv" in kind or "tsv" in kind:
        out = io.StringIO()
        mark = "\t" if "tsv" in kind else ";" if "semicolon" in kind else ","
        writer = csv.DictWriter(out, list(RECORDS[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(record | {"tags": ", ".join(record["tags"])} for record in RECORDS)
        content = b"\xef\xbb\xbf" + out.getvalue().encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    else:
        content = "\n".join(json.dumps(record) for record in RECORDS).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    corpus = from_table(path, ["title", "body"], "tags", id="key")
    assert list(corpus.texts) == [f"{record['title']}\n\n{record['body']}" for record in RECORDS]
    assert labels_of(corpus) == [record["tags"] for record in RECORDS]
    assert list(corpus.ids) == ["a", "b", "c"]
    assert corpus.skipped.total == 0
    assert list(from_table(path, "title", "tags").ids) == ["0", "1", "2"]


CELL = st.text(
    alphabet=st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",;|\t\n<>'), max_size=12
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8), mark=st.sampled_from([",", ";", "\t", "|"])
)
def test_what_csv_writes_is_what_is_read(tmp_path: Path, cells: list[tuple[str, str]], mark: str) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=mark).writerows([("text", "more", "label"), *((*pair, "x") for pair in cells)])
    path = put(tmp_path, "t.csv", out.getvalue())
    wanted = [text for pair in cells if (text := "\n\n".join(filter(None, map(tidy, pair))))]
    if not wanted:
        with pytest.raises(TagsteerError, match="row without text"):
            from_table(path, ["text", "more"], "label", html=False)
        return
    corpus = from_table(path, ["text", "more"], "label", html=False)
    assert list(corpus.texts) == wanted
    assert len(corpus) + corpus.skipped.counts.get("row without text", 0) == len(cells)


def tidy(cell: str) -> str:
    from tagsteer.corpus.clean import plain_text

    return plain_text(cell)


def test_malformed_csv_records_are_counted_by_line(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "t.csv",
        b'text,labels\nfine,a\n"two\nlines",a\ntoo,many,fields\nfew\n"stray" quote,a\n\n"",a\nnone,\n'
        b"\xff\xfe,a\nlast,b\n",
    )
    corpus = from_table(path, "text", "labels")
    assert list(corpus.texts) == ["fine", "two\nlines", "last"]
    assert corpus.skipped.counts == {
        "malformed CSV record": 3,
        "row without text": 1,
        "row without a label": 1,
        "row that is not valid Unicode": 1,
    }
    lines = [place.split()[0] for place in corpus.skipped.examples["malformed CSV record"]]
    assert lines == ["t.csv:5", "t.csv:6", "t.csv:7"]
    assert corpus.skipped.examples["row that is not valid Unicode"] == ("t.csv:11",)


def test_an_open_quote_does_not_swallow_the_file(tmp_path: Path) -> None:
    rows = "".join(f'"row {i}","a"\n' for i in range(100))
    path = put(tmp_path, "t.csv", f'text,labels\n"before","a"\n"open,"a"\n{rows}')
    corpus = from_table(path, "text", "labels")
    assert len(corpus) == 101
    assert corpus.skipped.counts == {"malformed CSV record": 1}
    assert corpus.skipped.examples["malformed CSV record"][0].startswith("t.csv:3 ")


def test_malformed_json_lines_are_counted_by_line(tmp_path: Path) -> None:
    lines = [
        '{"text": "fine", "labels": ["a", "b"]}',
        "{broken",
        "[1, 2]",
        "",
        '{"text": "no labels"}',
        '{"text": ["a list"], "labels": ["a"]}',
        '{"text": "odd labels", "labels": {"a": 1}}',
        '{"text": "null labels", "labels": null}',
        '{"text": null, "labels": ["a"]}',
        '{"text": "a string here", "labels": "a, b"}',
        '{"text": "lone \\ud800 surrogate", "labels": ["a"]}',
        "[" * 100_000,
        '{"text": 17, "labels": [3, " b "]}',
    ]
    corpus = from_table(put(tmp_path, "t.jsonl", "\n".join(lines)), "text", "labels")
    assert list(corpus.texts) == ["fine", "17"]
    assert labels_of(corpus) == [["a", "b"], ["3", "b"]]
    assert corpus.skipped.counts == {
        "malformed JSON line": 3,
        "row without the key 'labels'": 1,
        "text that is not text": 1,
        "labels that are not text": 1,
        "row without a label": 1,
        "row without text": 1,
        "labels as a list in one row, as a string in another": 1,
        "row that is not valid Unicode": 1,
    }
    places = corpus.skipped.examples["malformed JSON line"]
    assert [place.split()[0] for place in places] == ["t.jsonl:2", "t.jsonl:3", "t.jsonl:12"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_unknown_columns_name_the_nearest(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    records = [{"title": "x", "content": "y", "tags": "z"}]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        put(tmp_path, path.name, "title,content,tags\nx,y,z\n" if kind == "csv" else json.dumps(records[0]))
    for text, labels, message in [
        ("titel", "tags", "no column 'titel': did you mean 'title'\\? it has 'title', 'content', 'tags'"),
        ("title", "Tags", "did you mean 'tags'"),
        ("title", "zzz", "no column 'zzz': it has"),
    ]:
        with pytest.raises(TagsteerError, match=message):
            from_table(path, text, labels)
    with pytest.raises(TagsteerError, match="no column 'nr'"):
        from_table(path, "title", "tags", id="nr")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"text,labels\n", "no usable document"),
        ("t.csv", b"text,labels\nx\ny\n", "no usable document: 2 malformed CSV record .first: t.csv:2"),
        ("t.csv", bytes(range(256)), "binary"),
        ("t.csv", "text,labels\nx,y\n".encode("utf-16"), "UTF-16"),
        ("t.csv", b"text,labels,text\nx,y,z\n", "2 columns called 'text'"),
        ("t.jsonl", b'[{"text": "x", "labels": "y"}]', "one JSON list"),
        ("t.jsonl", b'[\n{"text": "x", "labels": "y"}\n]', "one JSON list"),
        ("t.jsonl", b"nothing\n", "malformed JSON line"),
        ("t.parquet", b"PAR1 is not enough", "not a readable Parquet"),
        ("t.csv.gz", b"not gzip", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"text,labels\n" + b"x,y\n" * 9999)[:-20], "cannot be read"),
        ("t.xlsx", b"PK", r"ends in '\.xlsx'"),
    ],
)
def test_files_that_hold_no_table_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(TagsteerError, match=message) as caught:
        from_table(put(tmp_path, name, content), "text", "labels")
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_odd_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TagsteerError, match="no such file"):
        from_table(tmp_path / "gone.csv", "text", "labels")
    with pytest.raises(TagsteerError, match="is a folder"):
        from_table(tmp_path, "text", "labels")
    path = put(tmp_path, "t.csv", "text,labels\nx,y\n")
    for options, message in [
        ({"text": []}, "name one text column"),
        ({"delimiter": "::"}, "wanted one character"),
        ({"encoding": "klingon"}, "encoding 'klingon'"),
        ({"html": "labels"}, "is no text column"),
        ({"label_separator": ""}, "white space"),
    ]:
        with pytest.raises(TagsteerError, match=message):
            from_table(path, **({"text": "text", "labels": "labels"} | options))


def test_unlabelled_rows_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "text,labels\nx,\ny,a\nz,  \n")
    assert list(from_table(path, "text", "labels").texts) == ["y"]
    kept = from_table(path, "text", "labels", keep_unlabelled=True)
    assert labels_of(kept) == [[], ["a"], []]


def test_ids_are_unique(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "id,text,labels\n1,x,a\n1,y,a\n,z,a\n")
    corpus = from_table(path, "text", "labels", id="id")
    assert list(corpus.texts) == ["x"]
    assert corpus.skipped.counts == {"row whose id was there before": 1, "row without an id": 1}


def test_html_is_cleaned_where_most_cells_have_it(tmp_path: Path) -> None:
    path = put(
        tmp_path, "t.csv", "title,body,labels\nList<T> &amp; co,<p>see <b>this</b></p>,a\nplain,<p>b</p>,a\n"
    )
    read = ["title", "body"]
    assert from_table(path, read, "labels").texts[0] == "List<T> &amp; co\n\nsee this"
    assert (
        from_table(path, read, "labels", html=False).texts[0] == "List<T> &amp; co\n\n<p>see <b>this</b></p>"
    )
    assert from_table(path, read, "labels", html=["body"]).texts[0] == "List<T> &amp; co\n\nsee this"
    assert from_table(path, "title", "labels", html=True).texts[0] == "List & co"


def test_other_encodings_are_said_not_guessed(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "text,labels\nRöggli,brot\nTee,drink\n".encode("latin-1"))
    corpus = from_table(path, "text", "labels")
    assert corpus.skipped.counts == {"row that is not valid Unicode": 1}
    assert from_table(path, "text", "labels", encoding="latin-1").texts[0] == "Röggli"
    path.write_bytes("text,labels\nRöggli,brot\n".encode("utf-16"))
    assert from_table(path, "text", "labels", encoding="utf-16").texts[0] == "Röggli"


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["a,b", "c"], ","),
        (["ice cream, cake", "tea"], ","),
        (["a|b", "c"], "|"),
        (["|a|b|", "|c|"], "|"),
        (["a;b", "c d;e"], ";"),
        (["a\tb"], "\t"),
        (["<c#><.net>", "<c++>"], "<>"),
        (["a", "b", "", "a"], None),
        (["baking bread", "bread rye", "rye"], " "),
        (["Baking Bread", "Bread Rye", "Rye", "Baking", "Bread"], " "),
    ],
)
def test_separators_that_leave_no_doubt(cells: list[str], separator: str | None) -> None:
    assert detect_separator(cells, "here")[0] == separator


@pytest.mark.parametrize(
    "cells",
    [
        ["a,b", "c;d"],
        ["a|b,c"],
        ["ice cream", "apple pie"],
        ["Sports News", "World News", "Local News"],
        [f"{first} {last}" for first in ("Ann", "Bob", "Eve") for last in ("Fox", "Ray", "Lee", "Poe")],
    ],
)
def test_separators_in_doubt_are_refused(cells: list[str]) -> None:
    with pytest.raises(TagsteerError, match=r"here: cannot tell how labels are separated .*label_separator"):
        detect_separator(cells, "here")


def test_a_separator_may_be_given(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "text,labels\nx,Sports News\ny,World News\n")
    with pytest.raises(TagsteerError, match="labels in column 'labels' of"):
        from_table(path, "text", "labels")
    assert from_table(path, "text", "labels", label_separator=None).label_names == (
        "Sports News",
        "World News",
    )
    assert from_table(path, "text", "labels", label_separator=" ").label_names == ("News", "Sports", "World")
    assert split_labels("a :: b::", "::") == ["a", "b"]
