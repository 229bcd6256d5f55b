"""Residuals read and edited through hooks equal those of a plain full forward, in every family."""

from __future__ import annotations

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.lm.hooks import edit_residual, residual_of, residuals_at, with_residual
from tests.tiny import N_LAYERS, tiny_model

FAMILIES = ["llama", "gemma2", "gpt2", "qwen2", "gpt_neox", "mistral"]


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def batch(model):
    ids = torch.tensor([model.encode("tagged"), model.encode("steers")])
    return ids, torch.ones_like(ids)


def test_truncated_residuals_equal_hidden_states_of_a_full_forward(model):
    ids, mask = batch(model)
    full = model.hf(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    # hidden_states[l + 1] is the output of layer l, except the last, which has the final norm applied.
    for layer, residual in zip([0, 2], residuals_at(model, [0, 2], ids, mask), strict=True):
        torch.testing.assert_close(residual, full[layer + 1])


def test_layers_above_the_last_do_not_run(model):
    ids, mask = batch(model)
    ran = []
    handle = model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    residuals_at(model, [1], ids, mask)
    handle.remove()
    assert ran == []


def test_edit_changes_the_residual_by_exactly_the_edit_and_leaves_no_hook(model):
    ids, mask = batch(model)
    plain = model.hf(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    with edit_residual(model, 1, lambda x: x + 1.0):
        edited = model.hf(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        seen = residuals_at(model, [1], ids, mask)[0]
    torch.testing.assert_close(seen, plain.hidden_states[2] + 1.0)
    torch.testing.assert_close(edited.hidden_states[1], plain.hidden_states[1])
    assert not torch.allclose(edited.logits, plain.logits)
    again = model.hf(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(again.logits, plain.logits)


def test_other_members_of_a_tuple_output_pass_through():
    residual, cache = torch.zeros(1, 2, 3), object()
    out = with_residual((residual, cache), residual + 1)
    assert out[1] is cache and residual_of(out).sum() == 6
    with pytest.raises(TagsteerError, match="dict"):
        residual_of({"x": 1})


def test_edit_is_removed_when_the_body_raises(model):
    with pytest.raises(RuntimeError, match="inside"), edit_residual(model, 0, lambda x: x * 0):
        raise RuntimeError("inside")
    assert not model.layers[0]._forward_hooks


def test_layer_names_resolve_and_range_is_checked(model):
    assert [model.layer_index(x) for x in (2, "2", "blocks.2.hook_resid_post", "model.layers.2")] == [2] * 4
    with pytest.raises(TagsteerError, match=f"0 to {N_LAYERS - 1}"):
        model.layer_index(N_LAYERS)
    with pytest.raises(TagsteerError, match="blocks"):
        model.layer_index("blocks.2.hook_mlp_out")
