"""`tagsteer generate` and `chat` on the run of a tiny model: whose features, which strength, and what goes wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from tagsteer.cli import steering
from tagsteer.cli.known import Known
from tagsteer.errors import TagsteerError
from tagsteer.lm.model import load_model
from tagsteer.run import Run
from tagsteer.sae.loading import load_sae
from tagsteer.steer.steerer import Steerer
from tests.test_cli import call
from tests.tiny_run import tiny_config, write_inputs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Done up to `select`, with a strength of 2.0 chosen for wine and none for bread."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    made = Run(tiny_config(inputs, top_k=40, temperature=0.8), tmp_path_factory.mktemp("run"))
    made.execute("select")
    row = {"method": "steered", "feature": feature_of(made, "wine"), "label": "wine", "strength": 2.0}
    pl.DataFrame([row, {**row, "method": "random", "strength": 9.0}]).write_parquet(
        made.path("evaluate") / "pairs.parquet"
    )
    return made


def feature_of(run: Run, label: str) -> int:
    pairs = pl.read_parquet(run.path("select") / "pairs.parquet")
    return int(pairs.filter(pl.col("label_name") == label)["feature"][0])


def chosen(run: Run, feature=None, label=None, strength=None, absolute=False, **known):
    words = {"model": None, "sae": None, "layer": None, **known}
    return Known(run.folder, **words).choose(feature, label, strength, absolute)


def test_a_label_is_its_feature_at_its_chosen_strength(run):
    wine = chosen(run, label="wine")
    assert (wine.feature, wine.strength, wine.unit) == (feature_of(run, "wine"), 2.0, "max_activation")
    assert chosen(run, label="bread").strength == 1.0  # nothing was chosen
    assert chosen(run, label="wine", strength=0.25).strength == 0.25
    absolute = chosen(run, label="wine", strength=7.0, absolute=True)
    assert (absolute.strength, absolute.unit) == (7.0, "absolute")


def test_strengths_mean_what_they_mean_in_the_run(run, tmp_path):
    """A run in absolute values has absolute strengths, and its own kind of intervention."""
    config = tiny_config(Path(run.config.sae.name).parent, unit="absolute", intervention="addition")
    for stage in ("select", "evaluate"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "pairs.parquet").write_bytes((run.path(stage) / "pairs.parquet").read_bytes())
    (tmp_path / "config.json").write_text(config.model_dump_json())
    wine = Known(tmp_path, None, None, None).choose(None, "wine", None, False)
    assert (wine.strength, wine.unit, wine.kind) == (2.0, "absolute", "addition")
    assert str(wine) == f"feature {wine.feature} (wine): addition at 2 absolute"


def test_generate_gives_the_text_of_the_library(run, capsys):
    model = load_model(run.config.model.name, "cpu")
    sae = load_sae(run.config.sae.name)
    feature = feature_of(run, "wine")
    maxima = Known(run.folder, None, None, None).maxima
    wanted = Steerer(model, sae, maxima).generate(
        "Say it.", {feature: 2.0}, unit="max_activation", max_new_tokens=9, temperature=0.8, top_k=40
    )
    words = ["--run", run.folder, "--max-new-tokens", "9"]
    status, out, _ = call(capsys, "generate", "--label", "wine", *words, "Say it.")
    assert status == 0 and out == wanted + "\n"
    value = 2.0 * maxima[feature]
    status, out, _ = call(
        capsys, "generate", "--feature", feature, "--absolute", "--strength", repr(value), *words, "Say it."
    )
    assert out == wanted + "\n"


def test_the_prompt_may_come_from_a_pipe(run, capsys, monkeypatch):
    words = ["generate", "--label", "wine", "--run", run.folder, "--max-new-tokens", "5"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Say it.\n"))
    piped = call(capsys, *words, "-")
    assert piped[:2] == call(capsys, *words, "Say it.")[:2]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, _, err = call(capsys, *words, "-")
    assert status == 2 and "prompt is empty" in err


def wrong(run: Run) -> dict[str, tuple[list, str]]:
    here = ["--run", run.folder] if run else []
    return {
        "wrong label": (["--label", "vine", *here], "did you mean wine"),
        "part of a label": (["--label", "WIN", *here], "did you mean wine"),
        "missing run": (["--label", "wine", "--run", "nowhere"], "nowhere is no run folder"),
        "missing run of a feature": (["--feature", "1", "--run", "nowhere"], "nowhere is no run folder"),
        "no run at all": (["--feature", "1"], "runs/demo"),
        "a feature too large": (["--feature", "999", "--absolute", "--strength", "1", *here], "0 to 47"),
        "no max activation": (["--feature", "999", *here], "--absolute"),
        "another SAE": (["--label", "wine", "--sae", "other", *here], "leave out --model, --sae"),
        "absolute without strength": (["--feature", "1", "--absolute", *here], "--strength"),
        "both": (["--feature", "1", "--label", "wine", *here], "either"),
    }  # fmt: skip


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("case", wrong(None))  # type: ignore[arg-type]
def test_what_is_wrong_is_said_in_one_line(run, capsys, tmp_path, monkeypatch, command, case):
    monkeypatch.chdir(tmp_path)
    words, expected = wrong(run)[case]
    status, out, err = call(capsys, command, *words, *(["Hi"] if command == "generate" else []))
    lines = [line for line in err.splitlines() if line.strip()]
    assert status == 2 and out == "" and len(lines) == 1 and expected in lines[0]


def test_a_run_without_pairs_names_the_command(run, capsys, tmp_path):
    (tmp_path / "config.json").write_text(run.config.model_dump_json())
    status, _, err = call(capsys, "generate", "--label", "wine", "--run", tmp_path, "Hi")
    assert status == 2 and "tagsteer select" in err
    status, _, err = call(capsys, "generate", "--feature", "1", "--run", tmp_path, "Hi")
    assert status == 2 and "tagsteer extract" in err
    (tmp_path / "config.json").write_text(json.dumps({"name": "of another version", "corpus": 1}))
    status, _, err = call(capsys, "generate", "--label", "wine", "--run", tmp_path, "Hi")
    assert status == 2 and "config.json" in err and "Traceback" not in err


class Parrot:
    """A steerer that says what it was told, and can be interrupted or refuse."""

    def __init__(self, sae) -> None:
        self.sae, self.heard = sae, []

    def stream(self, prompt, features, **options):
        self.heard.append((prompt, features, options))
        said = prompt if isinstance(prompt, str) else prompt[-1][1]
        if "refuse" in said:
            raise TagsteerError("the conversation is too long")
        yield "You said "
        if "stop" in said:
            raise KeyboardInterrupt
        yield said


@pytest.fixture
def parrot(run, monkeypatch) -> Parrot:
    bird = Parrot(load_sae(run.config.sae.name))
    monkeypatch.setattr(steering, "load_steerer", lambda *_: bird)
    return bird


def piped(monkeypatch, capsys, run, *lines: str):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    return call(capsys, "chat", "--label", "wine", "--run", run.folder)


def test_a_conversation_from_a_pipe(run, parrot, monkeypatch, capsys):
    bread, wine = feature_of(run, "bread"), feature_of(run, "wine")
    status, out, err = piped(
        monkeypatch, capsys, run,
        "Hello", "", "/strength 0.5", "And now?", "/off", "Plain?", "/label bread", "Bread?", "/reset", "Again",
    )  # fmt: skip
    assert status == 0 and err == "" and "you>" not in out
    assert [features for _, features, _ in parrot.heard] == [
        {wine: 2.0},
        {wine: 0.5},
        None,
        {bread: 1.0},
        {bread: 1.0},
    ]
    assert parrot.heard[1][0] == [("user", "Hello"), ("assistant", "You said Hello"), ("user", "And now?")]
    assert parrot.heard[4][0] == [("user", "Again")]
    assert parrot.heard[0][2] == {
        "unit": "max_activation", "kind": "clamp", "seed": 1, "temperature": 0.8, "top_k": 40, "max_new_tokens": 128
    }  # fmt: skip
    assert (
        "You said Bread?\n" in out
        and "unsteered\n" in out
        and f"feature {bread} (bread): clamp at 1 times" in out
    )


def test_wrong_commands_change_nothing(run, parrot, monkeypatch, capsys):
    status, out, _ = piped(
        monkeypatch, capsys, run,
        "/label vine", "/feature x", "/feature 999", "/strength nan", "/strength", "/of", "/help",
        "Still?", "/quit", "no",
    )  # fmt: skip
    assert status == 0 and len(parrot.heard) == 1
    assert parrot.heard[0][1] == {feature_of(run, "wine"): 2.0}
    assert "did you mean wine" in out and "/feature x: give the number" in out and "0 to 47" in out
    assert out.count("give a number") == 2 and "did you mean /off" in out and "/reset" in out


def test_ctrl_c_ends_the_answer_and_keeps_the_conversation(run, parrot, monkeypatch, capsys):
    lines = iter(["Hello", "stop there", "refuse this", "Go on"])

    def typed(_prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})())
    status, out, err = call(capsys, "chat", "--label", "wine", "--run", run.folder)
    assert status == 130 and "Traceback" not in err
    assert "You said  [stopped]\n" in out and "tagsteer: the conversation is too long" in out
    # What was refused is forgotten, what was stopped is kept as far as it came: roles alternate.
    assert [said for _, said in parrot.heard[-1][0]] == [
        "Hello",
        "You said Hello",
        "stop there",
        "You said ",
        "Go on",
    ]


def test_ctrl_c_ends_a_piped_conversation_and_generate(run, parrot, monkeypatch, capsys):
    status, out, err = piped(monkeypatch, capsys, run, "stop there", "Go on")
    assert status == 130 and len(parrot.heard) == 1 and "Traceback" not in err
    status, out, err = call(capsys, "generate", "--label", "wine", "--run", run.folder, "stop there")
    assert status == 130 and out == "You said \n" and "Traceback" not in err


def test_a_terminal_gets_no_control_characters(monkeypatch):
    assert steering._shown("a\x1b[31mb\n") == "a\x1b[31mb\n"  # a file gets the text as it is
    monkeypatch.setattr("sys.stdout", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})())
    assert steering._shown("a\x1b[31mb\n\té") == "a�[31mb\n\té"
