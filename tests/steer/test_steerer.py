"""The front: one prompt or many, units, streaming, conversations, and errors a user can act on."""

from __future__ import annotations

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.steer.interventions import first
from tagsteer.steer.prompting import prompt_ids
from tagsteer.steer.steerer import Steerer
from tests.steer.helpers import small_sae
from tests.tiny import tiny_model


@pytest.fixture
def steerer():
    model = tiny_model("llama")
    model.unembedding.weight.mul_(10)
    return Steerer(model, small_sae(), {4: 6.0})


def test_one_prompt_gives_its_text_wherever_it_stands(steerer):
    one = steerer.generate("Write a poem.", {4: 8.0}, max_new_tokens=12)
    many = steerer.generate(["Other.", "Write a poem.", "Write a poem."], {4: 8.0}, max_new_tokens=12)
    assert isinstance(one, str) and many[1] == one
    assert many[2] != one  # asked twice, drawn twice
    assert steerer.generate("Write a poem.", {4: 8.0}, max_new_tokens=12, seed=1) != one


def test_features_change_the_text_and_units_are_resolved(steerer):
    plain = steerer.generate("Write.", max_new_tokens=12)
    assert steerer.generate("Write.", {}, max_new_tokens=12) == plain
    clamped = steerer.generate("Write.", {4: 30.0}, max_new_tokens=12)
    assert clamped != plain
    assert steerer.generate("Write.", {4: 5.0}, unit="max_activation", max_new_tokens=12) == clamped
    assert steerer.generate("Write.", {4: 0.0}, kind="addition", max_new_tokens=12) == plain
    assert steerer.generate("Write.", {4: 30.0}, kind="addition", max_new_tokens=12) != plain
    assert steerer.generate("Write.", {4: 30.0}, schedule=first(1), max_new_tokens=12) != clamped


def test_streams_join_to_the_whole_text(steerer):
    for prompt in ("Write.", "Tell me more."):
        pieces = list(steerer.stream(prompt, {4: 8.0}, max_new_tokens=20, temperature=0.8))
        assert len(pieces) > 1
        assert "".join(pieces) == steerer.generate(prompt, {4: 8.0}, max_new_tokens=20, temperature=0.8)


def test_conversations_and_system_messages_reach_the_template(steerer):
    model = steerer.model
    talk = [("user", "hi"), ("assistant", "yes?"), ("user", "a poem")]
    assert "".join(steerer.stream(talk, {4: 8.0}, max_new_tokens=5)) == "".join(
        steerer.stream(talk, {4: 8.0}, max_new_tokens=5)
    )
    rendered = model.tokenizer.decode(prompt_ids(model, talk, system="Be kind."))
    assert (
        rendered
        == "<|system|>Be kind.<|end|><|user|>hi<|end|><|assistant|>yes?<|end|><|user|>a poem<|end|><|assistant|>"
    )
    plain = prompt_ids(model, "hi", chat=False)
    assert plain[0] == model.tokenizer.bos_token_id and model.decode(plain) == "hi"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.generate("a", {99: 1.0}), "feature 99 is out of range.*0 to 23"),
        (lambda s: s.generate([]), "list of prompts is empty"),
        (lambda s: s.generate("  "), "prompt is empty"),
        (
            lambda s: s.generate("a", {5: 1.0}, unit="max_activation"),
            "max activation of feature 5 is missing",
        ),
        (lambda s: s.generate("a", {4: 1.0}, kind="clmp"), "did you mean"),
        (lambda s: s.generate("a", {4: 1.0}, temperature=-1.0), "temperature -1"),
        (lambda s: s.generate("a", chat=False, system="x"), "chat=False"),
    ],
)
def test_mistakes_are_one_line(call, words, steerer):
    with pytest.raises(TagsteerError, match=words) as caught:
        call(steerer)
    assert "\n" not in str(caught.value)


@pytest.mark.model
def test_the_embedded_model_streams_under_a_clamp(embedded_model):
    g = torch.Generator().manual_seed(0)
    from tagsteer.sae.sae import SAE

    d = embedded_model.d_model
    sae = SAE(
        "relu",
        torch.randn(d, 8, generator=g),
        torch.zeros(8),
        torch.randn(8, d, generator=g),
        torch.zeros(d),
        layer=22,
    )
    steerer = Steerer(embedded_model, sae)
    plain = steerer.generate("Name a colour.", max_new_tokens=8, temperature=0)
    assert plain == "".join(
        steerer.stream("Name a colour.", {3: 0.0}, kind="addition", max_new_tokens=8, temperature=0)
    )
    assert steerer.generate("Name a colour.", {3: 900.0}, max_new_tokens=8, temperature=0) != plain
