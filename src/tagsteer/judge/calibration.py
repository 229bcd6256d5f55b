"""Checking an offline judge against an LLM judge on a run's own texts, and correcting its means.

A few texts get both ratings, all get the offline one. Knows tables of ratings; must not know how a judge works.
Prediction-powered inference: Angelopoulos et al. 2023 (Science 382) and PPI++ (arXiv 2311.01453, section 5).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.judge.agreement import PARTS, group_agreement, overall_of, rating_agreement
from tagsteer.judge.types import Judge, JudgeItem, Rating


def choose_sample(items: Sequence[JudgeItem], n: int, seed: int = 0) -> list[JudgeItem]:
    """`n` items drawn without replacement; which ones depends on seed and keys alone, not on their order.

    A larger `n` holds the smaller sample, so that calibrating further pays only for the new texts.
    """
    if not 1 <= n <= len(items):
        raise TagsteerError(f"cannot calibrate on {n} of {len(items)} texts: give 1 to {len(items)}")
    return sorted(items, key=lambda i: hashlib.sha256(f"{seed}\0{i.key}".encode()).digest())[:n]


@dataclass(frozen=True)
class Corrected:
    """A mean with its interval. `naive` is the offline judge's own mean, `judged` that of the small LLM sample."""

    mean: float
    low: float
    high: float
    naive: float
    judged: float
    judged_width: float
    """Width of the interval that the LLM sample alone would give."""
    weight: float
    """How far the offline ratings were believed (lambda of PPI++, 0 to 1)."""
    n_judged: int
    n_offline: int


def corrected_mean(
    llm: np.ndarray | Sequence[float],
    offline: np.ndarray | Sequence[float],
    offline_rest: np.ndarray | Sequence[float],
    confidence: float = 0.95,
) -> Corrected:
    """Mean LLM rating of all texts, from `llm` and `offline` of n sampled texts and `offline_rest` of the others.

        mean = llm̄ + λ (rest̄ − offlinē),   λ = cov(llm, offline) / ((1 + n/N) var(offline)), cut to [0, 1]

    λ is PPI++'s: the interval (normal, from the variances of llm − λ offline over n and λ offline over N) holds
    whatever the offline judge's bias, and is about as narrow as the LLM's own where the offline judge is useless.
    The sample must be random. Ratings that are NaN on either side are left out as pairs.
    """
    y, f, rest = (np.asarray(v, float) for v in (llm, offline, offline_rest))
    if y.shape != f.shape:
        raise TagsteerError(
            f"{len(y)} LLM ratings and {len(f)} offline ratings: give both for the same texts"
        )
    known = ~(np.isnan(y) | np.isnan(f))
    y, f, rest = y[known], f[known], rest[~np.isnan(rest)]
    n, size = len(y), len(rest)
    if n < 2:
        raise TagsteerError(
            f"only {n} texts have both ratings: an interval needs 2 or more, and 50 to be of use"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    naive = float(np.concatenate([f, rest]).mean())
    spread = f.var(ddof=1)
    weight = 0.0
    if size and spread > 0:
        weight = float(np.clip(np.cov(y, f)[0, 1] / ((1 + n / size) * spread), 0.0, 1.0))
    mean = y.mean() + (weight * (rest.mean() - f.mean()) if weight else 0.0)
    variance = (y - weight * f).var(ddof=1) / n
    if weight:
        variance += weight**2 * (rest.var(ddof=1) if size > 1 else spread) / size
    half = z * math.sqrt(variance)
    alone = 2 * z * math.sqrt(y.var(ddof=1) / n)
    return Corrected(
        float(mean), float(mean - half), float(mean + half), naive, float(y.mean()), alone, weight, n, size
    )


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found: agreement on the sample, and corrected means of each part for all and by group."""

    agreement: dict[str, Any]
    corrected: dict[str, dict[str, Corrected]]
    """By group ("all" first), then by part; groups with fewer than 10 sampled texts are not there."""
    missing: int
    """Sampled texts without a complete rating from both judges."""
    offline: str
    llm: str

    def lines(self) -> Iterator[str]:
        """Readable lines for a terminal or a page."""
        n = self.agreement["n"]
        yield f"{self.offline} against {self.llm} on {n} of the run's own texts ({self.missing} incomplete)"
        for part in PARTS:
            rho, error = self.agreement["spearman"].get(part), self.agreement["mean_absolute_error"].get(part)
            if error is not None:
                said = "undefined (one side is constant)" if rho is None else f"{rho:.2f}"
                bias = self.agreement["bias"][part]
                yield f"  {part}: Spearman {said}, mean absolute error {error:.2f}, bias {bias:+.2f}"
        for group, parts in self.corrected.items():
            for part, c in parts.items():
                yield (
                    f"  {group}, {part}: {c.mean:.3f} [{c.low:.3f}, {c.high:.3f}] "
                    f"(offline alone {c.naive:.3f}; {c.n_judged} LLM ratings alone ±{c.judged_width / 2:.3f})"
                )


def calibrate(
    offline: Mapping[str, Rating], llm: Mapping[str, Rating], groups: Mapping[str, str] | None = None
) -> Calibration:
    """Compare two judges' ratings by key: `offline` of all texts of a run, `llm` of a random sample of them.

    `groups` (key -> method, say) asks for corrected means of each group too. "overall" is the harmonic mean of
    the three ratings on both sides; the correction takes out what the offline one is off by.
    """
    unknown = [key for key in llm if key not in offline]
    if unknown or not llm:
        shown = (
            f"{len(unknown)} texts rated by the LLM have no offline rating (first: {unknown[0]!r})"
            if unknown
            else "no LLM ratings"
        )
        raise TagsteerError(
            f"cannot calibrate: {shown}; judge all texts offline and a sample of them by the LLM"
        )
    keys, rest = list(llm), [key for key in offline if key not in llm]
    ours, theirs, others = _table(offline, keys), _table(llm, keys), _table(offline, rest)
    complete = ~(np.isnan(ours).any(1) | np.isnan(theirs).any(1))
    named = dict.fromkeys(offline, "all") if groups is None else groups
    agreement = rating_agreement(ours[complete], theirs[complete])
    if groups is not None:
        agreement["groups"] = group_agreement(ours, theirs, [named[k] for k in keys])
    corrected: dict[str, dict[str, Corrected]] = {}
    wanted = ["all", *(sorted({named[k] for k in keys}) if groups is not None else [])]
    for group in wanted:
        here = np.array([group == "all" or named[k] == group for k in keys])
        there = np.array([group == "all" or named[k] == group for k in rest], dtype=bool)
        if (here & complete).sum() >= 10:
            corrected[group] = {
                part: corrected_mean(theirs[here, k], ours[here, k], others[there, k] if len(rest) else [])
                for k, part in enumerate(PARTS)
            }
    return Calibration(
        agreement,
        corrected,
        int((~complete).sum()),
        next(iter(offline.values())).judge,
        next(iter(llm.values())).judge,
    )


def calibrate_with(
    judge: Judge, items: Sequence[JudgeItem], offline: Mapping[str, Rating], n: int, *, seed: int = 0,
    groups: Mapping[str, str] | None = None,
) -> Calibration:  # fmt: skip
    """Have `judge` rate `n` of a run's own texts (`tagsteer judge --calibrate N`) and compare with `offline`."""
    return calibrate(offline, dict(judge.rate(choose_sample(items, n, seed))), groups)


def _table(ratings: Mapping[str, Rating], keys: Sequence[str]) -> np.ndarray:
    """Ratings and overall score [keys, 4], missing parts NaN."""
    three = np.array(
        [
            [np.nan if v is None else v for v in (r.concept, r.instruction, r.fluency)]
            for r in (ratings[k] for k in keys)
        ],
        float,
    ).reshape(-1, 3)
    return np.column_stack([three, overall_of(three)])
