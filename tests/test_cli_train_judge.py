"""`tagsteer train-judge`: tables as people have them, the weights it writes, and judging a run with them."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import polars as pl
import pytest

from tagsteer.cli.ratings import read_ratings
from tagsteer.errors import TagsteerError
from tagsteer.judge.inputs import INPUTS
from tagsteer.judge.learned import LearnedJudge
from tagsteer.judge.training import Learner
from tests.test_cli import call
from tests.test_cli_judge import TEXTS, ratings, run_folder

THREE = ("relevance_concept", "relevance_instruction", "fluency")


def rated(n: int = 240) -> pl.DataFrame:
    """Texts over eight concepts whose ratings follow from their length."""
    long = np.random.default_rng(0).integers(1, 30, n)
    return pl.DataFrame({
        "concept": [f"concept {i % 8}" for i in range(n)],
        "instruction": [f"Do {i}." for i in range(n)],
        "generation": ["x" * int(k) + f" {i}" for i, k in enumerate(long)],
        **{name: [float(min(2, k // 10)) for k in long] for name in THREE},
    })  # fmt: skip


def lengths(_concepts, _instructions, texts) -> np.ndarray:
    """Inputs that need no embedder: the length of the first word."""
    out = np.zeros((len(texts), len(INPUTS)), np.float32)
    out[:, 0] = [len(text.split()[0]) for text in texts]
    return out


@pytest.fixture(autouse=True)
def cheap_training(monkeypatch):
    monkeypatch.setattr("tagsteer.judge.training._default_inputs", lambda: lengths)
    short = partial(Learner, iterations=6, learning_rate=0.5, leaves=4, inputs_per_split=1.0)
    monkeypatch.setattr("tagsteer.judge.training.Learner", short)


def test_trained_weights_judge_a_run(capsys, tmp_path, monkeypatch):
    rated().write_csv(tmp_path / "mine.csv")
    status, out, err = call(
        capsys,
        "train-judge",
        tmp_path / "mine.csv",
        "--out",
        tmp_path / "judge",
        "--rated-by",
        "two people",
        "--folds",
        4,
    )
    assert status == 0, err
    assert "240 texts of 240 rows, 8 concepts, rated by two people" in out and "fluency: Spearman" in out
    card = json.loads((tmp_path / "judge" / "card.json").read_text())
    assert card["version"] == "judge" and card["held_out_concepts"]["spearman"]["concept"] > 0.9
    path = tmp_path / "judge" / "judge.safetensors"

    def predict(judge, items):
        return judge.weights.predict(lengths([], [], [item.generation for item in items]))

    monkeypatch.setattr(LearnedJudge, "predict", predict)
    folder = run_folder(tmp_path / "run")
    status, _, err = call(capsys, "judge", folder, "--judge", "offline", "--judge-model", path)
    assert status == 0 and f"{TEXTS} texts rated by offline judge, not gpt-4o-mini (judge" in err, err
    assert ratings(folder)["concept"].is_between(0, 2).all()
    assert json.loads((folder / "config.json").read_text())["judge"]["weights"] == str(path)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_formats(tmp_path, ending):
    table, path = rated(5), tmp_path / f"t.{ending}"
    {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[ending](path)
    found, judge, columns = read_ratings(path)
    assert found.equals(table) and columns == THREE and path.name in judge


def test_the_ratings_of_a_run_and_of_its_csv_file(tmp_path):
    row = {
        "method": "steered", "label": "fish", "strength": 1.0, "instruction_text": "Do it.", "generation": "A fish.",
        "concept": 2.0, "instruction": 1.0, "fluency": 0.0,
    }  # fmt: skip
    (tmp_path / "judge").mkdir()
    pl.DataFrame([row]).write_parquet(tmp_path / "judge" / "ratings.parquet")
    note = {"name": "gpt", "version": "1", "description": "gpt, rubric 1"}
    (tmp_path / "judge" / "judge.json").write_text(json.dumps(note))
    table, judge, columns = read_ratings(tmp_path)
    wanted = {
        "concept": "fish",
        "instruction": "Do it.",
        "generation": "A fish.",
        "factor": 1.0,
        "method": "steered",
    }
    wanted |= dict(zip(THREE, (2.0, 1.0, 0.0), strict=True))
    assert judge == "gpt, rubric 1" and columns == THREE and table.row(0, named=True) == wanted
    exported = {f"{k}_rating" if k in ("concept", "instruction", "fluency") else k: v for k, v in row.items()}
    pl.DataFrame([exported]).write_csv(tmp_path / "generations.csv")
    assert read_ratings(tmp_path / "generations.csv")[0].row(0, named=True) == wanted
    # People's own columns beside the judge's: theirs are learned.
    own = {**row, "people_c": 0.0, "people_i": 1.0, "people_f": 2.0}
    pl.DataFrame([own]).write_csv(tmp_path / "own.csv")
    table, _, columns = read_ratings(tmp_path / "own.csv", "people_c, people_i, people_f")
    assert columns == ("people_c", "people_i", "people_f") and table["concept"][0] == "fish"
    (tmp_path / "judge" / "judge.json").write_text(json.dumps({**note, "name": "offline judge"}))
    with pytest.raises(TagsteerError, match="ratings of an LLM or of people"):
        read_ratings(tmp_path)


WRONG = {
    "absent": ("no.csv", [], "no table of ratings"),
    "another kind": ("t.xlsx", [], "no table of ratings"),
    "broken": ("broken.parquet", [], "cannot read"),
    "columns": ("t.csv", ["--ratings", "a,b"], "wanted three"),
    "absent columns": ("t.csv", ["--ratings", "a,b,c"], "lacks a, b, c"),
    "too few": ("t.csv", [], "too few"),
    "no run": ("", [], "judge/ratings.parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables_are_one_line(capsys, tmp_path, case):
    name, words, expected = WRONG[case]
    rated(9).write_csv(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"")
    (tmp_path / "broken.parquet").write_bytes(b"not a table")
    status, out, err = call(capsys, "train-judge", tmp_path / name, "--out", tmp_path / "judge", *words)
    [line] = [line for line in err.splitlines() if line.startswith("tagsteer:")]
    assert status == 2 and out == "" and expected in line
