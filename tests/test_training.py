"""`train-sae` from a file: data of several kinds, cache and resume, the card's figures against a plain computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.lm.activations import TextSource, cache_residuals, tokenise
from tagsteer.lm.hooks import residuals_at
from tagsteer.sae.activations import ActivationFile
from tagsteer.sae.loading import load_sae
from tagsteer.sae.sae import SAE
from tagsteer.training import measure_on_model, train_from_config
from tests.tiny import D_MODEL, tiny_model

TEXTS = [f"document {i} of a small corpus, with some words in it" for i in range(60)]
CHAT = (("user", "what is bread?"), ("assistant", "baked dough"))


def test_what_counts_is_everything_but_sinks_and_template(tiny_llama):
    plain, chat = tokenise(tiny_llama, ["abc def", CHAT], 64)
    assert plain.start == 1 and len(plain.ids) == 8  # BOS and seven bytes
    text = tiny_llama.tokenizer.decode(chat.ids)
    assert text == "<|user|>what is bread?<|end|><|assistant|>baked dough<|end|>" or "baked dough" in text
    # The prefix that all conversations share: the mark of the user's turn.
    assert chat.start == 1
    assert tokenise(tiny_llama, ["a"], 64) == []  # one token that counts is too few
    with pytest.raises(TagsteerError, match="must end with an answer"):
        tokenise(tiny_llama, [(("user", "alone"),)], 64)


def test_cached_residuals_equal_a_plain_forward_and_survive_a_kill(tiny_llama, tmp_path, monkeypatch):
    wanted = []
    for tokens in tokenise(tiny_llama, TEXTS, 32):
        ids = torch.tensor([tokens.ids])
        wanted.append(residuals_at(tiny_llama, [2], ids, torch.ones_like(ids))[0][0, tokens.start :])
    wanted_rows = torch.cat(wanted)

    from tagsteer.lm import activations

    monkeypatch.setattr(activations, "DOCUMENTS_PER_CHUNK", 20)
    original, calls = activations.residual_chunks, []

    def dies(*args):
        calls.append(1)
        for i, part in enumerate(original(*args)):
            if len(calls) == 3 and i == 0:
                raise KeyboardInterrupt
            yield part

    with monkeypatch.context() as broken:
        broken.setattr(activations, "residual_chunks", dies)
        with pytest.raises(KeyboardInterrupt):
            cache_residuals(tiny_llama, [1, 2], TEXTS, tmp_path, max_tokens=32, tokens_per_batch=300)
    folders = cache_residuals(tiny_llama, [1, 2], TEXTS, tmp_path, max_tokens=32, tokens_per_batch=300)
    source = ActivationFile.open(folders[1])
    assert source.n_tokens == len(wanted_rows)
    rows = torch.frombuffer(bytearray(source.path.read_bytes()), dtype=torch.float32).view(-1, D_MODEL)
    # Batches are sorted by length, so rows stand in another order.
    torch.testing.assert_close(
        rows.sum(1).sort().values, wanted_rows.sum(1).sort().values, atol=1e-4, rtol=1e-4
    )
    assert not list(tmp_path.glob("**/*.partial"))


def test_streamed_buffers_hold_the_same_rows(tiny_llama):
    source = TextSource(tiny_llama, 2, TEXTS, max_tokens=32, documents_per_buffer=25)
    whole = torch.cat([source.buffer(i) for i in range(3)])
    again = TextSource(tiny_llama, 2, TEXTS, max_tokens=32, documents_per_buffer=60).buffer(0)
    torch.testing.assert_close(whole.sum(1).sort().values, again.sum(1).sort().values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(source.buffer(3), source.buffer(0))


def test_an_identity_sae_recovers_all_cross_entropy_and_the_mean_none(tiny_llama):
    eye = torch.eye(D_MODEL)
    both = SAE(
        kind="relu", W_enc=torch.cat([eye, -eye], 1), b_enc=torch.zeros(2 * D_MODEL),
        W_dec=torch.cat([eye, -eye], 0), b_dec=torch.zeros(D_MODEL), layer=1,
    )  # fmt: skip
    residuals, loss = measure_on_model(tiny_llama, both, 1, TEXTS[:20], 32)
    assert loss["cross_entropy_recovered"] == pytest.approx(1.0, abs=1e-3)
    mean = torch.cat(residuals).mean(0)
    nothing = SAE(
        kind="relu", W_enc=torch.zeros(D_MODEL, 4), b_enc=torch.full((4,), -1.0), W_dec=torch.zeros(4, D_MODEL),
        b_dec=mean, layer=1,
    )  # fmt: skip
    _, loss = measure_on_model(tiny_llama, nothing, 1, TEXTS[:20], 32)
    assert loss["cross_entropy_spliced"] == pytest.approx(loss["cross_entropy_mean_ablated"], abs=1e-4)


@pytest.fixture
def training_file(tmp_path: Path) -> Path:
    model = tiny_model("llama")
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    rows = "\n".join(f'"{text}","tag"' for text in TEXTS)
    (tmp_path / "docs.csv").write_text("text,tags\n" + rows + "\n")
    (tmp_path / "chats.csv").write_text(
        "ask,answer\n" + "\n".join(f"question {i},answer {i}" for i in range(20)) + "\n"
    )
    path = tmp_path / "train.toml"
    path.write_text(
        f"""
layer = 1
save_dtype = "float32"
[model]
name = "{tmp_path / "model"}"
device = "cpu"
[train]
kind = "topk"
d_sae = 48
k = 4
tokens = 4000
batch_tokens = 256
dead_after = 1000
[[data]]
kind = "table"
path = "docs.csv"
text = ["text"]
labels = "tags"
label_separator = ","
[[data]]
kind = "conversations"
path = "chats.csv"
user = "ask"
assistant = "answer"
[[held_out]]
kind = "conversations"
path = "chats.csv"
user = "ask"
assistant = "answer"
"""
    )
    return path


def test_train_sae_writes_an_sae_with_a_card_and_goes_on(training_file, tmp_path):
    lines = train_from_config(training_file, tmp_path / "out")
    assert any("explained variance" in line for line in lines)
    sae = load_sae(str(tmp_path / "out"), device="cpu")
    assert (sae.kind, sae.k, sae.d_sae, sae.layer) == ("topk", 4, 48, 1)
    card = sae.card
    assert {"l0", "explained_variance", "dead_share", "cross_entropy_recovered", "trained_on"} <= set(card)
    assert card["l0"] <= 4 and card["training"]["steps"] == 15
    before = (tmp_path / "out" / "sae.safetensors").read_bytes()
    train_from_config(training_file, tmp_path / "out")  # the finished checkpoint: nothing is trained again
    assert (tmp_path / "out" / "sae.safetensors").read_bytes() == before


def test_wrong_training_files_are_one_line(training_file, tmp_path):
    text = training_file.read_text()
    for old, new, message in (
        ('kind = "topk"', 'kind = "topkk"', "did you mean"),
        ("lr", "lr", None),
        ("d_sae = 48", "d_sae = 48\nepochs = 3", "epochs"),
        ("layer = 1", "layer = 7", "layers 0 to 3"),
        ('path = "docs.csv"', 'path = "no.csv"', "no.csv"),
    ):
        if message:
            training_file.write_text(text.replace(old, new, 1))
            with pytest.raises(TagsteerError, match=message):
                train_from_config(training_file, tmp_path / "wrong")


def test_the_shipped_training_files_are_valid():
    from tagsteer.config import check, read_toml
    from tagsteer.sae.train import TrainSettings
    from tagsteer.training import TrainingConfig

    files = sorted((Path(__file__).parents[1] / "examples" / "saes").glob("*.toml"))
    assert len(files) == 4
    for file in files:
        config = check(TrainingConfig, read_toml(file), str(file))
        assert f"layer-{config.layer}-l0-{TrainSettings(**config.train).k}" in file.name


def test_shipped_saes_meet_their_cards_promises():
    """The sizes and targets of the cards: below 20 MB each, 60 MB together, recovered cross-entropy, few dead."""
    root = Path(__file__).parents[1] / "src" / "tagsteer" / "assets" / "saes" / "smollm2-135m-instruct"
    sizes = {}
    for folder in sorted(root.iterdir()):
        card = json.loads((folder / "card.json").read_text())["card"]
        sizes[folder.name] = (folder / "sae.safetensors").stat().st_size
        assert sizes[folder.name] < 20e6
        assert card["cross_entropy_recovered"] >= 0.8
        assert card["explained_variance"] >= (0.84 if folder.name.endswith("64") else 0.72)
    assert sum(sizes.values()) < 60e6 and "layer-12-l0-64" in sizes
