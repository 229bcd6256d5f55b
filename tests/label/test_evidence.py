"""Evidence shows the documents with the highest frequencies, and each token's activation as a plain forward
gives it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from tagsteer.errors import TagsteerError
from tagsteer.label.evidence import collect_evidence
from tagsteer.label.frequencies import extract_frequencies
from tests.label.saes import random_sae
from tests.tiny import tiny_model

TEXTS = [
    "a short one",
    "naïve café: 世界 🙂 and so on",
    "",
    *(f"document number {i} of several " * (1 + i % 4) for i in range(9)),
    "a line with <|end|> written in it",
]
LABELS = ("odd", "none")


def corpus(texts=TEXTS):
    odd = np.arange(len(texts)) % 2
    return SimpleNamespace(
        texts=texts,
        ids=[f"id{i}" for i in range(len(texts))],
        label_names=LABELS,
        label_matrix=csr_matrix(np.stack([odd, 0 * odd], 1).astype(np.uint8)),
        source="test",
    )


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "gated"])
def test_equal_to_a_plain_forward(model, kind):
    sae = random_sae(kind)
    freq = extract_frequencies(model, sae, TEXTS)
    pairs = [(3, "odd"), (40, "none"), (3, "none")]
    found = collect_evidence(model, sae, corpus(), freq.matrix, pairs, documents=4, tokens_per_batch=150)
    assert [(e.feature, e.label) for e in found] == pairs
    dense = freq.matrix.toarray()
    for evidence in found:
        column = dense[:, evidence.feature]
        assert evidence.n_active == (column > 0).sum() == freq.n_docs_active[evidence.feature]
        wanted = sorted(np.flatnonzero(column), key=lambda n: (-column[n], n))[:4]
        assert [d.document for d in evidence.documents] == wanted
        for record in evidence.documents:
            ids = model.encode(TEXTS[record.document])
            hidden = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            a = sae.encode(hidden[sae.layer + 1][0])[:, evidence.feature].numpy()
            np.testing.assert_allclose(record.activations, a, atol=1e-5)
            assert list(record.token_ids) == ids and record.document_id == f"id{record.document}"
            assert record.counted == (False, *[True] * (len(ids) - 1))
            assert record.max_activation == pytest.approx(a[1:].max(), abs=1e-5)
            assert record.most_active == 1 + a[1:].argmax()
            assert record.frequency == pytest.approx((a[1:] > 0).mean(), abs=1e-6)
            assert record.has_label == (evidence.label == "odd" and record.document % 2 == 1)


def test_token_pieces_join_to_the_text(model):
    sae = random_sae()
    freq = extract_frequencies(model, sae, TEXTS)
    found = collect_evidence(
        model, sae, corpus(), freq.matrix, [(f, "odd") for f in range(0, 48, 5)], documents=20
    )
    seen = {record.document: record for evidence in found for record in evidence.documents}
    assert {1, len(TEXTS) - 1} <= set(seen)
    for n, record in seen.items():
        assert record.tokens[0] == "<bos>"
        assert "".join(record.tokens[1:]) == TEXTS[n]
        assert len(record.tokens) == len(record.token_ids)


def test_documents_are_cut_as_in_the_extraction_and_run_once(model, monkeypatch):
    from tagsteer.lm import hooks

    sae, rows = random_sae(), []
    freq = extract_frequencies(model, sae, TEXTS, max_tokens=10)
    original = hooks.residuals_at

    def counting(model, layers, input_ids, attention_mask):
        rows.append(len(input_ids))
        return original(model, layers, input_ids, attention_mask)

    monkeypatch.setattr(hooks, "residuals_at", counting)
    pairs = [(f, "odd") for f in range(48)]
    found = collect_evidence(model, sae, corpus(), freq.matrix, pairs, max_tokens=10)
    shown = {record.document for evidence in found for record in evidence.documents}
    assert sum(rows) == len(shown)
    for evidence in found:
        for record in evidence.documents:
            assert len(record.tokens) <= 10
            counted = np.array(record.activations)[list(record.counted)]
            assert record.frequency == pytest.approx((counted > 0).mean(), abs=1e-6)


def test_tokens_count_as_in_the_extraction(model, monkeypatch):
    from tagsteer.lm import hooks

    original = hooks.residuals_at

    def with_sinks(model, layers, input_ids, attention_mask):
        z = model.encode("Z")[1]
        (residual,) = original(model, layers, input_ids, attention_mask)
        return [torch.where((input_ids == z)[..., None], 1000 * residual, residual)]

    monkeypatch.setattr(hooks, "residuals_at", with_sinks)
    texts = [*TEXTS[:-1], "a Z in the middle"]
    freq = extract_frequencies(model, random_sae(), texts, max_tokens=10, count_special=True)
    pairs = [(f, "odd") for f in range(48)]
    found = collect_evidence(model, random_sae(), corpus(texts), freq, pairs, documents=20)
    for evidence in found:
        for record in evidence.documents:
            counted = np.array(record.activations)[list(record.counted)]
            assert len(record.tokens) <= 10 and record.counted[0]
            assert record.frequency == pytest.approx((counted > 0).mean(), abs=1e-6)
            assert record.max_activation <= freq.max_activation[evidence.feature] * (1 + 1e-5)
    sink = next(r for e in found for r in e.documents if r.document == len(texts) - 1)
    assert [piece for piece, counts in zip(sink.tokens, sink.counted, strict=True) if not counts] == ["Z"]


def test_a_feature_that_never_fires_has_no_documents(model):
    sae = random_sae()
    empty = csr_matrix((len(TEXTS), 48), dtype=np.float32)
    (found,) = collect_evidence(model, sae, corpus(), empty, [(3, "odd")])
    assert found.documents == () and found.n_active == 0


def test_selected_features_go_by_their_original_ids(model):
    sae = random_sae()
    some = sae.select([40, 3])
    whole = extract_frequencies(model, sae, TEXTS)
    (a,) = collect_evidence(model, sae, corpus(), whole.matrix, [(40, "odd")])
    (b,) = collect_evidence(
        model, some, corpus(), extract_frequencies(model, some, TEXTS).matrix, [(40, "odd")]
    )
    assert [d.document for d in a.documents] == [d.document for d in b.documents]
    np.testing.assert_allclose(a.documents[0].activations, b.documents[0].activations, atol=1e-6)


def test_bad_input_is_an_error(model):
    sae, matrix = random_sae(), csr_matrix((len(TEXTS), 48), dtype=np.float32)
    with pytest.raises(TagsteerError, match="label 'even'"):
        collect_evidence(model, sae, corpus(), matrix, [(3, "even")])
    with pytest.raises(TagsteerError, match="latents 0 to 47"):
        collect_evidence(model, sae, corpus(), matrix, [(48, "odd")])
    with pytest.raises(TagsteerError, match="13 documents"):
        collect_evidence(model, sae, corpus(), matrix[:3], [(3, "odd")])
    with pytest.raises(TagsteerError, match="documents = 0"):
        collect_evidence(model, sae, corpus(), matrix, [(3, "odd")], documents=0)
    assert collect_evidence(model, sae, corpus(), matrix, []) == []
