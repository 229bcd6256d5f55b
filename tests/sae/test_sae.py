"""The SAE type itself: its kinds in closed form, selection, precision, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.sae import SAE

D, N = 6, 10


@pytest.fixture
def parts():
    g = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(D, N, generator=g, dtype=torch.float64),
        "b_enc": torch.randn(N, generator=g, dtype=torch.float64),
        "W_dec": torch.randn(N, D, generator=g, dtype=torch.float64),
        "b_dec": torch.randn(D, generator=g, dtype=torch.float64),
    }


@pytest.fixture
def x():
    return torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """Encode one number at a time."""
    flat = x.reshape(-1, D)
    out = torch.zeros(len(flat), sae.d_sae, dtype=x.dtype)
    scores = [[float(row @ sae.W_enc[:, i] + sae.b_enc[i]) for i in range(sae.d_sae)] for row in flat]
    all_scores = sorted((s for row in scores for s in row), reverse=True)
    for t, row in enumerate(scores):
        for i, pre in enumerate(row):
            if sae.kind == "relu":
                value = max(pre, 0.0)
            elif sae.kind == "jumprelu":
                value = pre if pre > 0 and pre > float(sae.threshold[i]) else 0.0
            elif sae.kind == "topk":
                value = max(pre, 0.0) if pre >= sorted(row, reverse=True)[sae.k - 1] else 0.0
            elif sae.kind == "batchtopk":
                value = max(pre, 0.0) if pre >= all_scores[sae.k * len(flat) - 1] else 0.0
            else:
                magnitude = float(sae.gain[i]) * (pre - float(sae.b_enc[i])) + float(sae.b_mag[i])
                value = max(magnitude, 0.0) if pre > 0 else 0.0
            out[t, i] = value
    return out.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "batchtopk", "gated"])
def test_every_kind_equals_its_formula(kind, parts, x):
    extra = {
        "jumprelu": {"threshold": torch.linspace(-1, 2, N, dtype=torch.float64)},
        "topk": {"k": 3},
        "batchtopk": {"k": 3},
        "gated": {
            "gain": torch.linspace(0.5, 2, N, dtype=torch.float64),
            "b_mag": torch.linspace(-1, 1, N, dtype=torch.float64),
        },
    }
    sae = SAE(kind, **parts, **extra.get(kind, {}))
    a = sae.encode(x)
    assert a.shape == (3, 5, N)
    torch.testing.assert_close(a, plain(sae, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.decode(a), torch.einsum("bti,id->btd", a, sae.W_dec) + sae.b_dec)


def test_jumprelu_is_strict_and_never_negative():
    """At the threshold a latent is silent, and a negative threshold lets nothing negative through."""
    one = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    at = SAE("jumprelu", one, zero, one, zero, threshold=torch.tensor([2.0], dtype=torch.float64))
    assert at.encode(torch.tensor([[2.0], [2.5], [-3.0]])).flatten().tolist() == [0.0, 2.5, 0.0]
    below = SAE("jumprelu", one, zero, one, zero, threshold=torch.tensor([-2.0], dtype=torch.float64))
    assert below.encode(torch.tensor([[-1.0], [0.5]])).flatten().tolist() == [0.0, 0.5]


def test_encode_does_not_touch_its_input(parts, x):
    before = x.clone()
    sae = SAE("relu", **parts)
    sae.decode(sae.encode(x))
    assert torch.equal(x, before)


def test_selection_of_a_selection_keeps_original_ids(parts, x):
    sae = SAE("topk", **parts, k=3)
    part = sae.select([7, 2, 5]).select([5, 7])
    assert part.features.tolist() == [5, 7] and part.d_sae == N and part.n_features == 2
    torch.testing.assert_close(part.encode(x), sae.encode(x)[..., [5, 7]])
    assert part.row(7) == 1
    with pytest.raises(TagsteerError, match="feature 2 was not kept"):
        part.row(2)


@pytest.mark.parametrize(
    ("ids", "words"), [([], "no feature"), ([1, 1], "twice"), ([N], "out of range"), ([-1], "range")]
)
def test_wrong_selections(parts, ids, words):
    with pytest.raises(TagsteerError, match=words):
        SAE("relu", **parts).select(ids)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_per_token_norms_keep_the_models_units(parts, x, norm):
    """a_i · W_dec[i] is in x's own units, so a clamp needs nothing else, whatever the token's norm."""
    sae = SAE("relu", **parts, input_norm=norm)
    a = sae.encode(x)
    clamped = a.clone()
    clamped[..., 4] = 3.0
    wanted = x - sae.decode(a, x) + sae.decode(clamped, x)
    torch.testing.assert_close(x + (3.0 - a[..., 4:5]) * sae.W_dec[4], wanted)
    if norm == "constant_norm_rescale":  # a token twice as long: activations and reconstruction twice as long
        torch.testing.assert_close(sae.encode(2 * x), 2 * a)
        torch.testing.assert_close(sae.decode(2 * a, 2 * x), 2 * sae.decode(a, x))
    with pytest.raises(TagsteerError, match="residuals"):
        sae.decode(a)


def test_precision_and_save(parts, x, tmp_path):
    from tagsteer.sae.loading import load_sae

    sae = SAE("jumprelu", **parts, threshold=torch.rand(N), layer=3, card={"l0": 5.0, "data": "none"})
    half = sae.to(dtype=torch.float32)
    assert half.dtype == torch.float32 and half.encode(x).dtype == torch.float32
    sae.save(tmp_path, dtype=torch.float16)
    back = load_sae(tmp_path, device="cpu")
    assert (back.layer, back.card, back.dtype) == (3, sae.card, torch.float32)
    torch.testing.assert_close(back.W_enc, sae.W_enc.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(back.threshold, sae.threshold.float(), rtol=0, atol=0)  # vectors keep float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "sae.safetensors"]


def test_parameters_lose_their_graph(parts):
    sae = SAE("relu", **{k: torch.nn.Parameter(v) for k, v in parts.items()})
    assert not sae.encode(torch.ones(1, D)).requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "sigmoid"}, "sigmoid"),
        ({"kind": "jumprelu"}, "threshold"),
        ({"kind": "topk"}, "needs k"),
        ({"kind": "topk", "k": 99}, "99"),
        ({"kind": "gated"}, "gain and b_mag"),
        ({"W_dec": torch.zeros(D, N)}, "transposed"),
        ({"b_enc": torch.zeros(N + 1)}, "b_enc"),
        ({"input_norm": "batch"}, "batch"),
    ],
)
def test_parts_that_do_not_fit(parts, change, words):
    with pytest.raises(TagsteerError, match=words):
        SAE(**{"kind": "relu"} | parts | change)


def test_residuals_that_do_not_fit(parts):
    sae = SAE("relu", **parts)
    with pytest.raises(TagsteerError, match="another model"):
        sae.encode(torch.zeros(2, D + 1))
    with pytest.raises(TagsteerError, match="meta"):
        sae.encode(torch.zeros(2, D, device="meta"))
    with pytest.raises(TagsteerError, match="0 to 9"):
        sae.row(10)


@pytest.mark.cuda
def test_cuda_gives_the_same(parts, x):
    for kind, extra in (("relu", {}), ("jumprelu", {"threshold": torch.rand(N)}), ("topk", {"k": 3})):
        sae = SAE(kind, **parts, **extra)
        there = sae.to("cuda")
        torch.testing.assert_close(there.encode(x.cuda()).cpu(), sae.encode(x))
        torch.testing.assert_close(there.select([3, 1]).encode(x.cuda()).cpu(), sae.select([3, 1]).encode(x))
        bf16 = sae.to("cuda", torch.bfloat16)
        assert bf16.encode(x.cuda().bfloat16()).dtype == torch.bfloat16
