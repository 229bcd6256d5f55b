"""A key-value cache whose rows can leave and join: what continuous batching needs beside transformers' own.

Must not know steering. Keys and values lie right-aligned: column −1 is every row's newest token, and shorter rows
have padding on the left, which the attention mask hides. Buffers grow by blocks, so that a step writes one
column instead of copying the whole cache. Sliding-window layers keep all columns and are masked by the model.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_BLOCK = 64


class RowLayer(DynamicLayer):
    """One decoder layer's keys and values, [rows, heads, columns, head_dim], in buffers with room to grow."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = 0
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        del value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def get_seq_length(self, *_: Any) -> int:
        return self.length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new columns; returns all keys and values so far as views."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = tuple(  # type: ignore[assignment]
                _grown(None if self._buffers is None else self._buffers[i], new, self.length, end + _BLOCK)
                for i, new in enumerate((key_states, value_states))
            )
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = new
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def arrange(self, rows: torch.Tensor, first_column: int, other: RowLayer | None) -> None:
        """Keep `rows` from `first_column` on, and put the rows of `other` below them, right-aligned."""
        mine = [] if self._buffers is None or not len(rows) else [(self, rows, first_column)]
        joined = [*mine, *([] if other is None or other._buffers is None else [(other, None, 0)])]
        length = max(layer.length - start for layer, _, start in joined)
        buffers = []
        for i in (0, 1):
            parts = []
            for layer, kept, start in joined:
                assert layer._buffers is not None
                part = layer._buffers[i][:, :, start : layer.length]
                part = part if kept is None else part[kept.to(part.device)]
                # Room on the left aligns the rows, room on the right is for tokens to come.
                parts.append(torch.nn.functional.pad(part, (0, 0, length - part.shape[-2], _BLOCK)))
            buffers.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        self._buffers, self.length, self.is_initialized = (buffers[0], buffers[1]), length, True
        self.dtype, self.device = buffers[0].dtype, buffers[0].device
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)


def _grown(old: torch.Tensor | None, like: torch.Tensor, length: int, room: int) -> torch.Tensor:
    buffer = like.new_zeros(*like.shape[:2], room, like.shape[-1])
    if old is not None:
        buffer[:, :, :length] = old[:, :, :length]
    return buffer


def new_cache(config: Any) -> tuple[Cache, bool]:
    """An empty cache for a model, and whether its rows can be rearranged.

    Only plain and sliding attention can: chunked attention and recurrent layers depend on absolute columns or on
    state that padding would enter, so such models keep transformers' own cache and their batches run to the end.
    """
    own = DynamicCache(config=config)
    config = config.get_text_config(decoder=True)
    chunked = getattr(config, "attention_chunk_size", None) or "chunked_attention" in (
        getattr(config, "layer_types", None) or []
    )
    if (
        not chunked
        and own.layers
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in own.layers)
    ):
        return Cache(layers=[RowLayer() for _ in own.layers]), True
    return own, False


def arrange(cache: Cache, rows: torch.Tensor, first_column: int, other: Cache | None = None) -> None:
    """Keep `rows` (int64, maybe none) of a rearrangeable cache from a column on; add `other`'s rows below."""
    for i, layer in enumerate(cache.layers):
        assert isinstance(layer, RowLayer)
        layer.arrange(rows, first_column, None if other is None else other.layers[i])  # type: ignore[arg-type]
