"""Where a training SAE's inputs come from: numbered buffers of residuals, each shuffled and used up by itself.

A buffer is a pure function of its number, so a resumed training sees the same batches without replaying what
came before, and no more than one buffer is in memory. lm/activations.py makes buffers by running a model;
`ActivationFile` reads what it wrote to disk. Must not know language models or text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tagsteer.errors import TagsteerError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class ActivationSource(Protocol):
    """Residuals in numbered buffers; `buffer(n)` returns [tokens, d_model] and always the same for the same n."""

    @property
    def d_model(self) -> int: ...

    def buffer(self, n: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class ActivationFile:
    """Residuals on disk: residuals.bin (rows of `dtype`) and residuals.json, as lm/activations.py writes them."""

    path: Path
    d_model: int
    n_tokens: int
    dtype: torch.dtype
    buffer_tokens: int
    block_tokens: int = 512

    @classmethod
    def open(cls, folder: Path | str, buffer_tokens: int = 262_144) -> ActivationFile:
        """Open a folder of cached residuals; an unfinished or damaged one is an error."""
        folder = Path(folder)
        meta_file, data = folder / "residuals.json", folder / "residuals.bin"
        if not meta_file.exists():
            raise TagsteerError(
                f"{folder} holds no finished residuals (no residuals.json): run the caching again"
            )
        meta = json.loads(meta_file.read_text("utf-8"))
        if meta.get("dtype") not in _DTYPES:
            raise TagsteerError(
                f"{meta_file}: dtype {meta.get('dtype')!r}; wanted one of {', '.join(_DTYPES)}"
            )
        width = meta["d_model"] * _DTYPES[meta["dtype"]].itemsize
        if data.stat().st_size != meta["n_tokens"] * width:
            raise TagsteerError(
                f"{data} has {data.stat().st_size} bytes, not {meta['n_tokens'] * width}: delete {folder}"
            )
        return cls(data, meta["d_model"], meta["n_tokens"], _DTYPES[meta["dtype"]], buffer_tokens)

    def buffer(self, n: int) -> torch.Tensor:
        """Blocks of neighbouring tokens drawn for epoch and place n, without repeating one within an epoch."""
        n_blocks = max(1, self.n_tokens // self.block_tokens)
        per_buffer = max(1, min(n_blocks, self.buffer_tokens // self.block_tokens))
        epoch, place = divmod(n, max(1, n_blocks // per_buffer))
        order = np.random.default_rng([epoch, 7]).permutation(n_blocks)
        blocks = np.sort(order[place * per_buffer : (place + 1) * per_buffer])
        rows = np.memmap(self.path, np.uint8, "r", shape=(self.n_tokens, self.d_model * self.dtype.itemsize))
        size = min(self.block_tokens, self.n_tokens)
        picked = np.concatenate([rows[b * size : (b + 1) * size] for b in blocks])
        return torch.from_numpy(picked).view(self.dtype)


@dataclass(frozen=True)
class Scaling:
    """x -> (x - mean) / scale, so that training sees one mean square per coordinate; folded into the SAE at the end."""

    mean: torch.Tensor
    scale: float
    norm_limit: float
    """Rows with a larger norm are left out: attention sinks have norms fifty times the median."""

    @classmethod
    def measure(cls, x: torch.Tensor, outlier_factor: float) -> Scaling:
        """Mean and scale of the rows of x [tokens, d_model] whose norm is at most `outlier_factor` medians."""
        x = x.float()
        norms = x.norm(dim=1)
        limit = float(outlier_factor * norms.median())
        kept = x[norms <= limit]
        mean = kept.mean(0)
        return cls(mean, float((kept - mean).square().mean().sqrt()), limit)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Rows within the norm limit, centred and scaled, fp32."""
        x = x.float()
        x = x[x.norm(dim=1) <= self.norm_limit]
        return (x - self.mean.to(x.device)) / self.scale


def batches(
    source: ActivationSource,
    scaling: Scaling,
    batch_tokens: int,
    seed: int,
    device: torch.device,
    start: tuple[int, int],
) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Endless scaled batches [batch_tokens, d_model], each with the position (buffer, offset) that follows it."""
    n, offset = start
    empty = 0
    while True:
        x = scaling.apply(source.buffer(n))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed * 1_000_003 + n))
        empty = empty + 1 if len(x) < batch_tokens else 0
        if empty > 3:
            raise TagsteerError(
                f"buffers hold fewer than batch_tokens = {batch_tokens} tokens; lower it or give more text"
            )
        while offset + batch_tokens <= len(x):
            rows = order[offset : offset + batch_tokens]
            offset += batch_tokens
            yield x[rows].to(device), (n, offset)
        n, offset = n + 1, 0
