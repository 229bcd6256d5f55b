"""Recorded replies, and rating anew from a store, need no server."""

from __future__ import annotations

import json

import pytest

from tagsteer.errors import TagsteerError
from tagsteer.judge.replies import RecordedJudge, StoredJudge
from tagsteer.judge.types import PARTS, Judge, Rating
from tests.judge.conftest import make_items
from tests.judge.server import Say, serve


def test_recorded_replies(tmp_path):
    path = tmp_path / "replies.jsonl"
    rows = [("k0", part, f"Rating: [[{score}]]") for score, part in enumerate(PARTS)]
    rows += [("k1", "concept", "Rating: 2"), ("k1", "fluency", "no idea")]
    path.write_text(
        "\n".join(json.dumps(dict(zip(("key", "part", "reply"), row, strict=True))) for row in rows)
    )
    judge = RecordedJudge.from_jsonl(path)
    assert isinstance(judge, Judge)
    ratings = dict(judge.rate(make_items(2)))
    assert ratings["k0"] == Rating(0, 1, 2, {}, "recorded replies, version 1")
    reasons = {"instruction": "no reply is recorded", "fluency": 'the reply holds no "Rating:"'}
    assert ratings["k1"] == Rating(2, None, None, reasons, "recorded replies, version 1")


def test_replies_by_a_function():
    judge = RecordedJudge(lambda part, item: f"Rating: {len(item.key) - 2}" if part != "fluency" else None)
    (rating,) = dict(judge.rate(make_items(1))).values()
    assert (rating.concept, rating.instruction, rating.fluency) == (0, 0, None)


@pytest.mark.parametrize(
    "line", ["{", '{"key": "a"}', '{"key": "a", "part": "style", "reply": ""}', "[]", '{"key": 1}']
)
def test_odd_lines_are_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text("\n" + line)
    with pytest.raises(TagsteerError, match=r"r\.jsonl:2"):
        RecordedJudge.from_jsonl(path)
    with pytest.raises(TagsteerError, match="cannot read"):
        RecordedJudge.from_jsonl(tmp_path / "absent.jsonl")


def test_rating_anew_needs_no_server(make_judge, store):
    with serve(lambda *_: Say("Rating: 1")) as server:
        judge = make_judge(server.url)
        ratings = dict(judge.rate(make_items(2)))
    again = StoredJudge(judge.settings, store)
    assert isinstance(again, Judge)
    anew = dict(again.rate(make_items(3)))
    assert {key: anew[key] for key in ratings} == ratings
    assert anew["k2"].reasons == dict.fromkeys(PARTS, "it was never asked")
