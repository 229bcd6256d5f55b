"""HTML of a post to the text that its reader sees. Knows HTML and Stack Exchange's comment markup, nothing
else.

What is kept: the text of every element, links by their text (the address is dropped), code both inline and in
blocks (indentation and line breaks of `pre` as they are), entities as the characters they stand for.
What is dropped: tags, HTML comments, scripts, styles, images. Block elements begin on a new line, white space
outside `pre` shrinks to one space, control characters vanish, and no two blank lines follow each other.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

# fmt: off
_PARAGRAPHS = frozenset((
    "p", "pre", "blockquote", "ul", "ol", "dl", "table", "h1", "h2", "h3", "h4", "h5", "h6", "div", "section",
    "article", "figure", "hr",
))
_LINES = frozenset((
    "li", "dt", "dd", "tr", "caption", "header", "footer", "main", "nav", "aside", "address", "form",
    "fieldset", "details", "summary",
))
_CELLS = frozenset(("td", "th"))
_DROPPED = frozenset((
    "script", "style", "template", "noscript", "iframe", "object", "svg", "math", "img", "-comment", "head",
    "title",
))
# fmt: on

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff\ufffe\uffff]")
_SPACE = re.compile(r"[ \t\r\n\f\u00a0]+")
_SPACED_BREAK = re.compile(r"[ \t]+\n")
_BREAKS = re.compile(r"\n{3,}")
_CLOSING = re.compile(
    r"</(?:p|a|div|span|li|ul|ol|pre|code|em|strong|b|i|h[1-6]|td|table|blockquote)>|<br\s*/?>", re.I
)
_MARKDOWN_LINK = re.compile(
    r"\[([^\[\]\n]{1,500})\]\((?:https?:)?//[^\s()]*(?:\([^\s()]*\)[^\s()]*)*(?:\s\"[^\"\n]*\")?\)"
)


def html_to_text(source: str) -> str:
    """The readable text of an HTML fragment; never fails, whatever the markup.

    >>> html_to_text('<p>Use <code>a&lt;b</code>, see <a href="http://x.y">this</a>.</p><p>Bye</p>')
    'Use a<b, see this.\\n\\nBye'
    """
    if "<" not in source:
        return _tidy(_SPACE.sub(" ", html.unescape(source)))
    from selectolax.lexbor import LexborHTMLParser

    body = LexborHTMLParser(source).body
    return _tidy("".join(_pieces(body))) if body is not None else ""


def _pieces(root: LexborNode) -> list[str]:
    """Text and line breaks in reading order; a walk without recursion, so that depth costs no stack."""
    out: list[str] = []
    in_pre = 0

    def break_line(tag: str) -> None:
        if tag in _PARAGRAPHS:
            out.append("\n\n")
        elif tag in _LINES and not (out and out[-1].endswith("\n")):
            out.append("\n")
        elif tag in _CELLS and out and out[-1][-1] not in " \n":
            out.append(" ")

    def leave(tag: str) -> None:
        nonlocal in_pre
        in_pre -= tag == "pre"
        break_line(tag)

    node = root.first_child
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            text = node.text_content or ""
            if not in_pre:
                text = _SPACE.sub(" ", text)
                if not out or out[-1][-1] in " \n":
                    text = text.lstrip(" ")
            if text:
                out.append(text)
        elif tag == "br":
            out.append("\n")
        elif tag not in _DROPPED:
            break_line(tag)
            in_pre += tag == "pre"
            if (child := node.first_child) is not None:
                node = child
                continue
            leave(tag)
        while node is not None and node.next is None:
            node = node.parent
            if node is None or node.mem_id == root.mem_id:
                return out
            leave(node.tag or "")
        node = node.next if node is not None else None
    return out


def _tidy(text: str) -> str:
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " "))
    return _BREAKS.sub("\n\n", _SPACED_BREAK.sub("\n", text)).strip()


def plain_text(source: str) -> str:
    """Text that is not HTML (a title, a table's cell): line ends unified, control characters out, trimmed."""
    return _tidy(source)


def comment_text(source: str) -> str:
    """A comment of Stack Exchange, whose markup is a little Markdown: links by their text, the rest as it is.

    >>> comment_text('See [the FAQ](https://x.y/faq "title"), *please*')
    'See the FAQ, *please*'
    """
    return _tidy(_SPACE.sub(" ", _MARKDOWN_LINK.sub(r"\1", source)))


def looks_like_html(source: str) -> bool:
    """Whether a cell has the closing tags or line breaks that HTML of posts is full of; `a < b` has none."""
    return bool(_CLOSING.search(source))
