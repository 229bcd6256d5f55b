"""Output scores equal the plain definition: one full forward pass per feature, ranks by a full sort."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.label.evidence import EvidenceDocument
from tagsteer.label.logit_lens import lens_tokens
from tagsteer.label.next_token import LastPosition
from tagsteer.label.output_score import PROMPT, input_score, output_scores
from tests.label.saes import D_SAE, random_sae
from tests.tiny import N_LAYERS, tiny_model

FAMILIES = ["llama", "gemma2", "gpt2", "qwen2", "gpt_neox", "mistral"]


def plain(model, sae, feature, prompt=PROMPT, factor=10.0, k=20):
    """Section 4 of the reference, step by step, with an own hook; returns (score, lens ids, p, clean p)."""
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    rms_or_layer_norm, head = model.final_norm, model.hf.get_output_embeddings()
    lens = head(rms_or_layer_norm(sae.W_dec[feature][None]))[0].softmax(0).topk(k).indices

    seen = []
    reading = model.layers[sae.layer].register_forward_hook(
        lambda _module, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    clean = model.hf(input_ids=ids)
    reading.remove()
    x = seen[0][0, -1].double()
    a = sae.encode(x.float()).double()
    error = x - (a @ sae.W_dec.double() + sae.b_dec.double())
    amplified = a.clone()
    amplified[feature] += factor * a.max()
    edited = (amplified @ sae.W_dec.double() + sae.b_dec.double() + error).float()

    def hook(_module, _args, output):
        residual = output[0] if isinstance(output, tuple) else output
        residual = residual.clone()
        residual[0, -1] = edited
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    handle = model.layers[sae.layer].register_forward_hook(hook)
    p = model.hf(input_ids=ids, use_cache=False).logits[0, -1].softmax(0)
    handle.remove()
    order = p.argsort(descending=True, stable=True).tolist()
    ranks = [order.index(t) for t in lens.tolist()]
    score = (1 - min(ranks) / len(p)) * max(p[lens].tolist())
    return score, lens.tolist(), p, clean.logits[0, -1].softmax(0)


def check(model, sae, features, found, atol=1e-5):
    for row, feature in enumerate(features):
        score, lens, p, clean = plain(model, sae, feature)
        assert found.score[row] == pytest.approx(score, abs=atol), feature
        assert set(found.lens_tokens[row].tolist()) == set(lens)
        assert found.probability[row] == pytest.approx(p[lens].max().item(), abs=atol)
        assert found.score[row] <= 1 / (found.rank[row] + 1) + 1e-6
        rise = p - clean
        np.testing.assert_allclose(
            found.promoted_by[row], rise.topk(found.promoted_by.shape[1]).values, atol=atol
        )
        np.testing.assert_allclose(rise[found.promoted_tokens[row]], found.promoted_by[row], atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2, N_LAYERS - 1])
def test_equal_to_the_definition_in_every_family_and_fast(family, layer):
    model, sae = tiny_model(family), random_sae(layer=layer)
    sae = dataclasses.replace(sae, W_dec=sae.W_dec * 0.05)
    features = [0, 7, 31, 47]
    check(model, sae, features, output_scores(model, sae, features))
    assert LastPosition(model, layer, PROMPT).shares_prefix


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equal_with_either_attention_and_a_prompt_of_one_token(attention):
    model, sae = tiny_model(bos=False), random_sae()
    model.hf.set_attn_implementation(attention)
    check(model, sae, [3, 9], output_scores(model, sae, [3, 9]))
    one = output_scores(model, sae, [3, 9], prompt="F")
    assert one.score[0] == pytest.approx(plain(model, sae, 3, "F")[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["relu", "topk", "gated"])
def test_every_kind_of_sae(kind):
    model, sae = tiny_model("gemma2"), random_sae(kind)
    check(model, sae, [1, 2], output_scores(model, sae, [1, 2]))


def test_all_features_in_blocks_of_any_size_are_the_same():
    model, sae = tiny_model(), random_sae()
    whole = output_scores(model, sae)
    pieces = output_scores(model, sae, rows_per_batch=5)
    assert whole.features.tolist() == list(range(D_SAE))
    np.testing.assert_allclose(whole.score, pieces.score, atol=1e-6)
    np.testing.assert_array_equal(whole.best_token, pieces.best_token)
    np.testing.assert_array_equal(whole.lens_tokens, lens_tokens(model, sae.W_dec, rows_per_batch=7))
    assert whole.of(31) == 31
    with pytest.raises(TagsteerError, match="48"):
        whole.of(48)


def test_a_model_that_cannot_share_the_prefix_gets_full_passes_and_the_same_scores(monkeypatch, caplog):
    model, sae = tiny_model(), random_sae()
    fast = output_scores(model, sae)
    for broken in (lambda *_: torch.zeros(3, 262), lambda *_: [][1]):
        monkeypatch.setattr(LastPosition, "_fanned", broken)
        with caplog.at_level(logging.WARNING):
            slow = output_scores(model, sae)
        np.testing.assert_allclose(fast.score, slow.score, atol=1e-6)
        np.testing.assert_array_equal(fast.promoted_tokens, slow.promoted_tokens)
    assert "differ from those of full forward passes" in caplog.text and "IndexError" in caplog.text


def test_without_an_active_feature_scores_are_the_unsteered_models(caplog):
    model = tiny_model()
    sae = dataclasses.replace(random_sae(), threshold=torch.full((D_SAE,), 1e9))
    with caplog.at_level(logging.WARNING):
        found = output_scores(model, sae, [0, 5])
    assert found.largest_activation == 0 and "no feature is active" in caplog.text
    clean = model.hf(input_ids=torch.tensor([model.encode(PROMPT)])).logits[0, -1].softmax(0)
    np.testing.assert_allclose(found.probability, clean[found.lens_tokens].amax(1), atol=1e-6)
    np.testing.assert_allclose(found.promoted_by, 0, atol=1e-6)


def test_selected_features_need_the_largest_activation_of_the_whole():
    model, sae = tiny_model(), random_sae()
    whole = output_scores(model, sae, [30, 4])
    with pytest.raises(TagsteerError, match="largest_activation="):
        output_scores(model, sae.select([30, 4]))
    some = output_scores(model, sae.select([30, 4]), largest_activation=whole.largest_activation)
    assert some.features.tolist() == [30, 4]
    np.testing.assert_allclose(some.score, whole.score, atol=1e-6)


def test_bad_input_is_an_error():
    model, sae = tiny_model(bos=False), random_sae()
    with pytest.raises(TagsteerError, match="no tokens"):
        output_scores(model, sae, prompt="")
    with pytest.raises(TagsteerError, match="latents 0 to 47"):
        output_scores(model, sae, [48])
    with pytest.raises(TagsteerError, match="lens_k = 0"):
        output_scores(model, sae, lens_k=0)
    with pytest.raises(TagsteerError, match="not finite"):
        output_scores(model, sae, factor=float("nan"))
    with pytest.raises(TagsteerError, match="k = 0"):
        lens_tokens(model, sae.W_dec, 0)
    with pytest.raises(TagsteerError, match=r"wanted \[n, 32\]"):
        lens_tokens(model, sae.W_dec.T)


def record(ids, activations, counted=None):
    counted = counted or [True] * len(ids)
    best = max((i for i in range(len(ids)) if counted[i]), key=lambda i: activations[i])
    return EvidenceDocument(
        document=0, document_id="0", has_label=True, frequency=0.5, max_activation=activations[best],
        most_active=best, token_ids=tuple(ids), tokens=("x",) * len(ids), activations=tuple(activations),
        counted=tuple(counted),
    )  # fmt: skip


def test_input_score_is_the_share_of_records_whose_top_token_is_in_the_lens():
    hits, misses = [record([5, 9], [0.1, 2.0])] * 3, [record([9, 5], [0.0, 1.0])] * 9
    assert input_score(hits + misses, [9, 11]) == pytest.approx(3 / 12)
    assert input_score(hits, [9]) is None
    silent = [record([9, 9], [0.0, 0.0])] * 50
    assert input_score(hits + misses + silent, [9]) == pytest.approx(3 / 12)


@pytest.mark.model
def test_equal_to_the_definition_on_the_embedded_model(embedded_model):
    sae = random_sae(d_model=embedded_model.d_model, layer=22, b_enc=torch.full((D_SAE,), -200.0))
    features = [0, 11]
    found = output_scores(embedded_model, sae, features)
    assert found.largest_activation > 0
    check(embedded_model, sae, features, found)
    assert LastPosition(embedded_model, 22, PROMPT).shares_prefix


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_gives_the_scores_of_the_cpu(dtype):
    model, sae = tiny_model(), random_sae()
    wanted = output_scores(model, sae)
    there = dataclasses.replace(tiny_model(dtype=dtype), device=torch.device("cuda"))
    there.hf.to("cuda")
    found = output_scores(there, sae.to("cuda", dtype))
    assert LastPosition(there, 1, PROMPT).shares_prefix
    np.testing.assert_allclose(found.score, wanted.score, atol=1e-5 if dtype == torch.float32 else 0.05)
