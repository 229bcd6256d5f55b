"""Small hand-made dumps for the tests of this room, and the slow plain reader they are checked against."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr


def row(**attributes: object) -> str:
    """One row as a dump has it."""
    pairs = (f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f"  <row {' '.join(pairs)} />"


def question(number: int, title: str = "How?", body: str = "<p>Like this.</p>", tags: str = "<a><b>") -> str:
    return row(Id=number, PostTypeId=1, Body=body, Title=title, Tags=tags)


def write_dump(
    folder: Path,
    posts: Sequence[str],
    comments: Sequence[str] | None = None,
    *,
    head: str = "",
    end: str = "\r\n",
) -> Path:
    """Posts.xml, and Comments.xml if there are any, in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    declaration = '<?xml version="1.0" encoding="utf-8"?>'

    def put(name: str, root: str, lines: Sequence[str]) -> None:
        text = end.join([declaration, *([head] if head else []), f"<{root}>", *lines, f"</{root}>", ""])
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())

    put("Posts.xml", "posts", posts)
    if comments is not None:
        put("Comments.xml", "comments", comments)
    return folder


def plain_questions(posts: Path) -> dict[str, tuple[str, set[str]]]:
    """Title and tags of every question by id, read with the standard library's whole-tree parser."""
    found = {}
    for element in ET.parse(posts).getroot():
        if element.get("PostTypeId") == "1":
            tags = set(re.split(r"[<>|]+", element.get("Tags", ""))) - {""}
            found[element.get("Id", "")] = (element.get("Title", ""), tags)
    return found
