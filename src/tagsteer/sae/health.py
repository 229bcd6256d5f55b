"""Is this SAE loaded right? L0, explained variance and dead share on residuals, against what its card says.

Knows tensors only: the caller brings residuals of the SAE's own layer. A few tokens (the first ones, mostly)
have norms tens of times the median and hold nearly all variance, so every figure is given with and without
them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.sae")

OUTLIER_FACTOR = 6.0
"""A token counts as an outlier when its norm exceeds this many medians, as in training."""
_DEAD_NEEDS = 100_000  # fewer tokens leave rare but living latents silent


@dataclass(frozen=True)
class Figures:
    """Over one set of tokens; NaN where there are none."""

    n_tokens: int
    l0: float
    """Mean number of active latents per token."""
    explained_variance: float
    """1 - Σ|x - x̂|² / Σ|x - mean(x)|², pooled over the tokens."""


@dataclass(frozen=True)
class Health:
    """`typical` leaves the outlier-norm tokens out and is what cards should be compared with."""

    all: Figures
    typical: Figures
    dead_share: float
    """Share of latents that no token of the sample activates: an upper bound, falling with its size."""
    median_norm: float
    max_norm: float
    outlier_factor: float

    @property
    def n_outliers(self) -> int:
        return self.all.n_tokens - self.typical.n_tokens

    def lines(self) -> list[str]:
        """What `doctor` prints."""
        t, a = self.typical, self.all
        return [
            f"L0 {t.l0:.1f}, explained variance {t.explained_variance:.3f} on {t.n_tokens:,} tokens",
            f"with {self.n_outliers} tokens of more than {self.outlier_factor:g} median norms (median "
            f"{self.median_norm:.1f}, largest {self.max_norm:.1f}): L0 {a.l0:.1f}, "
            f"explained variance {a.explained_variance:.3f}",
            f"silent latents: {self.dead_share:.1%} on {a.n_tokens:,} tokens (at most so many are dead)",
        ]


def measure(
    sae: SAE,
    residuals: torch.Tensor | Sequence[torch.Tensor],
    *,
    outlier_factor: float = OUTLIER_FACTOR,
    batch: int = 1024,
) -> Health:
    """Health on residuals [tokens, d_model] (one tensor or several, in any dtype and on any device)."""
    chunks = [residuals] if isinstance(residuals, torch.Tensor) else list(residuals)
    chunks = [c.reshape(-1, c.shape[-1]) for c in chunks]
    if sae.features is not None:
        raise TagsteerError(
            "explained variance needs the whole SAE: measure before select(), or load without features="
        )
    if not sum(len(c) for c in chunks):
        raise TagsteerError("no residuals to measure the SAE on: give at least one token")
    norms = torch.cat([c.double().norm(dim=1).cpu() for c in chunks])
    if not bool(torch.isfinite(norms).all()):
        raise TagsteerError(
            "the residuals hold values that are not finite; load the model in float32 or bfloat16"
        )
    cut = outlier_factor * norms.median()
    every, typical = _Sums(sae.d_model), _Sums(sae.d_model)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
    start = 0
    for x in _batches(chunks, batch):
        x = x.to(sae.device)
        with torch.inference_mode():
            a = sae.encode(x)
            fires = a > 0
            fired |= fires.any(dim=0)
            error = (x.double() - sae.decode(a, x).double()).square().sum(dim=1).cpu()
            l0 = fires.sum(dim=1).cpu()
        rows = x.double().cpu()
        keep = norms[start : start + len(x)] <= cut
        every.add(rows, error, l0)
        typical.add(rows[keep], error[keep], l0[keep])
        start += len(x)
    silent = 1 - float(fired.float().mean())
    return Health(
        every.figures(), typical.figures(), silent, float(norms.median()), float(norms.max()), outlier_factor
    )


def compare(health: Health, card: dict[str, Any], source: str = "the SAE") -> list[str]:
    """Sentences about what does not fit, each also logged as a warning; empty when all is well.

    L0 may differ by a factor of 1.5 and explained variance by 0.1 between data sets; the card's keys are
    `l0`, `explained_variance` and `dead_share`. Without a card only what no sound SAE shows is reported.
    """
    found = []
    t = health.typical
    said_l0, said_ev, said_dead = (_number(card.get(k)) for k in ("l0", "explained_variance", "dead_share"))
    if said_l0 is not None and not said_l0 / 1.5 <= t.l0 <= said_l0 * 1.5:
        found.append(f"L0 is {t.l0:.1f} here and {said_l0:g} on its card")
    if said_ev is not None and abs(t.explained_variance - said_ev) > 0.1:
        found.append(f"explained variance is {t.explained_variance:.3f} here and {said_ev:.3f} on its card")
    if said_dead is not None and health.all.n_tokens >= _DEAD_NEEDS and health.dead_share > said_dead + 0.1:
        found.append(
            f"{health.dead_share:.1%} of the latents are silent here and {said_dead:.1%} dead on its card"
        )
    if said_ev is None and t.explained_variance < 0.2:
        found.append(
            f"explained variance is {t.explained_variance:.3f}: little better than the mean, or worse"
        )
    if said_l0 is None and t.l0 < 1:
        found.append(f"L0 is {t.l0:.2f}: hardly anything fires")
    sentences = [f"{source}: {what}; check the model, the layer and the format" for what in found]
    for sentence in sentences:
        log.warning(sentence)
    return sentences


class _Sums:
    """Sums in float64 from which the pooled figures follow."""

    def __init__(self, d_model: int) -> None:
        self.n = self.l0 = 0
        self.error = self.square = 0.0
        self.total = torch.zeros(d_model, dtype=torch.float64)

    def add(self, x: torch.Tensor, error: torch.Tensor, l0: torch.Tensor) -> None:
        self.n += len(x)
        self.l0 += int(l0.sum())
        self.error += float(error.sum())
        self.square += float(x.square().sum())
        self.total += x.sum(dim=0)

    def figures(self) -> Figures:
        if not self.n:
            return Figures(0, float("nan"), float("nan"))
        variance = self.square - float(self.total.square().sum()) / self.n
        explained = 1 - self.error / variance if variance > 0 else float("nan")
        return Figures(self.n, self.l0 / self.n, explained)


def _batches(chunks: Sequence[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        yield from chunk.split(size)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
