"""Instruction lists and steering prompts: read as written, stored once, refused with a reason."""

from __future__ import annotations

import json

import pytest

from tagsteer.errors import TagsteerError
from tagsteer.steer.instructions import load_instructions
from tagsteer.steer.prompting import OFFLINE_AUTHOR, SteeringPrompts


def test_the_own_list_has_100_different_instructions():
    own = load_instructions()
    assert len(own) == len({i.text for i in own.instructions}) == 100
    assert [i.id for i in own.instructions] == list(range(100))


@pytest.mark.shared
def test_the_own_list_holds_none_of_alpaca_evals(shared):
    theirs = load_instructions(shared / "alpaca_eval" / "instructions.json").instructions
    ours = {i.text.strip().lower() for i in load_instructions().instructions}
    assert len(theirs) == 805 and not ours & {i.text.strip().lower() for i in theirs}


@pytest.mark.shared
def test_alpaca_eval_is_read_in_file_order(shared):
    """Row 8 as AxBench's real runs use it (reference, section 1.2)."""
    found = load_instructions(shared / "alpaca_eval" / "instructions.json")
    assert len(found) == 805 and found[8].text == "What are different drawers I should have for clothes?"


def test_files_of_each_kind_give_the_same_instructions(tmp_path):
    texts = ["Explain tides.", "Write “hello” in Icelandic."]
    (tmp_path / "a.json").write_text(
        json.dumps([{"instruction": t, "dataset": "x"} for t in texts]), encoding="utf-8"
    )
    (tmp_path / "b.json").write_text(json.dumps(texts), encoding="utf-8")
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"instruction": t}) for t in texts), encoding="utf-8"
    )
    (tmp_path / "d.txt").write_text("\ufeff" + "\r\n".join(texts) + "\n\n", encoding="utf-8")
    sets = [load_instructions(path) for path in sorted(tmp_path.iterdir())]
    assert all([i.text for i in s.instructions] == texts for s in sets) and len({s.digest for s in sets}) == 1


def test_samples_are_drawn_without_replacement_and_only_grow():
    own = load_instructions()
    few, many = own.sample(20), own.sample(50)
    assert many[:20] == few and len({i.id for i in many}) == 50
    assert own.sample(20, seed=1) != few
    with pytest.raises(TagsteerError, match="has 100"):
        own.sample(101)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '["ok", ""]', "instruction 1 of"),
        ("a.json", '[{"prompt": "x"}]', "instruction 0 of"),
        ("a.json", '{"instruction": "x"}', "holds a dict"),
        ("a.json", "[", "not valid .json"),
        ("a.jsonl", '"ok"\n{', "not valid .jsonl"),
        ("a.txt", "\n\n", "holds no instruction"),
        ("a.txt", None, "cannot read the instructions"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_files_are_named(name, content, words, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TagsteerError, match=words):
        load_instructions(path)


def test_steering_prompts_are_asked_for_once_and_kept(tmp_path):
    asked = []

    def ask(text: str) -> str:
        asked.append(text)
        return f"  Speak of {'baseball' if 'baseball' in text else 'cooking'}!\n"

    path = tmp_path / "prompts" / "p.json"
    prompts = SteeringPrompts(path, ask, author="judge-model")
    assert prompts.of("baseball").text == "Speak of baseball!" and "Concept: baseball" in asked[0]
    again = SteeringPrompts(path, ask, author="judge-model")
    assert again.of("baseball") == prompts.of("baseball") and again.of("cooking").author == "judge-model"
    assert len(asked) == 2
    assert again.of("cooking").ask("Why?") == "Speak of cooking!\n\nQuestion: Why?"
    offline = SteeringPrompts(path)  # the template does not pass for the LLM's, nor the other way round
    assert offline.of("baseball").author == OFFLINE_AUTHOR and "'baseball'" in offline.of("baseball").text
    other = SteeringPrompts(path, ask, author="another")  # nor one LLM's for another's
    assert other.of("baseball").author == "another" and len(asked) == 3
    assert SteeringPrompts(path, ask, author="judge-model").of("baseball").author == "judge-model"
    assert len(asked) == 3
    path.write_text("[{}]")
    with pytest.raises(TagsteerError, match="not a file of steering prompts"):
        SteeringPrompts(path)


def test_an_llm_behind_a_server_writes_the_prompts_of_a_run(tmp_path, monkeypatch):
    from tagsteer.run import Run
    from tagsteer.stages.methods import methods_of
    from tests.judge.server import Fail, Say, serve
    from tests.tiny_run import tiny_config, write_inputs

    monkeypatch.setenv("WRITER_KEY", "sk-secret")
    inputs = write_inputs(tmp_path)
    with serve(lambda _, n: Fail(500) if n == 1 else Say("Always speak of it.")) as server:
        writer = {"model": "writer", "base_url": server.url, "api_key_env": "WRITER_KEY"}
        run = Run(tiny_config(inputs, prompt_writer=writer), tmp_path / "run")
        run.execute("select")
        (method,) = [m for m in methods_of(run) if m.name == "prompt"]
        calls = len(server.prompts)
        assert calls == 2 * len(method.pairs)  # each failed once and was sent again
        assert {body["temperature"] for body in server.bodies} == {1.0}
        assert all("Concept: " in prompt for prompt in server.prompts)
        methods_of(run)
        assert len(server.prompts) == calls  # stored
    assert method.provenance == "steering prompts by writer, temperature 1"
    stored = (run.path("steer") / "prompts.json").read_text()
    assert "Always speak of it." in stored and "sk-secret" not in stored
    with serve(lambda *_: Say("Always speak of", finish="length")) as server:
        cut = {**writer, "base_url": server.url, "model": "another"}
        config = tiny_config(inputs, prompt_writer=cut)
        with pytest.raises(TagsteerError, match="is cut: raise max_tokens"):
            methods_of(Run(config, tmp_path / "run"))  # a cut prompt is no prompt
    assert '"Always speak of"' not in (run.path("steer") / "prompts.json").read_text()
    monkeypatch.delenv("WRITER_KEY")
    with pytest.raises(TagsteerError, match="WRITER_KEY is not set"):
        methods_of(run)


def test_an_empty_answer_gives_the_template_and_says_so(caplog):
    prompt = SteeringPrompts(ask=lambda _: " \n", author="m").of("{odd} label")
    assert (
        "{odd} label" in prompt.text
        and "answered nothing" in prompt.author
        and "empty steering prompt" in caplog.text
    )


def test_alpaca_eval_comes_from_the_hub_by_name(tmp_path, monkeypatch):
    import huggingface_hub

    file = tmp_path / "alpaca_eval.json"
    file.write_text(json.dumps([{"instruction": "Explain tides."}]))
    asked = []

    def download(repo, name, repo_type):
        asked.append((repo, name, repo_type))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_instructions("alpaca_eval")[0].text == "Explain tides."
    assert asked == [("tatsu-lab/alpaca_eval", "alpaca_eval.json", "dataset")]

    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(TagsteerError, match=r"no network.*give its path"):
        load_instructions("alpaca_eval")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list_is_refused(tmp_path, text):
    (tmp_path / "empty.txt").write_text(text)
    with pytest.raises(TagsteerError, match=r"empty\.txt"):
        load_instructions(tmp_path / "empty.txt")
