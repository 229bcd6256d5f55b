"""`tagsteer judge` and `evaluate` on a small run folder, against a server on loopback and recorded ratings."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tagsteer.config import RunConfig
from tagsteer.judge.types import Rating
from tagsteer.run import STAGES, Run
from tests.judge.server import Fail, Say, serve
from tests.test_cli import call

STRENGTHS, INSTRUCTIONS = (0.5, 1.0), 4
RESULTS = {
    "corpus": {"documents": 1, "labels": 2, "source": "none"},
    "extract": {"tokens": 1, "features_fired": 2, "l0": 1.0},
    "score": {"labels": 2, "matches": 2, "best": "fish"},
    "select": {"pairs": 2, "labels": 2, "features_scored": 2},
    "steer": {"texts": 1, "methods": 2, "non_finite": 0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def run_folder(folder: Path, **judge) -> Path:
    """A run that was done up to `steer`, with texts of two pairs by two methods."""
    data = {"name": "small", "corpus": {"kind": "wordnet"}, "judge": {"retries": 0, "asks": 1, **judge}}
    run = Run(RunConfig.model_validate(data), folder)
    run._keep_config()
    rows = []
    for pair, label in enumerate(("fish", "wine")):
        for place in range(INSTRUCTIONS):
            for method, strength in [("unsteered", None), *(("steered", s) for s in STRENGTHS)]:
                text = f"Text {place} of {method} {label if strength else ''} {strength}"
                rows.append({
                    "method": method, "label": label, "feature": 10 + pair if strength else None, "strength": strength,
                    "value": strength, "instruction_id": place, "instruction_row": place, "instruction": f"Do {place}.",
                    "generation": text, "finish": "length", "n_tokens": 5, "digest": text, "pair": pair,
                })  # fmt: skip
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(run.path("steer") / "generations.parquet")
    pairs = {"pair": [0, 1], "label_name": ["fish", "wine"], "feature": [10, 11], "f1": [0.5, 0.4]}
    pl.DataFrame(pairs).write_parquet(run.path("select") / "pairs.parquet")
    for stage in STAGES[:5]:
        note = {"fingerprint": run.fingerprint(stage.name), "result": {**RESULTS[stage.name], "cells": 1}}
        (run.path(stage.name) / "stage.json").write_text(json.dumps(note))
    return folder


TEXTS = 2 * INSTRUCTIONS * (len(STRENGTHS) + 1)  # unsteered texts are judged for each label
# Both labels have the same unsteered texts, and neither instruction nor fluency is asked with a label.
QUESTIONS = TEXTS + 2 * (TEXTS - INSTRUCTIONS)
PRICES = {"price_in_per_million": 1.0, "price_out_per_million": 1.0}


def ratings(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "judge" / "ratings.parquet")


def test_a_server_judges_the_run_and_is_asked_once(capsys, tmp_path):
    replies = {True: "It is there.\nRating: [[2]]", False: "So so. Rating: 1"}
    with serve(lambda prompt, _: Say(replies["fish" in prompt])) as server:
        folder = run_folder(tmp_path / "run", kind="server", base_url=server.url, model="tiny-judge")
        status, _, err = call(capsys, "judge", folder)
        assert status == 0, err
        assert len(server.prompts) == len(set(server.prompts)) == QUESTIONS
        assert f"{TEXTS} texts rated by tiny-judge" in err
        table = ratings(folder)
        assert (
            table.filter(pl.col("label") == "fish", pl.col("method") == "steered")["concept"].to_list()
            == [2.0] * 8
        )
        assert set(table["instruction"]) == {1.0, 2.0} and table["reason"].null_count() == table.height
        # The stage is done; under other settings that change no question, its answers are taken from the store.
        assert call(capsys, "judge", folder)[0] == 0
        assert call(capsys, "judge", folder, "--judge", "server", "--judge-model", "tiny-judge")[0] == 0
        assert len(server.prompts) == QUESTIONS
        status, out, err = call(capsys, "evaluate", folder)
        assert status == 0 and "fish" in out and "tiny-judge" in out and "Report:" not in out, err


def test_missing_ratings_are_asked_again(capsys, tmp_path):
    down = [True]
    with serve(lambda prompt, _: Fail(400) if down[0] and "Do 1." in prompt else Say()) as server:
        folder = run_folder(
            tmp_path / "run", kind="server", base_url=server.url, model="tiny-judge", concurrency=1
        )
        assert call(capsys, "evaluate", folder)[0] == 0
        lacking = ratings(folder).filter(pl.col("instruction").is_null())
        assert set(lacking["instruction_id"]) == {1} and lacking["reason"].str.contains("400").all()
        down[0] = False
        asked = len(server.prompts)
        assert call(capsys, "judge", folder)[0] == 0
        # Both labels' unsteered text is one question.
        assert len(server.prompts) - asked == lacking["generation"].n_unique()
        assert ratings(folder)["instruction"].null_count() == 0
        # What was evaluated from the earlier ratings is out of date; a complete judgement is not begun again.
        assert not (folder / "evaluate" / "stage.json").exists()
        assert "done before" in call(capsys, "judge", folder)[2]


def test_a_ceiling_stops_with_one_line_and_resumes(capsys, tmp_path):
    with serve(lambda *_: Say(tokens=(300, 20))) as server:
        folder = run_folder(
            tmp_path / "run",
            kind="server",
            base_url=server.url,
            model="tiny-judge",
            concurrency=2,
            max_tokens=20,
            **PRICES,
        )
        status, out, err = call(capsys, "judge", folder, "--max-cost", "0.01")
        lines = [line for line in err.splitlines() if line.startswith("tagsteer:")]
        assert status == 2 and out == "" and len(lines) == 1 and "Traceback" not in err
        assert "max_cost = 0.01" in lines[0] and "raise max_cost and run again" in lines[0]
        first = len(server.prompts)
        assert 0 < first * 320e-6 <= 0.01
        table = ratings(folder)
        whole = table.filter(pl.col("reason").is_null()).height
        assert 0 < whole < table.height
        assert set(table["reason"].drop_nulls()) == {"not asked: the ceiling on cost was reached"}
        assert not (folder / "judge" / "stage.json").exists()
        assert call(capsys, "judge", folder, "--max-cost", "1")[0] == 0
        assert len(server.prompts) == QUESTIONS == len(set(server.prompts))
        assert ratings(folder)["reason"].null_count() == table.height
        assert json.loads((folder / "config.json").read_text())["judge"]["max_cost"] == 1.0


def test_a_dry_run_counts_and_sends_nothing(capsys, tmp_path):
    with serve(lambda *_: Say()) as server:
        folder = run_folder(
            tmp_path / "run", kind="server", base_url=server.url, model="tiny-judge", **PRICES
        )
        before = (folder / "config.json").read_text()
        status, out, _ = call(capsys, "judge", folder, "--dry-run", "--max-cost", "3")
        assert status == 0 and server.prompts == []
        assert f"{TEXTS} texts: {QUESTIONS} calls to tiny-judge (0 questions are answered already" in out
        assert "tokens in" in out and "about 0.0" in out and "max_cost = 3" in out
        assert (folder / "config.json").read_text() == before and not (folder / "judge").exists()
        call(capsys, "judge", folder)
        _, out, _ = call(capsys, "judge", folder, "--dry-run")
        assert f"0 calls to tiny-judge ({QUESTIONS} questions" in out


def test_a_dry_run_without_a_key_names_both_judges(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = run_folder(tmp_path / "run")
    status, out, _ = call(capsys, "judge", folder, "--dry-run")
    assert status == 0 and "offline judge: nothing is sent" in out and "OPENAI_API_KEY" in out
    assert f"{QUESTIONS} calls to gpt-4o-mini" in out and "cost unknown" in out
    status, out, _ = call(
        capsys, "judge", folder, "--dry-run", "--judge", "local", "--judge-model", "some/model"
    )
    assert status == 0 and f"{QUESTIONS} questions to some/model on this machine" in out


def wrong_words(folder: Path) -> dict[str, tuple[list, str]]:
    return {
        "unknown judge": (["judge", folder, "--judge", "servr"], "did you mean server"),
        "no key": (["judge", folder, "--judge", "server"], "OPENAI_API_KEY"),
        "local without a model": (["judge", folder, "--judge", "local"], "local = {model"),
        "no weights there": (["judge", folder, "--judge", "offline", "--judge-model", "no.saf"], "no.saf"),
        "ceiling without prices": (["judge", folder, "--max-cost", "1"], "price_in_per_million"),
        "correct alone": (["judge", folder, "--correct"], "--calibrate N"),
        "calibrate without a key": (["judge", folder, "--calibrate", "5"], "OPENAI_API_KEY"),
        "calibrate by itself": (["judge", folder, "--calibrate", "5", "--judge", "offline"], "server or local"),
        "calibrate dry": (["judge", folder, "--calibrate", "5", "--dry-run"], "--dry-run"),
        "evaluate nothing": (["evaluate"], "--from-axbench"),
        "evaluate both": (["evaluate", folder, "--from-axbench", folder], "not both"),
        "suppression of a run": (["evaluate", folder, "--suppression"], "--from-axbench"),
        "no AxBench folder": (["evaluate", "--from-axbench", folder], "steering_data.parquet"),
        "family": (["evaluate", "--from-axbench", folder, "--family", "D"], "auto, A, B or C"),
        "out for a run folder": (["judge", folder, "--out", "elsewhere"], "--out is for experiment files"),
    }  # fmt: skip


@pytest.mark.parametrize("case", wrong_words(Path()))
def test_wrong_words_change_nothing(capsys, tmp_path, monkeypatch, case):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = run_folder(tmp_path / "run")
    words, expected = wrong_words(folder)[case]
    status, out, err = call(capsys, *words)
    assert status == 2 and out == "" and "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("tagsteer:")]
    assert expected in line
    assert not (folder / "judge" / "ratings.parquet").exists()


def test_a_dry_run_of_a_run_without_texts_says_what_to_do(capsys, tmp_path):
    folder = run_folder(tmp_path / "run")
    (folder / "steer" / "stage.json").unlink()
    status, _, err = call(capsys, "judge", folder, "--dry-run")
    assert status == 2 and "tagsteer steer" in err


class Offline:
    """Ratings one can compute: short by 0.5 of what the server says."""

    name, version = "offline judge, not gpt-4o-mini", "test-1"

    def describe(self) -> str:
        return f"{self.name} ({self.version})"

    def rate(self, items):
        for item in items:
            value = 1.5 if "1.0" in item.generation else 0.5
            yield item.key, Rating(value, value, 1.0, {}, self.describe())


def test_calibration_compares_and_corrects(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tagsteer.stages.judges._offline", lambda _: Offline())
    replies = {True: "Rating: [[2]]", False: "Rating: [[1]]"}
    with serve(lambda prompt, _: Say(replies["1.0" in prompt])) as server:
        folder = run_folder(tmp_path / "run", kind="offline", base_url=server.url, model="tiny-judge")
        status, out, err = call(capsys, "judge", folder, "--calibrate", "12", "--correct")
        assert status == 0, err
        assert len(set(server.prompts)) == len(server.prompts) <= 36
        note = json.loads((folder / "judge" / "calibration.json").read_text())
        assert note["texts_judged"] == 12 and note["texts"] == TEXTS and note["llm"].startswith("tiny-judge")
        assert note["agreement"]["bias"]["concept"] == pytest.approx(-0.5)
        # The offline judge is off by exactly 0.5: the correction takes out nearly all of it (lambda is below 1).
        corrected = note["corrected"]["all"]["concept"]
        truth = (2 * 8 + 1 * 16) / TEXTS
        assert corrected["low"] <= truth <= corrected["high"]
        assert corrected["naive"] == pytest.approx(truth - 0.5)
        assert "corrected" not in out and "concept: Spearman 1.00" in out and "all, concept:" in out
        # The run's own ratings are still the offline ones, and the same sample is paid for once.
        assert set(ratings(folder)["concept"]) == {0.5, 1.5}
        asked = len(server.prompts)
        status, out, _ = call(capsys, "judge", folder, "--calibrate", "12")
        assert status == 0 and len(server.prompts) == asked and "all, concept:" not in out
        assert json.loads((folder / "judge" / "calibration.json").read_text())["corrected"] is None
        status, _, err = call(capsys, "judge", folder, "--calibrate", "99")
        assert status == 2 and "99 of 24" in err


def test_calibration_is_of_an_offline_run(capsys, tmp_path):
    with serve(lambda *_: Say()) as server:
        folder = run_folder(tmp_path / "run", kind="server", base_url=server.url, model="tiny-judge")
        status, _, err = call(capsys, "judge", folder, "--calibrate", "5")
        assert status == 2 and "--judge offline" in err


def test_a_local_model_judges_by_the_rubric(capsys, tmp_path, monkeypatch, tiny_llama):
    monkeypatch.setattr("tagsteer.lm.model.load_model", lambda *_: tiny_llama)
    folder = run_folder(tmp_path / "run", local={"model": "tiny", "max_new_tokens": 2, "batch_size": 64})
    with monkeypatch.context() as short:
        # 512 positions are too few for the whole rubric in bytes.
        short.setattr("tagsteer.judge.local.LocalJudge._generate", _say_one)
        status, _, err = call(capsys, "judge", folder, "--judge", "local")
    assert status == 0 and "tiny-llama (local)" in err, err
    assert set(ratings(folder)["concept"]) == {1.0}
    assert json.loads((folder / "config.json").read_text())["judge"]["kind"] == "local"


def _say_one(_, batch):
    from tagsteer.judge.store import Reply

    return [Reply("Rating: [[1]]", "stop", 1, 1) for _ in batch]


@pytest.mark.shared
@pytest.mark.parametrize(
    "run", ["output_llama/test_gating/lsreft_200_factor_shuffle_1_20", "output/addition_20"]
)
def test_axbench_folders_give_the_golden_figures(capsys, shared, tmp_path, run):
    wanted = json.loads((shared / "axbench/derived/golden.json").read_text("utf-8"))["steering"][run][
        "summary"
    ]
    folder = shared / "axbench/runs" / run
    status, out, err = call(capsys, "evaluate", "--from-axbench", folder, "--out", tmp_path / "tables")
    assert status == 0 and err == ""
    figures = dict(
        line.split() for line in out.splitlines() if len(line.split()) == 2 and not line.startswith("note")
    )
    names = {"max_all10_mean": "max_over_all_mean"}
    [exact] = json.loads((tmp_path / "tables" / "report.json").read_text())["summary"]
    for name, value in wanted.items():
        if name != "run":
            assert exact[names.get(name, name)] == value, name
            assert figures[names.get(name, name)] == (
                f"{value:.6g}" if isinstance(value, float) else str(value)
            )
    assert "dev = first" in out and "note: " in out and "by concept" in out
    assert pl.read_csv(tmp_path / "tables" / "concepts.csv").height == 10


@pytest.mark.shared
def test_axbench_duplicates_and_suppression_are_told(capsys, shared):
    _, out, _ = call(capsys, "evaluate", "--from-axbench", shared / "axbench/runs/output/clamping_20_more")
    assert (
        "several rows of one key" in out and "... and 80 more" in out and "100 keys have several rows" in out
    )
    _, out, _ = call(
        capsys, "evaluate", "--from-axbench", shared / "axbench/runs/output/addition_20", "--suppression"
    )
    assert "hm(2 - concept, instruction, fluency)" in out and "failed replies: missing" in out
