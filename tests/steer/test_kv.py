"""Rows that leave, join and grow keep their own keys and values, right-aligned."""

from __future__ import annotations

import pytest
import torch

from tagsteer.steer.kv import RowLayer, arrange, new_cache
from tests.tiny import tiny_model


def filled(rows: int, columns: int, start: float) -> RowLayer:
    layer = RowLayer()
    values = torch.arange(start, start + rows * columns).reshape(rows, 1, columns, 1).expand(-1, 2, -1, 3)
    layer.update(values, -values)
    return layer


def test_columns_are_appended_beyond_the_first_block():
    layer = RowLayer()
    parts = [torch.randn(2, 1, n, 4) for n in (5, 1, 100, 1, 64)]
    for part in parts:
        keys, values = layer.update(part, part * 2)
    assert torch.equal(keys, torch.cat(parts, 2)) and torch.equal(values, 2 * keys)
    assert layer.get_seq_length() == 171 and layer.get_mask_sizes(3)[0] == 174


@pytest.mark.parametrize(("columns", "other_columns"), [(7, 4), (4, 7)])
def test_arrange_keeps_rows_drops_columns_and_aligns_right(columns, other_columns):
    layer, other = filled(3, columns, 100), filled(2, other_columns, 500)
    wanted_old, wanted_new = layer.keys[[0, 2], :, 2:].clone(), other.keys.clone()
    layer.arrange(torch.tensor([0, 2]), 2, other)
    assert layer.keys.shape[:1] == (4,) and layer.get_seq_length() == max(columns - 2, other_columns)
    assert torch.equal(layer.keys[:2, :, -(columns - 2) :], wanted_old)
    assert torch.equal(layer.values[2:, :, -other_columns:], -wanted_new)
    step = torch.ones(4, 2, 1, 3)
    assert torch.equal(layer.update(step, step)[0][:, :, -1:], step)


def test_caches_of_attention_models_are_rearrangeable_and_others_are_left_to_transformers():
    for family in ("llama", "gemma2", "mistral"):
        cache, rearranges = new_cache(tiny_model(family).hf.config)
        assert rearranges and len(cache.layers) == 4
    arrange_nothing = new_cache(tiny_model("llama").hf.config)[0]
    with pytest.raises(ValueError):
        arrange(arrange_nothing, torch.tensor([], dtype=torch.int64), 0)
    import transformers

    mamba = transformers.MambaConfig(num_hidden_layers=2, hidden_size=32)
    hybrid = transformers.Lfm2Config(
        num_hidden_layers=2, layer_types=["conv", "full_attention"], hidden_size=32
    )
    chunked = tiny_model("llama").hf.config
    chunked.attention_chunk_size = 8
    for config in (hybrid, chunked):
        assert new_cache(config)[1] is False
    del mamba
