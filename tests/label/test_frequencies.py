"""Frequencies, maxima and means equal a slow plain count over full forward passes, one document at a time."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.label.counting import N_BINS, bin_of, quantile
from tagsteer.label.frequencies import extract_frequencies
from tests.label.saes import D_SAE, random_sae
from tests.tiny import tiny_model

TEXTS = [
    "a short one",
    "",
    "x",
    "the quick brown fox jumps over the lazy dog " * 3,
    "naïve café: 世界 🙂",
    "a line with <|end|> and <bos> written in it",
    *(f"document number {i} of several " * (1 + i % 4) for i in range(9)),
]
FAMILIES = ["llama", "gemma2", "gpt2", "qwen2", "gpt_neox", "mistral"]


def plain(model, sae, texts, max_tokens=256, count_special=False, count_first=False):
    """z [docs, d_sae], kept tokens [docs], and all activations above 0 of each latent, token by token."""
    z, kept_tokens, fired = np.zeros((len(texts), sae.n_features)), [], [[] for _ in range(sae.n_features)]
    for n, text in enumerate(texts):
        ids = model.tokenizer(text, split_special_tokens=True)["input_ids"][:max_tokens]
        kept = 0
        if ids:
            out = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True)
            a = sae.encode(out.hidden_states[sae.layer + 1][0])
            for position, token in enumerate(ids):
                if (position == 0 and not count_first) or (
                    position > 0 and token in model.special_ids and not count_special
                ):
                    continue
                kept += 1
                for latent in torch.nonzero(a[position] > 0).flatten().tolist():
                    z[n, latent] += 1
                    fired[latent].append(a[position, latent].item())
        kept_tokens.append(kept)
        z[n] /= max(kept, 1)
    return z, np.array(kept_tokens), fired


def check(freq, model, sae, texts, **options):
    z, kept, fired = plain(model, sae, texts, **options)
    np.testing.assert_allclose(freq.matrix.toarray(), z, atol=1e-6)
    np.testing.assert_array_equal(freq.token_counts, kept)
    np.testing.assert_array_equal(freq.n_tokens_active, [len(values) for values in fired])
    np.testing.assert_array_equal(freq.n_docs_active, (z > 0).sum(0))
    for i, values in enumerate(fired):
        if not values:
            assert np.isnan([freq.max_activation[i], freq.robust_max[i], freq.mean_active[i]]).all()
            continue
        np.testing.assert_allclose(freq.max_activation[i], max(values), rtol=1e-4)
        np.testing.assert_allclose(freq.mean_active[i], np.mean(values), rtol=1e-4)
        assert freq.robust_max[i] <= freq.max_activation[i]
        exact = np.quantile(values, 0.999, method="inverted_cdf")
        assert exact / 1.2 <= freq.robust_max[i] <= exact * 1.2
    assert freq.matrix.dtype == np.float32 and freq.matrix.has_sorted_indices


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_a_plain_count_in_every_family(family):
    model, sae = tiny_model(family), random_sae()
    check(extract_frequencies(model, sae, TEXTS, tokens_per_batch=300), model, sae, TEXTS)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize("block", [None, 7])
def test_equal_to_a_plain_count_for_every_kind_and_block(kind, block):
    model, sae = tiny_model(), random_sae(kind)
    freq = extract_frequencies(model, sae, TEXTS, tokens_per_batch=500, latents_per_block=block)
    check(freq, model, sae, TEXTS)


def test_input_normalised_saes_and_selected_features_are_counted_alike():
    model, sae = tiny_model(), random_sae("jumprelu", input_norm="layer_norm", seed=2)
    full = extract_frequencies(model, sae, TEXTS)
    check(full, model, sae, TEXTS)
    some = extract_frequencies(model, random_sae().select([5, 40, 2]), TEXTS)
    whole = extract_frequencies(model, random_sae(), TEXTS)
    np.testing.assert_array_equal(some.matrix.toarray(), whole.matrix.toarray()[:, [5, 40, 2]])


def test_first_and_special_tokens_count_only_when_asked_for():
    sae = random_sae()
    for bos in (True, False):
        model = tiny_model(bos=bos)
        for count_special in (False, True):
            for count_first in (False, True):
                options = {"count_special": count_special, "count_first": count_first}
                check(extract_frequencies(model, sae, TEXTS, **options), model, sae, TEXTS, **options)
    by_default = extract_frequencies(model, sae, TEXTS, count_special=True)
    check(by_default, model, sae, TEXTS, count_special=True, count_first=True)


def test_a_special_token_inside_the_text_is_not_counted():
    model, sae = tiny_model(), random_sae()

    class Marked(type(model)):
        def encode_batch(self, texts, max_tokens=None):
            assert max_tokens
            return [[0, *(ids := super(Marked, self).encode_batch([t])[0])[1:3], 1, *ids[3:]] for t in texts]

    marked = Marked(**{f.name: getattr(model, f.name) for f in dataclasses.fields(model)})
    freq = extract_frequencies(marked, sae, ["abcdef"])
    assert freq.token_counts.tolist() == [6]
    assert extract_frequencies(marked, sae, ["abcdef"], count_special=True).token_counts.tolist() == [8]


def test_documents_are_cut_and_the_count_of_them_is_kept():
    model, sae = tiny_model(), random_sae()
    freq = extract_frequencies(model, sae, TEXTS, max_tokens=12)
    check(freq, model, sae, TEXTS, max_tokens=12)
    assert freq.token_counts.max() == 11
    assert freq.meta["documents_at_max_tokens"] == sum(len(model.encode(t)) >= 12 for t in TEXTS)
    assert freq.meta["documents_without_tokens"] == 1


def test_attention_sinks_are_left_out_of_counts_and_maxima(monkeypatch):
    model, sae = tiny_model(), random_sae()
    from tagsteer.lm import hooks

    original = hooks.residuals_at

    def with_sinks(model, layers, input_ids, attention_mask):
        z = model.encode("Z")[1]
        return [
            torch.where((input_ids == z)[..., None], 1000 * residual, residual)
            for residual in original(model, layers, input_ids, attention_mask)
        ]

    monkeypatch.setattr(hooks, "residuals_at", with_sinks)
    texts = [*TEXTS, "a Z in the middle"]
    freq = extract_frequencies(model, sae, texts)
    assert freq.meta["attention_sinks_left_out"] == 1
    assert freq.token_counts[-1] == len("a Z in the middle") - 1
    monkeypatch.setattr(hooks, "residuals_at", original)
    plain_max = extract_frequencies(model, sae, texts).max_activation
    assert np.nanmax(freq.max_activation / plain_max) < 1.01
    monkeypatch.setattr(hooks, "residuals_at", with_sinks)
    kept = extract_frequencies(model, sae, texts, sink_ratio=None)
    assert kept.meta["attention_sinks_left_out"] == 0
    assert np.nanmax(kept.max_activation / plain_max) > 100


def test_running_out_of_memory_changes_nothing_but_the_batches(monkeypatch, caplog):
    model, sae = tiny_model(), random_sae()
    whole = extract_frequencies(model, sae, TEXTS)
    from tagsteer.lm import hooks

    original = hooks.residuals_at

    def small(model, layers, input_ids, attention_mask):
        if input_ids.numel() > 400:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return original(model, layers, input_ids, attention_mask)

    monkeypatch.setattr(hooks, "residuals_at", small)
    with caplog.at_level(logging.WARNING):
        halved = extract_frequencies(model, sae, TEXTS)
    assert "memory ran out" in caplog.text
    np.testing.assert_array_equal(halved.matrix.toarray(), whole.matrix.toarray())
    np.testing.assert_array_equal(halved.n_tokens_active, whole.n_tokens_active)


def test_quantile_of_the_histogram_is_within_a_quarter_octave():
    rng = np.random.default_rng(0)
    rows, exact = [], []
    for scale in (0.003, 1.0, 700.0):
        values = torch.tensor(rng.lognormal(0, 1.5, 5000) * scale)
        rows.append(torch.bincount(bin_of(values), minlength=N_BINS).numpy())
        exact.append([np.quantile(values, q) for q in (0.5, 0.99, 0.999)])
    for j, q in enumerate((0.5, 0.99, 0.999)):
        found = quantile(np.array(rows), q, np.full(3, np.inf))
        assert (np.abs(np.log2(found / np.array(exact)[:, j])) < 0.25).all()
    assert np.isnan(quantile(np.zeros((1, N_BINS), dtype=np.int64), 0.9, np.zeros(1)))[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": 9}, "0 to 3"),
        ({"max_tokens": 1}, "max_tokens = 1"),
        ({"robust_quantile": 0}, "robust_quantile"),
        ({"documents_per_shard": 0}, "documents_per_shard"),
        ({"sink_ratio": 0.5}, "sink_ratio"),
        ({"tokens_per_batch": 0}, "budget of 0"),
    ],
)
def test_bad_settings_are_errors(options, message):
    with pytest.raises(TagsteerError, match=message):
        extract_frequencies(tiny_model(), random_sae(), TEXTS, **options)


def test_bad_parts_are_errors():
    model = tiny_model()
    with pytest.raises(TagsteerError, match="no documents"):
        extract_frequencies(model, random_sae(), [])
    with pytest.raises(TagsteerError, match="a list of texts"):
        extract_frequencies(model, random_sae(), "one text")
    with pytest.raises(TagsteerError, match="width 16"):
        extract_frequencies(model, random_sae(d_model=16), TEXTS)
    with pytest.raises(TagsteerError, match="give layer="):
        extract_frequencies(model, random_sae(layer=None), TEXTS)
    with pytest.raises(TagsteerError, match="'mlp_out'"):
        extract_frequencies(model, random_sae(hook="mlp_out"), TEXTS)
    broken = tiny_model()
    broken.hf.get_input_embeddings().weight[100:] = float("nan")
    with pytest.raises(TagsteerError, match="not finite"):
        extract_frequencies(broken, random_sae(), TEXTS)


def test_a_feature_that_never_fires_has_no_maximum():
    sae = dataclasses.replace(random_sae(), threshold=torch.full((D_SAE,), 1e9))
    freq = extract_frequencies(tiny_model(), sae, TEXTS)
    assert freq.matrix.nnz == 0 and freq.meta["features_never_active"] == D_SAE
    assert (
        np.isnan(freq.max_activation).all()
        and np.isnan(freq.robust_max).all()
        and np.isnan(freq.mean_active).all()
    )


@pytest.mark.model
def test_equal_to_a_plain_count_on_the_embedded_model(embedded_model):
    texts = [
        "Where can I buy fresh fish in the city?",
        "bread, breadstuff: food made from dough of flour or meal.",
    ]
    d = embedded_model.d_model
    sae = random_sae(d_model=d, layer=12, b_enc=torch.full((D_SAE,), -100.0))
    freq = extract_frequencies(embedded_model, sae, texts, sink_ratio=None)
    check(freq, embedded_model, sae, texts)
    # Position 0 holds a residual fifty times as long as the others (it is no BOS here, and must not count).
    assert freq.token_counts.tolist() == [len(embedded_model.encode(t)) - 1 for t in texts]
    first = extract_frequencies(embedded_model, sae, texts, count_first=True, sink_ratio=None)
    assert np.nanmax(first.max_activation) > 5 * np.nanmax(freq.max_activation)


@pytest.mark.cuda
def test_cuda_gives_the_counts_of_the_cpu():
    cpu, sae = tiny_model(), random_sae()
    there = dataclasses.replace(tiny_model(), device=torch.device("cuda"))
    there.hf.to("cuda")
    found = extract_frequencies(there, sae.to("cuda"), TEXTS, tokens_per_batch=300)
    check(found, cpu, sae, TEXTS)
