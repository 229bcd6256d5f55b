"""HTML to text: what is kept, what is dropped, and that nothing breaks it."""

from __future__ import annotations

import doctest
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagsteer.corpus import clean, separators, stackexchange, wordnet
from tagsteer.corpus.clean import comment_text, html_to_text, looks_like_html


@pytest.mark.parametrize("module", [clean, separators, stackexchange, wordnet], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("plain &amp; simple", "plain & simple"),
        ("no tags\nbut   spaces", "no tags but spaces"),
        ("<p>One</p>\n\n<p>Two</p>\n", "One\n\nTwo"),
        ("<p>a<br>b<br/>c</p>", "a\nb\nc"),
        ("<p>so <b>bold</b>, <em>very</em>.</p>", "so bold, very."),
        ('<p>see <a href="http://x.y/z?a=b">the <i>link</i></a>.</p>', "see the link."),
        ("<ul>\n<li>one</li>\n<li>two</li>\n</ul>", "one\ntwo"),
        ("<p>x</p><pre><code>if a:\n    b &lt; c\n\n</code></pre><p>y", "x\n\nif a:\n    b < c\n\ny"),
        ("<p>a<br><br>b</p>", "a\n\nb"),
        ("<p>use <code>a  b</code> here</p>", "use a b here"),
        ("<h2>Title</h2>text", "Title\n\ntext"),
        ("<blockquote><p>said</p></blockquote><p>I</p>", "said\n\nI"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("a<script>alert(1)</script><style>p{}</style><!-- no -->b", "ab"),
        ('<p>before <img src="x.png" alt="enter image description here"> after</p>', "before after"),
        ("&nbsp;<p>a&nbsp;b&#8217;s &copy; &lt;b&gt;</p>", "a b’s © <b>"),
        ("<p>unclosed <b>bold<p>next", "unclosed bold\n\nnext"),
        ("<p>zero\u200bwidth\x07 bell</p>", "zerowidth bell"),
        ("x<hr>y", "x\n\ny"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("\r\n<p>a\r\nb</p>", "a b"),
    ],
)
def test_html_to_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


def test_lists_and_rows_do_not_multiply_blank_lines() -> None:
    text = html_to_text("<ul>" + "<li><p>item</p></li>\n\n" * 5 + "</ul>")
    assert "\n\n\n" not in text
    assert text.split() == ["item"] * 5


def test_depth_costs_no_stack() -> None:
    assert html_to_text("<div>" * 20_000 + "deep" + "</div>" * 20_000) == "deep"
    assert html_to_text("<b>" * 300 + "x") == "x"


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.sampled_from('<>/!-&;ab pre="' + "\n\u00a0\x00"), max_size=80) | st.text(max_size=80)
)
def test_any_input_gives_tidy_text(source: str) -> None:
    text = html_to_text(source)
    assert text == text.strip()
    assert "\n\n\n" not in text
    assert not re.search(r"[\x00-\x08\r\u00a0]", text)


class Visible(HTMLParser):
    """The standard library's parser, to have the words by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.shared
def test_no_character_of_real_posts_is_lost(shared: Path) -> None:
    bodies = [
        element.get("Body", "")
        for name in ("beer_2020-06", "stackoverflow_2008-sample", "conlang-meta_2020-08")
        for element in ET.parse(shared / "stackexchange" / name / "Posts.xml").getroot()
    ]
    assert len(bodies) > 3000
    for body in bodies:
        other = Visible()
        other.feed(body)
        other.close()
        expected = "".join("".join(other.text).split()).replace("\u200b", "")
        assert "".join(html_to_text(body).split()) == expected


@pytest.mark.shared
def test_code_of_real_posts_keeps_its_indentation(shared: Path) -> None:
    posts = ET.parse(shared / "stackexchange/stackoverflow_2008-sample/Posts.xml").getroot()
    bodies = [element.get("Body", "") for element in posts]
    blocks = [block for body in bodies for block in re.findall(r"<pre><code>([^&<]+)</code></pre>", body)]
    cleaned = "\n".join(map(html_to_text, bodies))
    kept = [
        "\n".join(line.rstrip() for line in re.sub(r"\n{3,}", "\n\n", block).split("\n")).strip()
        for block in blocks
    ]
    assert len(kept) > 50
    assert sum(block in cleaned for block in kept) > 0.97 * len(kept)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain", "plain"),
        ("see [this](http://a.b/c) and [that](https://a.b/c_(d))!", "see this and that!"),
        ("[not a link] (http://x.y)", "[not a link] (http://x.y)"),
        ("a[0](1) stays", "a[0](1) stays"),
        ("*emph* `code <b>`", "*emph* `code <b>`"),
        ("two\n lines", "two lines"),
    ],
)
def test_comments_lose_their_link_addresses_only(source: str, text: str) -> None:
    assert comment_text(source) == text


def test_hostile_comments_take_no_time() -> None:
    for source in ("[" * 50_000, "[a](http://" * 20_000, "[a](http://x" + "(" * 20_000, "]" * 50_000 + "("):
        assert comment_text(source)


def test_looks_like_html() -> None:
    assert looks_like_html("<p>x</p>")
    assert looks_like_html("a<br>b")
    assert not looks_like_html("a < b and c > d")
    assert not looks_like_html("use List<String> here")
