"""CSV files read back by Python's csv module against the tables, and the terminal's short table."""

from __future__ import annotations

import csv

import polars as pl
import pytest

from tagsteer.report.read import read_run
from tagsteer.report.tables import neutralised, short_table, write_tables
from tagsteer.report.text import visible
from tests.report.fake_run import LABELS, make_run


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), labels=LABELS[:2], instructions=3)


def test_csv_has_every_generation_and_rating(run, tmp_path):
    record = read_run(run)
    write_tables(record, tmp_path)
    rows = rows_of(tmp_path / "generations.csv")
    assert len(rows) == record.texts.height == 2 * 3 * (5 + 1 + 5 + 1)
    for row, wanted in zip(rows, record.texts.to_dicts(), strict=True):
        assert (row["method"], row["label"], row["generation"]) == (
            wanted["method"],
            wanted["label"],
            wanted["generation"],
        )
        assert row["instruction_text"] == wanted["instruction_text"]
        for name in ("concept", "instruction", "fluency"):
            assert row[f"{name}_rating"] == ("" if wanted[name] is None else str(wanted[name]))
    pairs = rows_of(tmp_path / "pairs.csv")
    assert [p["label"] for p in pairs] == list(LABELS[:2])
    assert [float(p["overall"]) for p in pairs] == record.pairs["overall"].to_list()
    methods = rows_of(tmp_path / "methods.csv")
    assert {m["protocol"] for m in methods} == {"paper"} and all(
        "not gpt-4o-mini" in m["judge"] for m in methods
    )


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        " =cmd|'/C calc'!A0",
        "\n=1",
        "＝1",
        "\ufeff=1",
        "- a list",
    ],
)
def test_formulas_get_an_apostrophe(text):
    assert neutralised(pl.DataFrame({"a": [text]}))["a"][0] == "'" + text


def test_other_cells_stay_as_they_are():
    table = pl.DataFrame({"a": ["a=1", "", None, 'naïve, "quoted"\nline'], "n": [-1.5, None, 0.0, 2.0]})
    assert neutralised(table).equals(table)
    lists = neutralised(pl.DataFrame({"t": [["=a", " b"], ["c"]]}))
    assert lists["t"].to_list() == ["'=a |  b", "c"]


def test_short_table_has_the_figures_of_the_evaluation(run):
    record = read_run(run)
    rows = short_table(run)
    assert [(r.label, r.feature) for r in rows] == [("beverage", 1000), ("musical instrument", 1137)]
    steered = record.summary.pairs.filter(pl.col("method") == "steered")
    unsteered = record.summary.pairs.filter(pl.col("method") == "unsteered")
    assert [r.overall for r in rows] == steered["overall"].to_list()
    assert [r.unsteered for r in rows] == unsteered["overall"].to_list()
    assert [r.f1 for r in rows] == record.pairs["f1"].to_list()


def test_short_table_makes_labels_visible(tmp_path):
    run = make_run(tmp_path, labels=("a\x1b[31m\u202eb",), instructions=2)
    assert short_table(run)[0].label == "a⟨U+001B⟩[31m⟨U+202E⟩b"


def test_visible_keeps_readable_text():
    kept = "naïve 日本語 עברית 👩\u200d🔬\n\ttabs"
    assert visible(kept) == kept
    assert visible("\r\n") == "\n" and visible("\r") == "⟨U+000D⟩"
    assert visible("\ud83d\ude00"[:1]) == "⟨U+D83D⟩" and visible("\U000e0041") == "⟨U+E0041⟩"
