"""The `<row .../>` elements of a Stack Exchange XML file, one at a time, whatever surrounds them.

Each row is cut out of the byte stream and parsed alone. So memory is bounded by the longest row, a broken row
costs only itself and is known by its line, and neither a DOCTYPE nor its entities ever reach a parser:
nothing can be fetched or expanded. (`iterparse` over the whole file gives up at the first broken row, or,
told to recover, invents attributes; its line numbers end at 65,535.) Knows XML; must not know what posts or
comments are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tagsteer.errors import TagsteerError

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 16 << 20  # the longest post of Stack Exchange is far below 1 MB

_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_NAME = re.compile(rb"[A-Za-z_][\w.-]*")


class Row(NamedTuple):
    """One row: its line from 1, and its attributes, or None and the parser's complaint."""

    line: int
    attributes: dict[str, str] | None
    problem: str = ""


class Ending(NamedTuple):
    """What the file turned out to be: its root element ("" when it has none) and whether that was closed."""

    root: str
    closed: bool


def rows(path: Path, advance: Callable[[int], None] | None = None) -> Iterator[Row | Ending]:
    """Yield a Row for every row of the file, and one Ending at last; `advance` hears of the bytes read.

    A file that cannot be read, or is in another encoding than UTF-8, is a TagsteerError.
    """
    try:
        with path.open("rb") as stream:
            _check_encoding(path, stream)
            yield from _rows(path, stream, advance)
    except OSError as error:
        raise TagsteerError(f"cannot read {path}: {error.strerror or error}") from error


def _rows(path: Path, stream: BinaryIO, advance: Callable[[int], None] | None) -> Iterator[Row | Ending]:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    root, closed, in_comment = "", False, False
    held: tuple[int, bytes] | None = None  # a `<row ...>` that waits for its `</row>`
    for line, piece in _pieces(path, stream, advance):
        # `<` is not allowed inside attributes: between two of them stands one tag, and text after it.
        if in_comment or piece.startswith(b"!--"):
            in_comment = b"-->" not in piece
            continue
        if held is not None:
            start, opened = held
            held = None
            if piece.startswith(b"/row"):
                yield _parse(etree, parser, start, opened + b"</row>")
                continue
            yield Row(start, None, "no end of the row before the next tag")
        if piece[:3] == b"row" and (piece[3:4].isspace() or piece[3:4] in (b"/", b">")):
            tag = piece.rstrip()
            if tag.endswith(b"/>"):
                yield _parse(etree, parser, line, b"<" + tag)
            elif tag.endswith(b">"):
                held = (line, b"<" + tag)
            else:
                yield Row(line, None, "no end of the row before the next tag or the end of the file")
        elif not root and (name := _NAME.match(piece)):
            root = name.group().decode("ascii", "replace")
        elif root and piece.startswith(b"/" + root.encode()):
            closed = True
    if held is not None:
        yield Row(held[0], None, "no end of the row before the end of the file")
    yield Ending(root, closed)


def _parse(etree, parser, line: int, source: bytes) -> Row:
    try:
        return Row(line, dict(etree.fromstring(source, parser).attrib))
    except etree.XMLSyntaxError as error:
        return Row(line, None, str(error.msg).split(", line ")[0])
    except ValueError as error:
        return Row(line, None, str(error))


def _pieces(
    path: Path, stream: BinaryIO, advance: Callable[[int], None] | None
) -> Iterator[tuple[int, bytes]]:
    """What follows each `<` up to the next one, with the line of that `<`."""
    line, rest, before_first = 1, b"", True
    while block := stream.read(BLOCK_BYTES):
        if advance is not None:
            advance(len(block))
        pieces = (rest + block).split(b"<")
        rest = pieces.pop()
        for piece in pieces:
            if not before_first:
                yield line, piece
            before_first = False
            line += piece.count(b"\n")
        if len(rest) > MAX_ROW_BYTES:
            raise TagsteerError(
                f"{path}:{line}: {len(rest):,} bytes without a tag: "
                "wanted XML of a Stack Exchange dump, like Posts.xml"
            )
    if not before_first:
        yield line, rest


def _check_encoding(path: Path, stream: BinaryIO) -> None:
    head = stream.read(512)
    stream.seek(0)
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    declared = _ENCODING.match(head.removeprefix(b"\xef\xbb\xbf"))
    name = "UTF-16" if wide else declared.group(1).decode() if declared else "utf-8"
    if name.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise TagsteerError(f"{path} is in {name}: dumps are UTF-8, re-encode it (iconv -f {name} -t UTF-8)")
