"""The page: what it says against the tables, hostile text, limits, and what it may load (nothing)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.report.page import write_report
from tagsteer.report.read import Document, read_run
from tagsteer.report.views import LeftOut, Limits, document_view, pair_views, shade
from tests.report.fake_run import LABELS, make_run

HOSTILE = '<script>alert("x")</script>\'"><img src=http://evil.example onerror=a()> \u202egnp.exe\x07\u200b{{ 7*7 }}'


class Reader(HTMLParser):
    """Elements, attributes and text of a page, as a browser would separate them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), labels=LABELS[:3])


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = write_report(run, tmp_path_factory.mktemp("report"))
    return path.read_text("utf-8"), path.parent


def test_page_and_files_are_there(page):
    text, folder = page
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    figures = {
        f"figures/{n}.{s}"
        for n in ("methods", "naming-and-causing", "strength-curves")
        for s in ("png", "svg")
    }
    assert names == {"report.html", "pairs.csv", "generations.csv", "methods.csv"} | figures
    assert text.startswith("<!DOCTYPE html>")


def test_page_names_judge_protocol_date_and_every_pair(run, page):
    said = " ".join(Reader(page[0]).text.split())
    record = read_run(run)
    for wanted in (
        "offline judge, not gpt-4o-mini",
        "protocol paper",
        "2026-01-02",
        "WordNet 3.0 nouns",
        *LABELS[:3],
    ):
        assert wanted in said
    for row in record.pairs.to_dicts():
        assert f"overall {row['overall']:.2f} at strength {row['strength']:g}" in said
        assert f"unsteered {row['unsteered_overall']:.2f}" in said
    assert "no text: 12" in said and "no rating in the reply" in said


def test_page_loads_nothing_and_runs_only_its_own_script(page):
    reader = Reader(page[0])
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        assert not attributes.keys() & {"src", "srcset", "action"}
        assert not any(name.startswith("on") for name in attributes)
        if "href" in attributes or "xlink:href" in attributes:
            target = attributes.get("href") or attributes.get("xlink:href")
            assert target.startswith("#") or target in (
                "pairs.csv",
                "generations.csv",
                "methods.csv",
                "figures/",
            )
    assert "url(http" not in page[0] and "@import" not in page[0]
    (script,) = re.findall(r"<script>(.*?)</script>", page[0], flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        a["content"] for t, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_ids_are_unique_and_links_lead_somewhere(page):
    elements = Reader(page[0]).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {
        h[1:] for _, a in elements for h in (a.get("href"), a.get("xlink:href")) if h and h.startswith("#")
    }
    targets |= set(re.findall(r"url\(#([^)]+)\)", page[0]))
    assert targets and targets <= set(ids)


def test_hostile_text_is_text(tmp_path):
    run = make_run(
        tmp_path / "run",
        labels=(HOSTILE, "=1+1"),
        generation=HOSTILE,
        token=HOSTILE + "\ud800",
        instructions=2,
    )
    config = json.loads((run / "config.json").read_text())
    config["name"] = HOSTILE + "\udfff"
    (run / "config.json").write_text(json.dumps(config))
    judge = json.loads((run / "judge/judge.json").read_text())
    (run / "judge/judge.json").write_text(json.dumps(judge | {"description": HOSTILE}))
    ratings = pl.read_parquet(run / "judge/ratings.parquet")
    reasons = ratings.with_columns(reason=pl.when(pl.col("reason").is_not_null()).then(pl.lit(HOSTILE)))
    reasons.with_columns(finish=pl.lit(HOSTILE)).write_parquet(run / "judge/ratings.parquet")
    text = write_report(run, tmp_path / "out").read_text("utf-8")
    reader = Reader(text)
    assert sum(tag == "script" for tag, _ in reader.elements) == 1
    assert not any(tag == "img" for tag, _ in reader.elements)
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert "⟨U+202E⟩gnp.exe⟨U+0007⟩⟨U+200B⟩{{ 7*7 }}" in reader.text
    assert "⟨U+D800⟩" in reader.text and "⟨U+DFFF⟩" in reader.text
    svg = (tmp_path / "out/figures/strength-curves.svg").read_text("utf-8")
    assert "<script" not in svg and "\u202e" not in svg


def test_labels_of_formulas_and_unknown_glyphs_can_be_drawn(tmp_path):
    run = make_run(tmp_path / "run", labels=("$x^{", "日本語 עברית"), instructions=2)
    assert write_report(run, tmp_path / "out").is_file()


def test_page_without_prompting_or_pairs_that_have_scores(tmp_path):
    run = make_run(tmp_path / "run", labels=LABELS[:1], instructions=2, prompt=False, missing=1000)
    said = " ".join(Reader(write_report(run, tmp_path / "out").read_text("utf-8")).text.split())
    assert "no overall score: " in said and "no prompt baseline in this table" in said


def test_limits_are_kept_and_said(run, tmp_path):
    limits = Limits(pairs=2, instructions=1, text_characters=20, total_characters=150)
    said = " ".join(Reader(write_report(run, tmp_path, limits).read_text("utf-8")).text.split())
    views, left_out = pair_views(read_run(run), limits)
    shown = [card for v in views for i in v.instructions for card in (*i.cards, *i.others)]
    assert len(views) == 2 and sum(len(card.text) for card in shown) <= 150
    # Two pairs, one instruction: 5 steered strengths, unsteered, random, prompt.
    assert len(shown) + left_out.texts_dropped == 2 * 8
    for note in left_out.notes():
        assert note in said
    assert "1 pair beyond the limit" in said and "7 further instructions per pair" in said


def test_texts_are_those_of_the_table(run):
    record = read_run(run)
    view = pair_views(record, Limits())[0][1]
    rows = record.texts.filter(pl.col("pair") == 1, pl.col("instruction_id") == 0)
    steered = rows.filter(pl.col("method") == "steered").sort("strength")
    chosen = view.row["strength"]
    cards = view.instructions[0]
    assert [c.kind for c in cards.cards] == ["unsteered", "steered", "random", "prompt"]
    assert [c.chosen for c in cards.cards] == [False, True, False, False]
    at = steered.filter(pl.col("strength") == chosen).row(0, named=True)
    assert (cards.cards[1].text, cards.cards[1].overall) == (at["generation"], at["overall"])
    rest = steered.filter(pl.col("strength") != chosen)["generation"].to_list()
    assert [c.text for c in cards.others] == rest


def test_overall_of_texts_is_the_harmonic_mean(run):
    texts = read_run(run).texts
    parts = [pl.col(n).cast(pl.Float64) for n in ("concept", "instruction", "fluency")]
    zero = pl.any_horizontal(p == 0 for p in parts)
    wanted = texts.select(pl.when(zero).then(0.0).otherwise(3 / sum(1 / p for p in parts)))
    wanted = wanted.to_series().set(texts["concept"].is_null(), None)
    assert (wanted.is_null() == texts["overall"].is_null()).all() and texts["overall"].null_count() == 3
    assert (wanted - texts["overall"]).abs().max() < 1e-12


def test_document_marks_each_firing_token_and_cuts_around_the_peak():
    tokens = tuple(f"t{i} " for i in range(10))
    activations = (9.0, 0.0, 0.0, 1.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0)
    document = Document("d", True, 0.2, 4.0, 6, tokens, activations, (False,) + (True,) * 9)
    left_out = LeftOut()
    whole = document_view(document, 4.0, Limits(), left_out)
    assert "".join(piece.text for piece in whole.pieces) == "".join(tokens)
    assert [(p.text, p.level) for p in whole.pieces if p.level] == [("t3 ", 2), ("t6 ", 5)]
    assert [p.title for p in whole.pieces if p.peak] == ["activation 4.00"] and whole.pieces[0].aside
    cut = document_view(document, 4.0, Limits(document_tokens=4), left_out)
    assert "".join(p.text for p in cut.pieces) == "t4 t5 t6 t7 " and (cut.before, cut.after) == (4, 2)
    assert left_out.documents_cut == 1


def test_shades_are_equal_steps():
    assert [shade(v, 10.0) for v in (0.01, 2.0, 2.01, 5.0, 9.9, 10.0, 12.0)] == [1, 1, 2, 3, 5, 5, 5]


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("corpus/corpus.json", "tagsteer corpus"),
        ("select/pairs.parquet", "tagsteer select"),
        ("select/evidence.json", "tagsteer select"),
        ("steer/methods.json", "tagsteer steer"),
        ("judge/ratings.parquet", "tagsteer judge"),
        ("evaluate/summary.json", "tagsteer evaluate"),
        ("evaluate/curves.parquet", "tagsteer evaluate"),
    ],
)
def test_missing_stage_names_its_command(tmp_path, file, command):
    run = make_run(tmp_path, labels=LABELS[:1], instructions=2)
    (run / file).unlink()
    with pytest.raises(TagsteerError, match=command):
        read_run(run)


def test_broken_or_absent_folders(tmp_path):
    with pytest.raises(TagsteerError, match="no run folder"):
        read_run(tmp_path / "nothing")
    run = make_run(tmp_path / "run", labels=LABELS[:1], instructions=2)
    (run / "select/evidence.json").write_text('[{"feature": 1}]')
    with pytest.raises(TagsteerError, match="tagsteer select"):
        read_run(run)
    (run / "select/evidence.json").write_text("[")
    with pytest.raises(TagsteerError, match="not valid JSON"):
        read_run(run)


def test_ratings_of_other_texts_are_refused(tmp_path):
    run = make_run(tmp_path, labels=LABELS[:1], instructions=2)
    ratings = pl.read_parquet(run / "judge/ratings.parquet")
    ratings.with_columns(digest=pl.lit("other")).write_parquet(run / "judge/ratings.parquet")
    with pytest.raises(TagsteerError, match="tagsteer judge"):
        read_run(run)
    generations = pl.read_parquet(run / "steer/generations.parquet")
    named = ratings.with_columns(generations["instruction"].alias("instruction_text"))
    named.write_parquet(run / "judge/ratings.parquet")
    assert read_run(run).texts["instruction_text"].equals(generations["instruction"], check_names=False)
