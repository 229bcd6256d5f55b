"""The command line: bad input gives one line that says what to do (exit 2), never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tagsteer.cli import main


def call(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


def test_help_names_every_command(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0
    for command in ("demo", "run", "corpus", "extract", "score", "select", "steer", "judge", "evaluate", "report",
                    "train-sae", "show", "doctor", "generate", "chat"):  # fmt: skip
        assert f"  {command} " in out


@pytest.mark.parametrize("command", ["run", "corpus", "generate", "doctor"])
def test_every_command_has_help(capsys, command):
    status, out, _ = call(capsys, command, "--help")
    assert status == 0 and "Usage" in out


BAD = {
    "missing config": (["run", "absent.toml"], ["absent.toml", "give the path"]),
    "no run folder": (["show", "absent"], ["absent", "run folder"]),
    "neither folder nor toml": (["score", "something.txt"], ["something.txt", "run folder"]),
    "unknown command": (["stear"], ["No such command"]),
    "missing argument": (["run"], ["Missing argument"]),
    "feature or label": (["generate", "Hello"], ["--feature", "--label"]),
    "label without a run": (
        ["generate", "--label", "fish", "--run", "nowhere", "Hi"],
        ["nowhere", "tagsteer demo"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_words_give_one_line(capsys, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, expected = BAD[case]
    status, out, err = call(capsys, *words)
    assert status == 2 and out == "" and "Traceback" not in err
    assert all(part in err for part in expected), err


BAD_CONFIG = {
    "all problems at once": (
        'corpus = {kind = "table", path = "x.csv", labels = "tags"}\nseed = "two"\n[steer]\nstrenghts = [1.0]\n',
        ["text: Field required", "strenghts", "seed"],
    ),
    "unknown corpus": ('corpus = {kind = "wordnets"}\n', ["corpus", "wordnet"]),
    "broken toml": ("corpus = \n", ["not valid TOML"]),
    "missing file": ('corpus = {kind = "stackexchange", path = "no.7z"}\n', ["no.7z"]),
    "empty strengths": ('corpus = {kind = "wordnet"}\n[steer]\nstrengths = []\n', ["steer.strengths"]),
    "ceiling without prices": (
        'corpus = {kind = "wordnet"}\n[judge]\nmax_cost = 1.0\n',
        ["price_in_per_million"],
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_wrong_configurations_give_one_line(capsys, case, tmp_path):
    text, expected = BAD_CONFIG[case]
    status, _, err = call(capsys, "run", config(tmp_path, text), "--out", tmp_path / "run")
    assert status == 2 and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert all(part in err for part in expected), err


def test_unknown_column_is_named_with_those_there(capsys, tmp_path):
    (tmp_path / "posts.csv").write_text("title,tags\nhow to bake,bread\n")
    text = 'corpus = {kind = "table", path = "posts.csv", text = ["titel"], labels = "tags"}\n'
    status, _, err = call(capsys, "corpus", config(tmp_path, text), "--out", tmp_path / "run")
    assert status == 2 and "titel" in err and "title" in err


def test_corpus_prints_documents_labels_and_what_was_skipped(capsys, tmp_path):
    rows = "".join(f'"how to bake {i}","bread;oven"\n' for i in range(12)) + '"","bread"\n'
    (tmp_path / "posts.csv").write_text("title,tags\n" + rows)
    text = 'corpus = {kind = "table", path = "posts.csv", text = ["title"], labels = "tags"}\n'
    status, out, _ = call(capsys, "corpus", config(tmp_path, text), "--out", tmp_path / "run")
    assert status == 0
    assert "documents" in out and "labels with 10 or more documents" in out and "skipped" in out
    note = json.loads((tmp_path / "run" / "corpus" / "stage.json").read_text())
    assert note["result"]["documents"] == 12


def test_debug_shows_the_traceback():
    from tagsteer.errors import TagsteerError

    with pytest.raises(TagsteerError, match="absent"):
        main(["run", "absent.toml", "--debug"])


def test_doctor_tells_what_is_here_without_downloading(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TAGSTEER_CACHE", str(tmp_path))
    status, out, _ = call(capsys, "doctor")
    assert status == 0 and "would download 93 MB" in out and "layer-12-l0-64 (default)" in out
    assert "device: " in out and not any(tmp_path.iterdir())
