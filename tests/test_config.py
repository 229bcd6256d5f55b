"""Experiment files: defaults, relative paths, and mistakes that are all named in one line."""

from __future__ import annotations

import json

import pytest

from tagsteer.config import RunConfig, load_config, stored_config, with_judge
from tagsteer.errors import TagsteerError

WORDNET = 'corpus = {kind = "wordnet"}\n'


def written(tmp_path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_shortest_file_is_named_after_itself(tmp_path):
    config = load_config(written(tmp_path, WORDNET))
    assert config.name == "mine" and config.judge.kind == "auto"
    s = config.steer
    assert (s.plain_f1, s.difference_of_means, s.neuronpedia) == (False, False, None)


def test_paths_are_relative_to_the_file(tmp_path):
    text = WORDNET + '[steer]\nneuronpedia = "np/labels.jsonl"\n[judge]\nweights = "../judge.safetensors"\n'
    config = load_config(written(tmp_path, text))
    assert config.steer.neuronpedia == tmp_path / "np" / "labels.jsonl"
    assert config.judge.weights == tmp_path.parent / "judge.safetensors"


def test_a_prior_of_zero_is_the_plain_f1(tmp_path):
    assert load_config(written(tmp_path, WORDNET + "[score]\nprior = 0\n")).score.prior is None


def test_a_configuration_survives_its_run_folder(tmp_path):
    text = (
        WORDNET
        + '[judge]\nkind = "local"\nlocal = {model = "some/chat-model", batch_size = 2}\ntemperature = "none"\n'
    )
    config = load_config(written(tmp_path, text))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    again = stored_config(tmp_path / "config.json")
    assert again == config and again.judge.local is not None and again.judge.local.temperature == 0.0
    assert again.judge.server.temperature is None and not hasattr(again.judge.server, "kind")


MISTAKES = {
    "a near name": (WORDNET + "[steer]\nstrenghts = [1.0]\n", "no such setting, did you mean strengths?"),
    "a near name in a corpus": ('corpus = {kind = "wordnet", focs = []}\n', "did you mean focus?"),
    "a section that is a number": (WORDNET + "score = 3\n", "score: "),
    "a corpus that is a number": ("corpus = 3\n", "corpus: "),
    "no corpus": ("", "corpus: Field required"),
    "a local judge without a model": (WORDNET + '[judge]\nkind = "local"\n', "local = {model ="),
    "an unknown judge": (WORDNET + '[judge]\nkind = "gpt"\n', "'auto', 'offline', 'server' or 'local'"),
    "a line break in a value": (WORDNET + '[steer]\nintervention = """a\nb"""\n', "steer.intervention"),
    "fewer instructions than splits": (WORDNET + "[steer]\ninstructions = 3\n", "evaluate.splits = 4"),
    "no features": (WORDNET + "[steer]\nneuronpedia_features = 0\n", "(got 0)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(tmp_path, case):
    text, expected = MISTAKES[case]
    with pytest.raises(TagsteerError) as error:
        load_config(written(tmp_path, text))
    said = str(error.value)
    assert "\n" not in said and expected in said and str(tmp_path / "mine.toml") in said


def test_a_key_in_the_file_is_not_shown(tmp_path):
    with pytest.raises(TagsteerError, match="no such setting") as error:
        load_config(written(tmp_path, WORDNET + '[judge]\napi_key = "sk-secret"\n'))
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["{", json.dumps({"name": "x", "corpus": {"kind": "wordnet"}, "later": 1}), "3"]
)
def test_a_broken_or_foreign_config_json_is_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(TagsteerError, match=r"config\.json") as error:
        stored_config(path)
    assert "\n" not in str(error.value)


def test_other_judges_are_checked_anew():
    config = RunConfig.model_validate({"name": "x", "corpus": {"kind": "wordnet"}})
    with pytest.raises(TagsteerError, match="price_in_per_million"):
        with_judge(config, max_cost=1.0)
    with pytest.raises(TagsteerError, match="local"):
        with_judge(config, kind="local")
    changed = with_judge(config, kind="local", local={"model": "m"})
    assert (
        changed.judge.local is not None and changed.judge.local.model == "m" and config.judge.kind == "auto"
    )
