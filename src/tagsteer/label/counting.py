"""Which tokens count, and how often each latent fires on them: sparse counts made on the SAE's device.

Tokens are encoded in blocks of latents into one buffer that is reused; of a block only the activations that
fired are kept, so no documents × tokens × latents array exists. Knows no text and no files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.sae import SAE

BINS_PER_OCTAVE = 4
N_BINS = 128
_LOWEST_OCTAVE = -12  # bins span activations of 2^-12 to 2^20; what lies outside goes into the end bins


def counted_tokens(
    ids: torch.Tensor, lengths: torch.Tensor, special: Collection[int], count_special: bool, count_first: bool
) -> torch.Tensor:
    """Mask [batch, positions] of the tokens that count, of right-padded ids [batch, positions].

    Padding never counts; special tokens and position 0 only if asked for. Position 0 is the attention sink of
    most models: its residual is tens of times longer than any other, and SAEs are trained without it.
    """
    positions = torch.arange(ids.shape[1], device=ids.device)
    keep = positions < lengths.to(ids.device)[:, None]
    if not count_special and special:
        marks = torch.tensor(sorted(special), device=ids.device)
        is_special = torch.isin(ids, marks)
        # Position 0 has its own switch, whether it is a BOS or not.
        keep &= ~is_special | (positions == 0)
    return keep if count_first else keep & (positions > 0)


@dataclass
class Counts:
    """Sparse counts of one batch: `count[j]` tokens of document `document[j]` (of the batch) fire
    `latent[j]`."""

    document: np.ndarray
    latent: np.ndarray
    count: np.ndarray


@dataclass
class LatentTotals:
    """What is summed over tokens for each latent; one of these per shard, added up over shards.

    `histogram` [d_sae, 128] counts activations in bins of a quarter octave, for the robust maximum.
    """

    maximum: torch.Tensor  # (d_sae,) float32, 0 where nothing fired
    total: torch.Tensor  # (d_sae,) float64
    tokens: torch.Tensor  # (d_sae,) int64
    histogram: torch.Tensor  # (d_sae, N_BINS) int32

    @classmethod
    def zeros(cls, d_sae: int, device: torch.device) -> LatentTotals:
        def new(dtype: torch.dtype, *more: int) -> torch.Tensor:
            return torch.zeros((d_sae, *more), dtype=dtype, device=device)

        return cls(new(torch.float32), new(torch.float64), new(torch.int64), new(torch.int32, N_BINS))

    def add(self, part: BlockTotals) -> None:
        """Add what one block of one batch found."""
        where = slice(part.first, part.first + len(part.maximum))
        self.maximum[where] = torch.maximum(self.maximum[where], part.maximum)
        self.total[where] += part.total
        self.tokens[where] += part.histogram.sum(1)
        self.histogram[where] += part.histogram.to(torch.int32)


@dataclass
class BlockTotals:
    """`LatentTotals` of the latents from `first` on, in one block of one batch."""

    first: int
    maximum: torch.Tensor
    total: torch.Tensor
    histogram: torch.Tensor


class Counter:
    """Counts firing tokens per document and latent, batch by batch."""

    def __init__(self, sae: SAE, latents_per_block: int | None = None) -> None:
        self.sae = sae
        default = 16_384 if sae.device.type == "cuda" else 4_096
        self.block = min(sae.n_features, latents_per_block or default)
        self._buffer = torch.empty(0, dtype=sae.dtype, device=sae.device)
        # A latent can be encoded apart from the others only where its activation needs nothing else of the
        # row.
        self._in_blocks = sae.kind in ("relu", "jumprelu") and sae.input_norm is None
        cut = sae.threshold if sae.kind == "jumprelu" else None
        self._cut = torch.zeros((), dtype=sae.dtype, device=sae.device) if cut is None else cut

    def count(
        self, x: torch.Tensor, document: torch.Tensor, n_documents: int
    ) -> tuple[Counts, list[BlockTotals]]:
        """Counts and totals of tokens x [tokens, d_model] that belong to `document` [tokens] of a batch.

        Has no effect besides its buffer, so a batch that ran out of memory can be repeated.
        """
        x, document = x.to(self.sae.device), document.to(self.sae.device)
        if not torch.isfinite(x).all():
            raise TagsteerError(
                "the model's residuals are not finite: load it with dtype = 'bfloat16' or 'float32'"
            )
        none = torch.empty(0, dtype=torch.int64, device=x.device)
        found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = [(none, none, none)]
        totals: list[BlockTotals] = []
        for first, start, values, fires in self._blocks(x):
            width = values.shape[1]
            where = fires.view(-1).nonzero().squeeze(1)
            value = values.view(-1)[where].float()
            row = where // width
            latent = where - row * width
            cells = torch.bincount(document[start + row] * width + latent, minlength=n_documents * width)
            cell = cells.nonzero().squeeze(1)
            found.append((cell // width, cell % width + first, cells[cell]))
            totals.append(_totals(first, width, latent, value))
        document_, latent_, count_ = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return Counts(document_, latent_.astype(np.int32), count_.astype(np.int32)), totals

    def _blocks(self, x: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """Pieces of the encoding: first latent, first token, values [tokens, latents], and where they are
        active."""
        n, d_sae = len(x), self.sae.n_features
        if not self._in_blocks:
            # Whole rows, a few tokens at a time: a piece holds as many numbers as one of the other kind.
            rows = max(1, n * self.block // d_sae)
            for start in range(0, n, rows):
                a = self.sae.encode(x[start : start + rows])
                yield 0, start, a, a > 0
            return
        if self._buffer.numel() < n * self.block:
            self._buffer = torch.empty(n * self.block, dtype=self.sae.dtype, device=self.sae.device)
        x = x.to(self.sae.dtype)
        for first in range(0, d_sae, self.block):
            some = slice(first, min(first + self.block, d_sae))
            width = some.stop - first
            pre = self._buffer[: n * width].view(n, width)
            torch.addmm(self.sae.b_enc[some], x, self.sae.W_enc[:, some], out=pre)
            # A pre-activation above its threshold (never below 0) is the activation.
            yield first, 0, pre, pre > (self._cut if self._cut.ndim == 0 else self._cut[some])


def _totals(first: int, width: int, latent: torch.Tensor, value: torch.Tensor) -> BlockTotals:
    bins = bin_of(value)
    histogram = torch.bincount(latent * N_BINS + bins, minlength=width * N_BINS).view(width, N_BINS)
    maximum = torch.zeros(width, dtype=torch.float32, device=value.device).scatter_reduce_(
        0, latent, value, "amax"
    )
    total = torch.bincount(latent, weights=value.double(), minlength=width)
    return BlockTotals(first, maximum, total, histogram)


def bin_of(value: torch.Tensor) -> torch.Tensor:
    """Histogram bin, int64, of activations > 0."""
    octave = torch.log2(value.float()) - _LOWEST_OCTAVE
    return (octave * BINS_PER_OCTAVE).floor().clamp(0, N_BINS - 1).long()


def quantile(histogram: np.ndarray, q: float, maximum: np.ndarray) -> np.ndarray:
    """q-quantile [d_sae] of the activations counted in histogram [d_sae, 128]; NaN where nothing fired.

    Inside a bin values are taken as evenly spread on the log scale, so the result is at most a quarter octave
    (19 %) off; it never exceeds the exact maximum.
    """
    n = histogram.sum(1)
    cumulative = histogram.cumsum(1)
    wanted = q * n
    bins = (cumulative < wanted[:, None]).sum(1).clip(max=N_BINS - 1)
    rows = np.arange(len(histogram))
    inside = histogram[rows, bins]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (wanted - (cumulative[rows, bins] - inside)) / inside
        value = 2.0 ** (_LOWEST_OCTAVE + (bins + share) / BINS_PER_OCTAVE)
    return np.where(n > 0, np.minimum(value, maximum), np.nan).astype(np.float32)
