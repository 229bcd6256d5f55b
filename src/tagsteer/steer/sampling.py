"""Draw the next token of each row with random numbers that belong to the row's item and step, not to its batch.

Knows logits and seeds; must not know models or interventions. A token is drawn by an exponential race (the
Gumbel-max trick): argmin_j E_j / p_j has the distribution p when the E_j are independent and exponential. E_j is
computed from a hash of (item seed, step, token id), so it is the same in every batch, order, process and device;
the draw changes only when two tokens finish the race closer than the rounding noise of the logits. Measured on
the embedded model in float32 (batch of 4 against batches of 1): a draw by inverse CDF changed at 1 token in 900 to
2,000, the race at no more than 1 in 380,000. Rounding the logits to a grid would not help: it makes changes rarer
and larger.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from tagsteer.errors import TagsteerError

Key = str | tuple["str | int | float | None", ...]

# Multipliers of a 32-bit integer hash with low bias (C. Wellons, "hash-prospector": lowbias32), as signed int32.
_M1 = 0x7FEB352D
_M2 = 0x846CA68B - 2**32


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; the defaults are AxBench's temperature and no cut.

    AxBench leaves top_k to transformers, whose default is 50: pass top_k=50 for exactly its distribution.
    """

    temperature: float = 1.0
    """0 is greedy: the largest logit, the smaller id on ties."""
    top_k: int | None = None
    """Keep the k largest logits (and all that equal the k-th)."""
    top_p: float | None = None
    """Keep the smallest set of most probable tokens with at least this mass, after top_k."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise TagsteerError(f"temperature {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise TagsteerError(f"top_k = {self.top_k}: give 1 or more, or None for no cut")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise TagsteerError(f"top_p = {self.top_p}: give a share in (0, 1], or None for no cut")


DEFAULT = Sampling()
GREEDY = Sampling(temperature=0.0)


def item_seed(key: Key, seed: int = 0) -> bytes:
    """16 bytes from an item's key and the run's seed; 3 and 3.0 are the same, as a key read back from a table needs."""
    parts = [key] if isinstance(key, str) else list(key)
    plain = [part if part is None or isinstance(part, str) else float(part) for part in parts]
    text = json.dumps([int(seed), plain], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def step_keys(seeds: Sequence[bytes], steps: Sequence[int]) -> torch.Tensor:
    """Two 32-bit words for each row's (seed, step): int32 [rows, 2], on the CPU."""
    words = b"".join(
        hashlib.blake2b(step.to_bytes(8, "little"), key=seed, digest_size=8).digest()
        for seed, step in zip(seeds, steps, strict=True)
    )
    return torch.frombuffer(bytearray(words), dtype=torch.int32).reshape(-1, 2)


def exponentials(keys: torch.Tensor, vocab: int) -> torch.Tensor:
    """Independent Exp(1) numbers, float32 [rows, vocab], in [2⁻³³, 16.6], for int32 keys [rows, 2] on any device."""
    h = _token_hashes(vocab, keys.device) ^ keys[:, :1]
    h ^= (h >> 16) & 0xFFFF
    h *= _M1
    h ^= keys[:, 1:]
    h ^= (h >> 15) & 0x1FFFF
    h *= _M2
    h ^= (h >> 16) & 0xFFFF
    u = h.float()
    u += 2.0**32 * (u < 0)
    # −log(1 − u) with u = (h + ½) / 2³²: small values, which win races, keep their full relative precision.
    return u.add_(0.5).mul_(-(2.0**-32)).clamp_(min=-(1 - 2.0**-24)).log1p_().neg_()


@lru_cache(maxsize=8)
def _token_hashes(vocab: int, device: torch.device) -> torch.Tensor:
    """lowbias32 of every token id: int32 [vocab], the same at every step."""
    with torch.inference_mode(False):
        return _mix(torch.arange(vocab, dtype=torch.int32, device=device))


def _mix(h: torch.Tensor) -> torch.Tensor:
    """lowbias32 in int32; shifts are made logical by masks, products wrap modulo 2³²."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * _M1
    h = h ^ ((h >> 15) & 0x1FFFF)
    h = h * _M2
    return h ^ ((h >> 16) & 0xFFFF)


def draw(logits: torch.Tensor, sampling: Sequence[Sampling], keys: torch.Tensor) -> torch.Tensor:
    """Next token ids, int64 [rows], from logits [rows, vocab]; −1 where the logits hold a NaN or +inf.

    keys: int32 [rows, 2] of `step_keys`.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    temperature = torch.tensor([s.temperature for s in sampling], device=logits.device)[:, None]
    greedy = logits.argmax(-1)
    if all(s.temperature == 0 for s in sampling):
        chosen = greedy
    else:
        scaled = (logits - top) / temperature.clamp(min=1e-6)
        scaled = _cut(scaled, sampling)
        race = scaled.exp_().div_(exponentials(keys.to(logits.device), logits.shape[-1]))
        chosen = torch.where(temperature[:, 0] > 0, race.argmax(-1), greedy)
    return torch.where(torch.isfinite(top[:, 0]), chosen, -1)


def _cut(logits: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    """Logits with everything outside top_k and top_p at −inf; untouched when no row asks for a cut."""
    vocab = logits.shape[-1]
    if any(s.top_k is not None for s in sampling):
        k = torch.tensor([min(s.top_k or vocab, vocab) for s in sampling], device=logits.device)
        kept = logits.topk(int(k.max()), dim=-1).values
        logits = logits.masked_fill(logits < kept.gather(1, k[:, None] - 1), -torch.inf)
    if any(s.top_p is not None for s in sampling):
        p = torch.tensor([1.0 if s.top_p is None else s.top_p for s in sampling], device=logits.device)
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        mass = values.softmax(-1)
        # A token stays while the mass before it is below p: the first one always does.
        outside = ((mass.cumsum(-1) - mass) >= p[:, None]) & (p[:, None] < 1)
        logits = logits.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), -torch.inf)
    return logits
