"""The rank-1 edit equals decode-with-edit plus error term through the full SAE, in float64 and for every kind."""

from __future__ import annotations

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.steer.edits import BatchEdit
from tagsteer.steer.interventions import (
    NOTHING,
    Intervention,
    Term,
    ablation,
    addition,
    clamp,
    min_clamp,
    ramp,
)
from tagsteer.steer.latents import Latents
from tests.steer.helpers import small_sae
from tests.tiny import D_MODEL

KINDS = ["relu", "jumprelu", "topk", "gated"]


def residuals(rows: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(rows, 6, D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(
        dtype
    )


def prompt_t(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.int64)


def through_the_sae(sae, x, change):
    """x − Dec(a) + Dec(change(a)): the definition, with the whole SAE."""
    a = sae.encode(x)
    return x - sae.decode(a) + sae.decode(change(a.clone()))


def set_to(features, values):
    def change(a):
        for i, c in zip(features, values, strict=True):
            a[..., i] = c
        return a

    return change


def edit(sae, intervention, x, t=None, vectors=None):
    return BatchEdit(Latents(sae, vectors), [intervention] * len(x), 4)(x, prompt_t(x) if t is None else t)


@pytest.mark.parametrize("kind", KINDS)
def test_clamp_equals_decode_with_edit_plus_error_term(kind):
    sae, x = small_sae(kind, torch.float64), residuals(3)
    assert 0.05 < (sae.encode(x) > 0).double().mean() < 0.95
    for values in ({4: 7.5}, {4: 7.5, 0: 0.0, 11: -2.0}):
        wanted = through_the_sae(sae, x, set_to(values, values.values()))
        torch.testing.assert_close(edit(sae, clamp(values), x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_operations_equal_their_definitions(kind):
    sae, x = small_sae(kind, torch.float64), residuals(3)
    a = sae.encode(x)
    wanted = through_the_sae(sae, x, lambda a: a.index_fill(-1, torch.tensor([2, 9]), 0.0))
    torch.testing.assert_close(edit(sae, ablation([2, 9]), x), wanted, rtol=0, atol=1e-12)

    def raised(a):
        a[..., 4] = a[..., 4].clamp(min=0.6)
        return a

    torch.testing.assert_close(
        edit(sae, min_clamp({4: 0.6}), x), through_the_sae(sae, x, raised), rtol=0, atol=1e-12
    )

    def where_active(a):
        a[..., 4] = torch.where(a[..., 4] > 0, 5.0, a[..., 4])
        return a

    wanted = through_the_sae(sae, x, where_active)
    torch.testing.assert_close(edit(sae, clamp({4: 5.0}, only_if_active=True), x), wanted, rtol=0, atol=1e-12)
    assert (a[..., 4] > 0).any() and (a[..., 4] == 0).any()
    torch.testing.assert_close(edit(sae, addition({4: 3.0}), x), x + 3 * sae.W_dec[4], rtol=0, atol=1e-12)


def test_clamp_moves_the_residual_by_exactly_its_gap_times_the_row():
    sae, x = small_sae("jumprelu", torch.float64), residuals(2)
    moved = edit(sae, clamp({4: 7.5}), x) - x
    a = sae.encode(x)[..., 4:5]
    torch.testing.assert_close(moved, (7.5 - a) * sae.W_dec[4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_mixed_batch_get_their_own_features_and_strengths(kind):
    """AxBench writes the last row's target into all rows of a batch with mixed factors."""
    sae, vectors = small_sae(kind, torch.float64), {"v": torch.ones(D_MODEL, dtype=torch.float64)}
    rows = [
        clamp({4: 0.4}), clamp({4: 10.0}), clamp({7: 10.0}), NOTHING, addition({4: 2.0}), min_clamp({3: 1.0, 4: 2.0}),
        Intervention((Term("clamp", 5, 1.0), Term("addition", 6, 2.0), Term("addition", "v", -1.0))),
        addition({"v": 3.0}), ablation([4]), clamp({4: 10.0}, tokens="generation"),
        clamp({4: 8.0}, schedule=ramp(4, 0.5)),
    ]  # fmt: skip
    x = residuals(len(rows))
    together = BatchEdit(Latents(sae, vectors), rows, 4)(x, prompt_t(x))
    alone = [edit(sae, row, x[b : b + 1], vectors=vectors) for b, row in enumerate(rows)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)
    assert torch.equal(together[3], x[3]) and torch.equal(together[9], x[9])
    torch.testing.assert_close(together[6], edit(sae, clamp({5: 1.0}), x[6:7])[0] + 2 * sae.W_dec[6] - 1)


def test_time_decides_the_weight_and_padding_is_left_alone():
    sae, x = small_sae("jumprelu", torch.float64), residuals(2)
    t = torch.tensor([[-1, -1, 0, 0, 1, 2], [0, 0, 0, 1, 2, 3]])
    full = edit(sae, clamp({4: 8.0}), x) - x
    for intervention in (clamp({4: 8.0}), clamp({4: 8.0}, tokens="generation", schedule=ramp(4, 1, 0))):
        weight = torch.tensor([[0 if s < 0 else intervention.weight(s) for s in row] for row in t.tolist()])
        out = edit(sae, intervention, x, t)
        torch.testing.assert_close(out, x + weight[..., None] * full, rtol=0, atol=1e-12)
        assert torch.equal(out[0, :2], x[0, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_residual_keeps_its_dtype_and_a_zero_edit_its_bits(dtype):
    sae, x = small_sae("jumprelu", torch.float16), residuals(2, dtype)
    out = BatchEdit(Latents(sae), [addition({4: 0.0}), clamp({4: 8.0})], 4)(x, prompt_t(x))
    assert out.dtype == dtype and torch.equal(out[0], x[0]) and not torch.equal(out[1], x[1])
    assert BatchEdit(Latents(sae), [NOTHING, NOTHING], 4)(x, prompt_t(x)) is x


def test_topk_runs_the_whole_encoder_in_blocks_and_says_so(monkeypatch, caplog):
    caplog.set_level("INFO", "tagsteer")
    sae, x = small_sae("topk", torch.float64), residuals(3)
    whole = edit(sae, clamp({4: 7.5}), x)
    assert "depends on all 24 latents" in caplog.text
    monkeypatch.setattr("tagsteer.steer.latents._BLOCK", 30)
    torch.testing.assert_close(edit(sae, clamp({4: 7.5}), x), whole, rtol=0, atol=1e-12)
    latents = Latents(sae)
    for rows in ([4, 7], [7, 2]):  # the encoder stays, the selection changes
        encoder = latents.encoder(rows, x.device, x.dtype)
        assert torch.equal(encoder.encode(x), sae.encode(x)[..., rows])
    caplog.clear()
    edit(sae, addition({4: 1.0}), x)
    assert caplog.text == ""  # adding needs no activation


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(TagsteerError, match="batchtopk"):
        Latents(small_sae("batchtopk"))
    with pytest.raises(TagsteerError, match="feature 24 is out of range"):
        Latents(small_sae()).check([24])
    with pytest.raises(TagsteerError, match="no vector is called 'w'"):
        Latents(small_sae(), {"v": torch.ones(D_MODEL)}).check(["v", "w"])
    with pytest.raises(TagsteerError, match="no SAE"):
        Latents(None).check([1])


@pytest.mark.shared
def test_mixed_factors_on_real_gemma_scope_latents_with_neuronpedia_max_activations(shared):
    """AxBench's factors on its own latents: each row equals decode-with-edit plus error at its own strength."""
    import json

    import numpy as np

    from tagsteer.sae.sae import SAE
    from tagsteer.steer.interventions import resolve_strength

    with np.load(shared / "axbench" / "gemma_scope_2b_l20_65k_10_latents.npz", allow_pickle=False) as file:
        w = {
            name: torch.from_numpy(file[name]).double()
            for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        }
    sae = SAE("jumprelu", **w, layer=20)
    stored = json.loads((shared / "axbench" / "derived" / "neuronpedia_max_activations.json").read_text())
    top = stored["gemma-2-2b/20-gemmascope-res-65k/14700"]
    assert top == pytest.approx(147.005, abs=1e-3)
    factors = [0.4, 0.8, 1.2, 1.6, 2, 3, 4, 6, 8, 10]
    strengths = [resolve_strength(3, f, "max_activation", {3: top}) for f in factors]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(10, 5, sae.d_model, generator=g, dtype=torch.float64) * 3 + 40 * sae.W_enc[:, 3]
    assert (sae.encode(x)[..., 3] > 0).double().mean() > 0
    out = BatchEdit(Latents(sae), [clamp({3: s}) for s in strengths], 4)(x, prompt_t(x))
    wanted = torch.stack([through_the_sae(sae, x[b], set_to([3], [s])) for b, s in enumerate(strengths)])
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-9)
