"""A whole run on a tiny random model: every stage's files, resumption after a kill, changed settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from tagsteer.config import RunConfig
from tagsteer.errors import TagsteerError
from tagsteer.judge.replies import RecordedJudge
from tagsteer.run import STAGES, Run
from tagsteer.sae.sae import SAE
from tagsteer.stages import steering
from tests.tiny import D_MODEL, tiny_model

LABELS = ("bread", "wine")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A saved tiny model, an SAE of its width, and tagged documents whose letters differ by tag."""
    folder = tmp_path_factory.mktemp("inputs")
    model = tiny_model("llama")
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(48, D_MODEL, generator=g), dim=1)
    SAE(
        kind="relu",
        W_enc=rows.T.contiguous(),
        b_enc=torch.full((48,), -0.02),
        W_dec=rows,
        b_dec=torch.zeros(D_MODEL),
        layer=1,
    ).save(folder / "sae")
    lines = [f'"{"brd oven " * 3}{i}","bread"' for i in range(40)] + [
        f'"{"WINE 77 " * 3}{i}","wine"' for i in range(40)
    ]
    (folder / "posts.csv").write_text("text,tags\n" + "\n".join(lines) + "\n")
    return folder


def config(files: Path, **changes) -> RunConfig:
    data = {
        "name": "tiny",
        "model": {"name": str(files / "model"), "device": "cpu"},
        "sae": {"name": str(files / "sae")},
        "corpus": {"kind": "table", "path": str(files / "posts.csv"), "text": ["text"], "labels": "tags"},
        "extract": {"max_tokens": 32, "documents_per_shard": 16},
        "score": {"min_support": 20, "permutations": 3, "matches_per_label": 4},
        "select": {"min_output_score": 0.0, "top_k": 3, "evidence_documents": 2},
        "steer": {"strengths": [0.5, 2.0], "instructions": 4, "max_new_tokens": 5},
        "judge": {"kind": "offline", "perplexity": False},
    }
    for section, values in changes.items():
        data[section] = {**data[section], **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(data)


def replies(part: str, item) -> str | None:
    """Replies by a rule one can compute by hand: texts of certain lengths get no fluency rating."""
    if part == "fluency":
        n = len(item.generation)
        return None if n % 7 == 0 else f"Rating: [[{1 + n % 2}]]"
    return "Rating: [[1]]" if part == "concept" else "Rating: [[2]]"


@pytest.fixture(autouse=True)
def recorded_judge(monkeypatch):
    monkeypatch.setattr(steering, "choose_judge", lambda *_: RecordedJudge(replies))


def test_all_stages_write_what_they_say(files, tmp_path):
    run = Run(config(files), tmp_path / "run")
    said = []
    run.execute(on_stage=lambda stage, text: said.append((stage, text)))
    assert [stage for stage, _ in said] == [stage.name for stage in STAGES]
    pairs = pl.read_parquet(run.path("select") / "pairs.parquet")
    assert 1 <= len(pairs) <= 3 and set(pairs["label_name"]) <= set(LABELS)
    cells = pl.read_parquet(run.path("judge") / "ratings.parquet")
    per_method = dict(cells.group_by("method").len().iter_rows())
    n = len(pairs)
    assert per_method == {"steered": n * 2 * 4, "random": n * 2 * 4, "unsteered": n * 4, "prompt": n * 4}
    assert sorted(cells["instruction_id"].unique()) == [0, 1, 2, 3]
    # The judge's missing ratings stay missing, with their reason, and are counted.
    lacking = cells.filter(pl.col("fluency").is_null())
    assert lacking["reason"].str.contains("no reply is recorded").all()
    assert (lacking["generation"].str.len_chars() % 7 == 0).all()
    summary = json.loads((run.path("evaluate") / "summary.json").read_text())["provenance"]
    assert summary["n_missing"] == lacking.height and summary["protocol"] == "paper"
    page = (run.path("report") / "report.html").read_text("utf-8")
    assert all(label in page for label in set(pairs["label_name"]))
    # A second call does nothing: every stage was done before.
    run.execute(on_stage=lambda stage, text: said.append((stage, text)))
    assert all(text.startswith("done before") for _, text in said[len(STAGES) :])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_killed_while_steering_resumes_to_the_same_texts(files, tmp_path, monkeypatch, dtype):
    settings = config(files, model={"name": str(files / "model"), "device": "cpu", "dtype": dtype})
    whole = Run(settings, tmp_path / "whole")
    whole.execute("steer")
    wanted = pl.read_parquet(whole.path("steer") / "generations.parquet")

    from tagsteer.steer.generate import Engine

    original = Engine.run_units

    def killed(self, units):
        for i, found in enumerate(original(self, units)):
            if i == 5:
                raise KeyboardInterrupt
            yield found

    run = Run(settings, tmp_path / "killed")
    with monkeypatch.context() as broken:
        broken.setattr(Engine, "run_units", killed)
        with pytest.raises(KeyboardInterrupt):
            run.execute("steer")
    log = run.path("steer") / "texts.jsonl"
    assert len([line for line in log.read_text().splitlines() if line]) == 5
    log.write_bytes(log.read_bytes()[:-10])  # the kill cut the last line
    done = []
    monkeypatch.setattr(
        Engine, "run_units", lambda self, units: (done.append(sum(map(len, units))), original(self, units))[1]
    )
    Run.open(tmp_path / "killed").execute("steer")
    # Where rounding depends on a batch's composition, the unfinished unit is done again whole.
    assert done == [wanted["digest"].n_unique() - (4 if dtype == "float32" else 0)]
    assert len([line for line in log.read_text().splitlines() if line]) == wanted["digest"].n_unique() + 1
    found = pl.read_parquet(run.path("steer") / "generations.parquet")
    assert found.equals(wanted)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    script = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(folder / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            config = RunConfig.model_validate({"name": "x", "corpus": {"kind": "wordnet"}})
            with pytest.raises(TagsteerError, match="another tagsteer process is at work"):
                Run(config, folder).execute("corpus")
            assert not (folder / "config.json").exists()
        finally:
            other.kill()


def test_changed_settings_redo_only_what_depends_on_them(files, tmp_path):
    folder = tmp_path / "run"
    Run(config(files), folder).execute("select")
    said: dict[str, str] = {}
    changed = Run(config(files, select={"top_k": 1}), folder)
    changed.execute("select", on_stage=said.__setitem__)
    assert [stage for stage, text in said.items() if text.startswith("done before")] == [
        "corpus",
        "extract",
        "score",
    ]
    assert len(pl.read_parquet(folder / "select" / "pairs.parquet")) == 1
    # Another length of documents: the shards of the old one are not taken.
    again = Run(config(files, extract={"max_tokens": 8}), folder)
    again.execute("extract", on_stage=said.__setitem__)
    assert not said["extract"].startswith("done before")


def test_an_sae_of_another_width_is_refused(files, tmp_path):
    rows = torch.eye(16)
    SAE(kind="relu", W_enc=rows, b_enc=torch.zeros(16), W_dec=rows, b_dec=torch.zeros(16), layer=1).save(
        tmp_path / "other"
    )
    run = Run(config(files, sae={"name": str(tmp_path / "other")}), tmp_path / "run")
    with pytest.raises(TagsteerError, match=r"d_model 16.* has 32"):
        run.execute("extract")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": {"min_support": 60}}, "largest support is 40"),
        ({"score": {"labels": ["breed"]}}, "did you mean bread"),
        ({"sae": {"layer": 9}}, "layers 0 to 3"),
        ({"select": {"min_output_score": 1.0}}, "output_score"),
        ({"score": {"labels": "focus"}}, "corpus.focus"),
        ({"corpus": {"focus": ["bread"], "max_documents": 5, "documents_per_focus": 10}}, "max_documents"),
    ],
)
def test_settings_that_leave_nothing_say_what_would(files, tmp_path, changes, message):
    with pytest.raises(TagsteerError, match=message):
        Run(config(files, **changes), tmp_path / "run").execute("select")


def test_a_focus_sample_is_rich_in_its_labels(files, tmp_path):
    run = Run(
        config(files, corpus={"focus": ["wine"], "max_documents": 20, "documents_per_focus": 15}),
        tmp_path / "run",
    )
    run.execute("corpus")
    support = dict(zip(run.corpus.label_names, run.corpus.support, strict=True))
    assert len(run.corpus) == 20 and support["wine"] >= 15
