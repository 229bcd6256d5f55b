"""Questions of a Stack Exchange dump as documents, their tags as labels.

A document is the question's title, its cleaned body, its comments in the order they were written, and, if
asked for, its answers. Reads what archive.org serves (.7z), an unpacked folder or a bare Posts.xml. Knows the
dump's schema; must not know how XML or archives are read (xml_rows, archive) or what the documents are used
for.
"""

from __future__ import annotations

import logging
import re
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tagsteer.corpus.archive import extract_7z
from tagsteer.corpus.clean import comment_text, html_to_text, plain_text
from tagsteer.corpus.labels import LabelBuilder, SkipLog
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.texts import TextBuilder, Texts
from tagsteer.corpus.xml_rows import Row, rows
from tagsteer.errors import TagsteerError
from tagsteer.progress import track

log = logging.getLogger("tagsteer.corpus")

_POSTS, _COMMENTS = "Posts.xml", "Comments.xml"
_SEPARATOR = "\n\n"
# https://meta.stackexchange.com/questions/2677 (database schema): PostTypes.
_LEFT_OUT_TYPES = {
    "3": "orphaned tag wiki",
    "4": "tag wiki excerpt",
    "5": "tag wiki",
    "6": "moderator nomination",
    "7": "wiki placeholder",
    "8": "privilege wiki",
}
_MALFORMED = "malformed XML row"


def from_stackexchange(
    path: str | Path,
    answers: bool = False,
    comments: bool | str | Path = True,
) -> Corpus:
    """Read a dump: `path` is a .7z of archive.org, a folder with Posts.xml, or a Posts.xml.

    `comments=True` appends the question's own comments, from the Comments.xml in the same archive or folder
    (where there is none, the log and the corpus' source say so); a path names another Comments.xml or .7z.
    `answers=True` appends the answers, in the order of their ids. Comments on answers are never read. Rows
    that are broken, untagged or of other types are counted in `skipped`. A missing file, a damaged archive
    and a file without a usable question are TagsteerErrors.
    """
    place = Path(path).expanduser()
    with ExitStack() as stack:
        files = _find(place, [_POSTS, _COMMENTS] if comments is True else [_POSTS], stack)
        if _POSTS not in files:
            raise TagsteerError(
                f"{place} holds no {_POSTS}: name a dump of one site, its folder, or its {_POSTS}"
            )
        comment_file = files.get(_COMMENTS)
        if isinstance(comments, str | Path):
            found = _find(Path(comments).expanduser(), [_COMMENTS], stack)
            if _COMMENTS not in found:
                raise TagsteerError(
                    f"{comments} holds no {_COMMENTS}: name the file, its folder or its archive"
                )
            comment_file = found[_COMMENTS]
        return _read(str(place), files[_POSTS], comment_file, answers, bool(comments))


def _find(place: Path, names: list[str], stack: ExitStack) -> dict[str, Path]:
    """Where the named XML files lie, after unpacking an archive into a folder that the stack removes."""
    if not place.exists():
        raise TagsteerError(f"no such file or folder: {place}; name a .7z, a folder or an XML file of a dump")
    if place.is_dir():
        return {name: place / name for name in names if (place / name).is_file()}
    if place.suffix.lower() == ".7z":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tagsteer-dump-")))
        return extract_7z(place, names, folder)
    if place.suffix.lower() != ".xml":
        raise TagsteerError(
            f"{place} is neither a .7z nor an .xml file nor a folder: wanted a Stack Exchange dump"
        )
    # A bare file is taken by whatever name; the comments may lie beside it.
    found = {names[0]: place}
    if _COMMENTS in names[1:] and (beside := place.with_name(_COMMENTS)).is_file():
        found[_COMMENTS] = beside
    return found


def _read(place: str, posts: Path, comments: Path | None, answers: bool, comments_wanted: bool) -> Corpus:
    skip = SkipLog()
    questions = _Questions(skip, answers)
    for where, row in _rows_of(posts, "posts", "questions", skip):
        questions.add(where, row)
    parts = questions.parts
    parts.number_answers(questions.index, skip)
    n_comments = 0
    if comments is not None and len(questions.index):
        n_comments = _add_comments(comments, questions.index, parts, skip)
    elif comments_wanted and comments is None:
        log.warning("%s has no %s: documents are title and body only", place, _COMMENTS)
    names, matrix = questions.labels.finish()
    told = "no comments" if comments is None else f"{n_comments:,} comments"
    source = f"Stack Exchange dump {place} (title, body, {told}" + (
        f", {parts.n_answers:,} answers)" if answers else ")"
    )
    texts = parts.joined(questions.texts.finish())
    return Corpus(texts, questions.ids.finish(), names, matrix, source, skip.result())


def _rows_of(path: Path, root: str, what: str, skip: SkipLog) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and attributes of every well-formed row; the others, and an unclosed file, go to the skip log."""
    with track(f"read {path.name}", path.stat().st_size, "B") as bar:
        for item in rows(path, bar.advance):
            if not isinstance(item, Row):
                if item.root and item.root != root:
                    raise TagsteerError(
                        f"{path} holds <{item.root}>, not <{root}>: name the dump's file of {what}"
                    )
                if not item.closed:
                    skip.add(f"file without closing </{root}> (cut off?)", path.name)
            elif item.attributes is None:
                skip.add(_MALFORMED, f"{path.name}:{item.line} {item.problem}")
            else:
                yield f"{path.name}:{item.line}", item.attributes


class _Questions:
    """The questions of Posts.xml: their texts, ids, labels and positions; answers go to the parts."""

    def __init__(self, skip: SkipLog, answers: bool) -> None:
        self.skip, self.answers = skip, answers
        self.texts, self.ids, self.labels = TextBuilder(), TextBuilder(), LabelBuilder()
        self.index: dict[int, int] = {}
        self.parts = _Parts()

    def add(self, where: str, row: dict[str, str]) -> None:
        """Take one row of Posts.xml."""
        kind = row.get("PostTypeId")
        identifier = _integer(row.get("Id"))
        if kind is None or identifier is None:
            missing = "PostTypeId" if kind is None else "Id"
            self.skip.add(f"row without a usable {missing}", f"{where} {missing}={row.get(missing)!r}")
        elif kind == "1":
            self._add_question(f"{where} Id {identifier}", identifier, row)
        elif kind == "2":
            self._add_answer(f"{where} Id {identifier}", row)
        else:
            name = _LEFT_OUT_TYPES.get(kind, "post of unknown type")
            self.skip.add(f"left out: {name} (PostTypeId {kind})", f"{where} Id {identifier}")

    def _add_question(self, where: str, identifier: int, row: dict[str, str]) -> None:
        title, body = row.get("Title"), row.get("Body")
        if title is None or body is None:
            self.skip.add(f"question without {'Title' if title is None else 'Body'}", where)
            return
        tags = parse_tags(row.get("Tags", ""))
        if not tags:
            self.skip.add("question without readable Tags", f"{where} Tags={row.get('Tags')!r:.80}")
            return
        text = _SEPARATOR.join(part for part in (plain_text(title), html_to_text(body)) if part)
        if not text:
            self.skip.add("question without text", where)
            return
        if identifier in self.index:
            self.skip.add("question whose Id was there before", where)
            return
        self.index[identifier] = len(self.index)
        self.texts.append(text)
        self.ids.append(str(identifier))
        self.labels.append(tags)

    def _add_answer(self, where: str, row: dict[str, str]) -> None:
        if not self.answers:
            self.skip.add("left out: answer (answers=True adds them)")
            return
        parent, body = _integer(row.get("ParentId")), row.get("Body")
        if parent is None or body is None:
            self.skip.add(f"answer without a usable {'ParentId' if parent is None else 'Body'}", where)
        elif text := html_to_text(body):
            self.parts.add(parent, text)


class _Parts:
    """Texts that will be appended to documents, each with the position of its document."""

    def __init__(self) -> None:
        self._documents = array("q")
        self._kinds = array("b")
        self._texts = TextBuilder()
        self.n_answers = 0

    def add(self, document: int, text: str, kind: int = 1) -> None:
        """Append a text; kind 0 (comments) comes before kind 1 (answers), whatever the order of reading."""
        self._documents.append(document)
        self._kinds.append(kind)
        self._texts.append(text)

    def number_answers(self, index: dict[int, int], skip: SkipLog) -> None:
        """Turn the parents' post ids into positions, now that all questions are known; -1 for none."""
        for i, parent in enumerate(self._documents):
            position = index.get(parent, -1)
            if position < 0:
                skip.add("answer to a question that is not there", f"ParentId {parent}")
            else:
                self.n_answers += 1
            self._documents[i] = position

    def joined(self, questions: Texts) -> Texts:
        """Every question with its parts behind it, 4,096 at a time."""
        import numpy as np

        if not len(self._documents):
            return questions
        documents = np.frombuffer(self._documents, dtype=np.int64)
        order = np.lexsort(
            (np.frombuffer(self._kinds, dtype=np.int8), documents)
        )  # stable: file order within
        starts = np.searchsorted(documents[order], np.arange(len(questions) + 1))
        texts, out = self._texts.finish(), TextBuilder()
        for first in range(0, len(questions), 4096):
            last = min(first + 4096, len(questions))
            pieces = list(texts.take(order[starts[first] : starts[last]]))
            bounds = starts[first : last + 1] - starts[first]
            for question, a, b in zip(questions[first:last], bounds, bounds[1:], strict=False):
                out.append(_SEPARATOR.join([question, *pieces[a:b]]))
        return out.finish()


def _add_comments(path: Path, index: dict[int, int], parts: _Parts, skip: SkipLog) -> int:
    count = 0
    for where, row in _rows_of(path, "comments", "comments", skip):
        post, text = _integer(row.get("PostId")), row.get("Text")
        if post is None or text is None:
            skip.add(f"comment without a usable {'PostId' if post is None else 'Text'}", where)
        elif post not in index:
            skip.add("left out: comment on an answer or another post")
        elif text := comment_text(text):
            parts.add(index[post], text, kind=0)
            count += 1
    return count


_ANGLED = re.compile(r"(?:<[^<>|\s]+>)+")
_PIPED = re.compile(r"\|(?:[^<>|\s]+\|)+")
_TAG = re.compile(r"[^<>|\s]+")


def parse_tags(source: str) -> list[str]:
    """The tags of `<a><b>` (dumps until 2023) or `|a|b|` (since then); [] for anything else.

    >>> parse_tags("<c#><.net>"), parse_tags("|c++|"), parse_tags("c++ java")
    (['c#', '.net'], ['c++'], [])
    """
    source = source.strip()
    return _TAG.findall(source) if _ANGLED.fullmatch(source) or _PIPED.fullmatch(source) else []


def _integer(value: str | None) -> int | None:
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 18:
        return None
    return int(value)
