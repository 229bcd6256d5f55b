"""Stack Exchange dumps: the real ones against a plain reader, and hostile ones made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import py7zr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagsteer.corpus.stackexchange import from_stackexchange, parse_tags
from tagsteer.corpus.store import Corpus
from tagsteer.errors import TagsteerError
from tests.corpus.dumps import plain_questions, question, row, write_dump

DUMPS = {  # folder: documents, labels, labels with >= 20 and >= 50 documents
    "beer_2020-06": (1029, 153, 29, 9),
    "conlang-meta_2020-08": (54, 20, 1, 1),
    "cooking_questions": (15404, 736, 341, 161),
    "datascience-meta_2024-01_pipe-tags": (257, 51, 5, 1),
    "history-meta_2018-09": (556, 65, 9, 2),
    "stackoverflow_2008-sample": (173, 304, 2, 0),
}


def tags_of(corpus: Corpus, i: int) -> set[str]:
    return {corpus.label_names[j] for j in corpus.label_matrix[i].indices}


@pytest.mark.shared
@pytest.mark.parametrize("folder", DUMPS)
def test_real_dumps_agree_with_a_plain_reader(shared: Path, folder: str) -> None:
    place = shared / "stackexchange" / folder
    corpus = from_stackexchange(place)
    support = corpus.support
    counts = (len(corpus), len(corpus.label_names), int((support >= 20).sum()), int((support >= 50).sum()))
    assert counts == DUMPS[folder]
    expected = plain_questions(place / "Posts.xml")
    assert list(corpus.ids) == list(expected)
    assert all(tags_of(corpus, i) == expected[key][1] for i, key in enumerate(corpus.ids))
    plain_support = Counter(tag for _, tags in expected.values() for tag in tags)
    assert dict(zip(corpus.label_names, support.tolist(), strict=True)) == plain_support
    # Titles are plain text; spaces at their ends and no-break spaces are all that may differ.
    titles = [expected[identifier][0].replace("\xa0", " ").strip() for identifier in corpus.ids]
    assert all(text.startswith(title) for text, title in zip(corpus.texts, titles, strict=True))
    assert corpus.skipped.malformed == 0


@pytest.mark.shared
def test_the_beer_archive_equals_its_folder_and_its_own_tag_table(shared: Path) -> None:
    place = shared / "stackexchange" / "beer_2020-06"
    packed = from_stackexchange(place / "beer.stackexchange.com.7z")
    folder = from_stackexchange(place)
    assert list(packed.texts) == list(folder.texts)
    assert packed.label_names == folder.label_names
    assert (packed.label_matrix != folder.label_matrix).nnz == 0
    table = {t.get("TagName"): int(t.get("Count", 0)) for t in ET.parse(place / "Tags.xml").getroot()}
    support = dict(zip(folder.label_names, folder.support.tolist(), strict=True))
    assert support == {tag: n for tag, n in table.items() if n}
    assert folder.skipped.counts["left out: answer (answers=True adds them)"] == 2277
    assert folder.skipped.counts["left out: tag wiki (PostTypeId 5)"] == 81


@pytest.mark.shared
def test_comments_and_answers_of_the_beer_dump_stand_behind_their_question(shared: Path) -> None:
    place = shared / "stackexchange" / "beer_2020-06"
    bare = from_stackexchange(place, comments=False)
    full = from_stackexchange(place, answers=True)
    comments = ET.parse(place / "Comments.xml").getroot()
    answers = [e for e in ET.parse(place / "Posts.xml").getroot() if e.get("PostTypeId") == "2"]
    n_comments = Counter(e.get("PostId") for e in comments)
    n_answers = Counter(e.get("ParentId") for e in answers)
    assert f"{sum(n_comments[i] for i in full.ids):,} comments" in full.source
    assert f"{len(answers):,} answers" in full.source
    for i, identifier in enumerate(bare.ids):
        assert full.texts[i].startswith(bare.texts[i])
        alone = not n_comments[identifier] and not n_answers[identifier]
        assert (full.texts[i] == bare.texts[i]) == alone
    order = [e.get("Text", "")[:25] for e in comments if e.get("PostId") == "5"]
    positions = [full.texts[list(full.ids).index("5")].find(start) for start in order]
    assert order
    assert positions == sorted(positions)
    assert min(positions) > 0


@pytest.mark.shared
def test_a_doctype_is_never_followed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a socket was opened: {args} {kwargs}")

    monkeypatch.setattr(socket, "socket", refuse)
    assert b"<!DOCTYPE" in (shared / "stackexchange/history-meta_2018-09/Posts.xml").read_bytes()[:200]
    assert len(from_stackexchange(shared / "stackexchange/history-meta_2018-09")) == 556


def test_title_body_comments_answers_in_that_order(tmp_path: Path) -> None:
    posts = [
        row(Id=7, PostTypeId=2, ParentId=9, Body="<p>Answer one</p>"),  # a parent may come later
        question(9, "Title & <b>", "<p>Body</p>", "|c++|.net|"),
        row(Id=10, PostTypeId=2, ParentId=9, Body="<p>Answer two</p>"),
        row(Id=11, PostTypeId=2, ParentId=4, Body="<p>To nobody</p>"),
        question(12, "Other", "<p>Else</p>", "<c#>"),
    ]
    comments = [
        row(Id=1, PostId=9, Text="first [link](http://x.y/z)"),
        row(Id=2, PostId=10, Text="on an answer"),
        row(Id=3, PostId=9, Text="second"),
    ]
    corpus = from_stackexchange(write_dump(tmp_path, posts, comments), answers=True)
    assert corpus.texts[0] == "Title & <b>\n\nBody\n\nfirst link\n\nsecond\n\nAnswer one\n\nAnswer two"
    assert corpus.texts[1] == "Other\n\nElse"
    assert corpus.label_names == (".net", "c#", "c++")
    assert corpus.skipped.counts["answer to a question that is not there"] == 1
    assert corpus.skipped.counts["left out: comment on an answer or another post"] == 1


def test_comments_may_lie_in_another_file(tmp_path: Path) -> None:
    write_dump(tmp_path / "posts", [question(1)])
    elsewhere = write_dump(tmp_path / "comments", [], [row(Id=1, PostId=1, Text="elsewhere")])
    for place in (elsewhere, elsewhere / "Comments.xml"):
        corpus = from_stackexchange(tmp_path / "posts" / "Posts.xml", comments=place)
        assert corpus.texts[0].endswith("\n\nelsewhere")
    with pytest.raises(TagsteerError, match=r"holds no Comments\.xml"):
        from_stackexchange(tmp_path / "posts", comments=tmp_path / "posts")


def test_broken_rows_are_counted_with_their_line_and_cost_only_themselves(tmp_path: Path) -> None:
    posts = [
        question(1),  # line 3
        '  <row Id="2" PostTypeId="1" Title="unescaped < here" Body="x" Tags="&lt;a&gt;" />',
        '  <row Id="3" PostTypeId="1" Title="open quote Body="x" Tags="&lt;a&gt;" />',
        '  <row Id="4" PostTypeId="1" Title="&nosuch;" Body="x" Tags="&lt;a&gt;" />',
        '  <row Id="5" PostTypeId="1" Title="cut',
        question(6),  # line 8
        row(PostTypeId=1, Title="no id", Body="x", Tags="<a>"),
        row(Id="ten", PostTypeId=1, Title="bad id", Body="x", Tags="<a>"),
        row(Id=11, Title="no type", Body="x", Tags="<a>"),
        row(Id=12, PostTypeId=1, Body="no title", Tags="<a>"),
        row(Id=13, PostTypeId=1, Title="no body", Tags="<a>"),
        row(Id=14, PostTypeId=1, Title="no tags", Body="x"),
        row(Id=15, PostTypeId=1, Title="odd tags", Body="x", Tags="<a"),
        row(Id=16, PostTypeId=99, Body="new kind of post"),
        question(6, "the same id again"),
        row(Id=17, PostTypeId=1, Title=" ", Body="<p> </p>", Tags="<a>"),
        "  <!-- " + question(18) + " -->",
        '  <row Id="19" PostTypeId="1" Title="two\nlines" Body=\'single "quotes"\' Tags="|a|"></row>',
        question(20, tags="<a><a>"),
    ]
    corpus = from_stackexchange(write_dump(tmp_path, posts))
    assert list(corpus.ids) == ["1", "6", "19", "20"]
    assert corpus.texts[2] == 'two lines\n\nsingle "quotes"'
    assert corpus.label_matrix.toarray().tolist() == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert corpus.label_matrix.data.max() == 1
    assert corpus.skipped.counts == {
        "malformed XML row": 4,
        "row without a usable Id": 2,
        "row without a usable PostTypeId": 1,
        "question without Title": 1,
        "question without Body": 1,
        "question without readable Tags": 2,
        "question without text": 1,
        "question whose Id was there before": 1,
        "left out: post of unknown type (PostTypeId 99)": 1,
    }
    lines = [place.split()[0] for place in corpus.skipped.examples["malformed XML row"]]
    assert lines == ["Posts.xml:4", "Posts.xml:5", "Posts.xml:6", "Posts.xml:7"]
    assert corpus.skipped.examples["question whose Id was there before"] == ("Posts.xml:17 Id 6",)
    assert corpus.skipped.malformed == 14 - 1


@pytest.mark.parametrize("entity", ['<!ENTITY x SYSTEM "file:///etc/passwd">', '<!ENTITY x "harmless">'])
def test_entities_are_not_resolved(tmp_path: Path, entity: str) -> None:
    posts = [question(1), question(2).replace("How?", "&x;")]
    corpus = from_stackexchange(write_dump(tmp_path, posts, head=f"<!DOCTYPE posts [ {entity} ]>"))
    assert list(corpus.ids) == ["1"]
    assert corpus.skipped.examples["malformed XML row"] == ("Posts.xml:5 Entity 'x' not defined",)


def test_a_billion_laughs_are_not_laughed(tmp_path: Path) -> None:
    bomb = ['<!ENTITY l0 "ha">'] + [f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12)]
    posts = [question(1), question(2).replace("How?", "&l11;")]
    corpus = from_stackexchange(write_dump(tmp_path, posts, head=f"<!DOCTYPE posts [{''.join(bomb)}]>"))
    assert list(corpus.ids) == ["1"]
    assert corpus.skipped.counts == {"malformed XML row": 1}


def test_a_cut_off_file_keeps_what_came_before(tmp_path: Path) -> None:
    file = write_dump(tmp_path, [question(1), question(2)]) / "Posts.xml"
    file.write_bytes(file.read_bytes()[:-60])
    corpus = from_stackexchange(tmp_path)
    assert list(corpus.ids) == ["1"]
    assert corpus.skipped.counts == {"malformed XML row": 1, "file without closing </posts> (cut off?)": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no usable document"),
        (b"<posts></posts>", "no usable document"),
        (bytes(range(256)) * 100, "no usable document"),
        (b"\0" * (40 << 20), "without a tag"),
        (b"<badges><row Id='1'/></badges>", "holds <badges>, not <posts>"),
        ("<posts></posts>".encode("utf-16"), "UTF-16"),
        (b'<?xml version="1.0" encoding="latin-1"?><posts/>', "latin-1"),
        (b"<posts><row Id='1' PostTypeId='2'/></posts>", "left out: answer"),
    ],
    ids=["empty", "no rows", "binary", "no tag", "wrong file", "utf-16", "latin-1", "answers only"],
)
def test_files_that_hold_no_question_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "Posts.xml").write_bytes(content)
    with pytest.raises(TagsteerError, match=message) as caught:
        from_stackexchange(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_unsuitable_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dump.zip").touch()
    cases = [("gone.7z", "no such file"), ("empty", "holds no Posts.xml"), ("dump.zip", "neither")]
    for name, message in cases:
        with pytest.raises(TagsteerError, match=message):
            from_stackexchange(tmp_path / name)


def archive(path: Path, members: dict[str, str]) -> Path:
    with py7zr.SevenZipFile(path, "w") as opened:
        for name, text in members.items():
            opened.writestr(text, name)
    return path


@pytest.fixture
def posts_xml(tmp_path: Path) -> str:
    posts = [question(i) for i in range(1, 200)]
    return (write_dump(tmp_path / "dump", posts) / "Posts.xml").read_text("utf-8")


def test_only_two_members_of_an_archive_are_unpacked_and_removed_again(
    tmp_path: Path, posts_xml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    file = archive(tmp_path / "a.7z", {"Badges.xml": "x" * 9999, "site/Posts.xml": posts_xml})
    corpus = from_stackexchange(file)
    assert len(corpus) == 199
    assert "no comments" in corpus.source
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(TagsteerError, match=r"holds no Posts\.xml"):
        from_stackexchange(archive(tmp_path / "b.7z", {"Badges.xml": "x"}))
    with pytest.raises(TagsteerError, match="holds both"):
        from_stackexchange(archive(tmp_path / "c.7z", {"a/Posts.xml": posts_xml, "b/Posts.xml": posts_xml}))


def test_damaged_archives_are_refused(tmp_path: Path, posts_xml: str) -> None:
    whole = archive(tmp_path / "a.7z", {"Posts.xml": posts_xml}).read_bytes()
    broken = tmp_path / "broken.7z"
    flipped = whole[:200] + b"\xff" * 50 + whole[250:]
    for content in (b"", b"7z", whole[: len(whole) // 2], whole[:-1], flipped):
        broken.write_bytes(content)
        with pytest.raises(TagsteerError, match="not a whole") as caught:
            from_stackexchange(broken)
        assert "\n" not in str(caught.value)


HOSTILE_NAMES = ["../Posts.xml", "/tmp/Posts.xml", "a/../../../Posts.xml", "..\\..\\Posts.xml"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_paths_inside_an_archive_lead_nowhere(
    tmp_path: Path, posts_xml: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "deep" / "er" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    # py7zr refuses to write such a name, so a harmless one of the same length is replaced in the bytes.
    harmless = "z" * (len(name) - len("Posts.xml")) + "Posts.xml"
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as opened:
        opened.set_encoded_header_mode(False)
        opened.writestr(posts_xml, harmless)
    (tmp_path / "a.7z").write_bytes(renamed((tmp_path / "a.7z").read_bytes(), harmless, name))
    before = {path for path in tmp_path.rglob("*") if "dump" not in path.parts}
    try:
        assert len(from_stackexchange(tmp_path / "a.7z")) == 199
    except TagsteerError as error:
        assert "not a whole" in str(error)
    assert {path for path in tmp_path.rglob("*") if "dump" not in path.parts} == before
    assert not Path("/tmp/Posts.xml").exists()


def renamed(content: bytes, old: str, new: str) -> bytes:
    """The archive with another member name of the same length, and its two header checksums made right."""
    import struct
    import zlib

    data = bytearray(content.replace(old.encode("utf-16-le"), new.encode("utf-16-le")))
    assert bytes(data) != content
    offset, size, _ = struct.unpack("<QQI", data[12:32])
    data[28:32] = struct.pack("<I", zlib.crc32(data[32 + offset : 32 + offset + size]))
    data[8:12] = struct.pack("<I", zlib.crc32(data[12:32]))
    return bytes(data)


def test_a_disk_too_small_is_said_before_unpacking(
    tmp_path: Path, posts_xml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = type(shutil.disk_usage(tmp_path))(100, 99, 1)
    monkeypatch.setattr("tagsteer.corpus.archive.shutil.disk_usage", lambda _: usage)
    with pytest.raises(TagsteerError, match="TMPDIR"):
        from_stackexchange(archive(tmp_path / "a.7z", {"Posts.xml": posts_xml}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=60), at=st.floats(0, 1))
def test_junk_anywhere_never_costs_rows_far_from_it(tmp_path: Path, junk: bytes, at: float) -> None:
    file = write_dump(tmp_path, [question(i, f"title {i}") for i in range(1, 21)]) / "Posts.xml"
    content = file.read_bytes()
    start, stop = content.index(b"  <row"), content.rindex(b"</posts>")
    place = start + int(at * (stop - start))
    # A comment that is opened hides what follows; that is what comments are for.
    file.write_bytes(content[:place] + junk.replace(b"!--", b"!") + content[place:])
    corpus = from_stackexchange(tmp_path, comments=False)
    assert len(corpus) >= 18
    assert set(corpus.ids) <= {str(i) for i in range(10**3)} | set(corpus.ids)
    near = content[:place].count(b"<row")
    assert {str(i) for i in range(1, 21) if abs(i - near) > 1} <= set(corpus.ids)


def test_long_rows_and_many_lines_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagsteer.corpus.xml_rows.BLOCK_BYTES", 7)
    posts = [question(i, f"title {i}") for i in range(1, 60)]
    posts[40] = "  <row Id='41' broken />"
    corpus = from_stackexchange(write_dump(tmp_path, posts, end="\n"))
    assert len(corpus) == 58
    assert corpus.skipped.examples["malformed XML row"][0].startswith("Posts.xml:43 ")
    # More lines than libxml2 can number (65,535).
    monkeypatch.setattr("tagsteer.corpus.xml_rows.BLOCK_BYTES", 1 << 20)
    write_dump(tmp_path, [""] * 70_000 + ["<row />", question(1)], end="\n")
    corpus = from_stackexchange(tmp_path)
    assert corpus.skipped.examples["row without a usable PostTypeId"][0].startswith("Posts.xml:70003 ")


@pytest.mark.parametrize(
    ("source", "tags"),
    [
        ("<a>", ["a"]),
        ("<c#><.net><c++>", ["c#", ".net", "c++"]),
        ("|c#|.net|", ["c#", ".net"]),
        ("<naïve-bayes>", ["naïve-bayes"]),
        (" |a| ", ["a"]),
        ("", []),
        ("<>", []),
        ("||", []),
        ("a b", []),
        ("<a>b", []),
        ("<a|b>", []),
        ("|a", []),
    ],
)
def test_parse_tags(source: str, tags: list[str]) -> None:
    assert parse_tags(source) == tags
