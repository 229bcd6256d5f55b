"""Output score: does amplifying a feature make the model say the tokens that the feature points at?

Arad et al. 2025, exactly: after the prompt "From my experience,", m is the largest activation of any
feature at the last position; 10·m·W_dec[f] is added to the residual there; p is the next-token
distribution, V its length. With L_f the feature's top 20 logit-lens tokens and r_t the rank (from 0) of t
in p,

    score = (1 − min_{t∈L_f} r_t / V) · max_{t∈L_f} p_t

which lies in [0, 1) and is at most 1/(r+1). The input score of the same paper stands below it. Joins lm and
sae; knows no documents but those it is given as records.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tagsteer.compute.batching import Batcher
from tagsteer.errors import TagsteerError
from tagsteer.label.extraction import sae_layer
from tagsteer.label.logit_lens import lens_logits
from tagsteer.label.next_token import LastPosition
from tagsteer.progress import track

if TYPE_CHECKING:
    import torch

    from tagsteer.label.evidence import EvidenceDocument
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.label")

PROMPT = "From my experience,"
FACTOR = 10.0
LENS_TOKENS = 20
MIN_RECORDS = 10  # Arad et al. give no input score below that


@dataclass(frozen=True, eq=False)
class OutputScores:
    """Scores of features, and the tokens that each promotes; arrays in the order of `features`."""

    features: np.ndarray
    """int64 [n], original ids."""
    score: np.ndarray
    """float32 [n], in [0, 1)."""
    rank: np.ndarray
    """int64 [n], best rank of a lens token in the amplified distribution, from 0."""
    probability: np.ndarray
    """float32 [n], of that token."""
    best_token: np.ndarray
    """int32 [n], its id."""
    lens_tokens: np.ndarray
    """int32 [n, 20], L_f, best first."""
    promoted_tokens: np.ndarray
    """int32 [n, `promoted`], tokens whose probability rises most on amplification, best first."""
    promoted_by: np.ndarray
    """float32 [n, `promoted`], by how much."""
    prompt: str
    layer: int
    largest_activation: float
    """m."""
    strength: float
    """factor · m, what W_dec[f] was multiplied by."""

    def of(self, feature: int) -> int:
        """Row of a feature in these arrays."""
        found = np.flatnonzero(self.features == int(feature))
        if not len(found):
            raise TagsteerError(
                f"feature {feature} has no output score: it was not among the {len(self.features)} asked for"
            )
        return int(found[0])


def output_scores(
    model: LanguageModel,
    sae: SAE,
    features: Sequence[int] | None = None,
    *,
    layer: int | str | None = None,
    prompt: str = PROMPT,
    factor: float = FACTOR,
    lens_k: int = LENS_TOKENS,
    promoted: int = 10,
    largest_activation: float | None = None,
    rows_per_batch: int | None = None,
) -> OutputScores:
    """Output scores of `features` (original ids; default: all of the SAE), in blocks of rows × vocabulary.

    m is read from the whole SAE; after `sae.select(...)` give it as `largest_activation`. With m = 0
    nothing is added and the scores are the unsteered model's. `promoted` is how many tokens are kept by
    rise of probability. Raises TagsteerError for an SAE that does not fit, an unknown feature, an empty
    prompt, non-finite logits.
    """
    import torch

    at = LastPosition(model, sae_layer(model, sae, layer), prompt)
    if not 1 <= lens_k <= len(at.logits) or not 0 <= promoted <= len(at.logits):
        raise TagsteerError(
            f"lens_k = {lens_k}, promoted = {promoted}: give numbers up to the vocabulary of {len(at.logits)}"
        )
    m = _largest(sae, at.residual) if largest_activation is None else largest_activation
    if m == 0:
        log.warning(
            "no feature is active at the end of %r: nothing is added, all scores are the unsteered model's",
            prompt,
        )
    ids = _feature_ids(sae, features)
    rows = torch.tensor([sae.row(i) for i in ids.tolist()], dtype=torch.int64)
    n, clean = len(ids), at.logits.softmax(0)
    out = OutputScores(
        features=ids,
        score=np.empty(n, np.float32),
        rank=np.empty(n, np.int64),
        probability=np.empty(n, np.float32),
        best_token=np.empty(n, np.int32),
        lens_tokens=np.empty((n, lens_k), np.int32),
        promoted_tokens=np.empty((n, promoted), np.int32),
        promoted_by=np.empty((n, promoted), np.float32),
        prompt=prompt,
        layer=at.layer,
        largest_activation=m,
        strength=factor * m,
    )

    def work(batch: list[int]) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            directions = sae.W_dec[rows[batch].to(sae.device)]
            lens = lens_logits(model, directions).topk(lens_k, dim=-1).indices
            logits = at.logits_after(factor * m * directions.float())
            p = logits.softmax(1)
            return lens, *_score(logits, p, lens.to(logits.device)), *_promoted(p, clean, promoted)

    into = (
        out.lens_tokens,
        out.score,
        out.rank,
        out.probability,
        out.best_token,
        out.promoted_tokens,
        out.promoted_by,
    )
    with track("output score", total=n, unit="features") as bar:
        for batch, found in Batcher(rows_per_batch or at.rows_per_batch(), "rows").run([1] * n, work):
            for array, values in zip(into, found, strict=True):
                array[batch] = values.cpu().numpy()
            bar.advance(len(batch))
    return out


def input_score(records: Sequence[EvidenceDocument], lens_tokens: Sequence[int] | np.ndarray) -> float | None:
    """Share of records whose most active token is among the feature's lens tokens; None below 10 records.

    Arad et al. read the token from Neuronpedia's strings and tokenise it anew; these records know its id.
    Only counted tokens are looked at, the first of equal ones is taken, and records on which the feature is
    not active are left out, as Neuronpedia has none of them.
    """
    active = [record for record in records if record.max_activation > 0]
    if len(active) < MIN_RECORDS:
        return None
    lens = {int(token) for token in lens_tokens}
    return sum(record.token_ids[record.most_active] in lens for record in active) / len(active)


def _largest(sae: SAE, residual: torch.Tensor) -> float:
    if sae.features is not None:
        raise TagsteerError(
            f"{sae.source} holds {sae.n_features} selected latents, but m is the largest activation of all: "
            "give the whole SAE, or largest_activation="
        )
    return float(sae.encode(residual.to(sae.device)[None]).max())


def _feature_ids(sae: SAE, features: Sequence[int] | None) -> np.ndarray:
    if features is not None:
        return np.asarray(features, dtype=np.int64).reshape(-1)
    return np.arange(sae.d_sae) if sae.features is None else sae.features.cpu().numpy()


def _score(logits: torch.Tensor, p: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(score, rank, probability, token) [n] from logits and their softmax [n, V] and lens ids [n, k]."""
    import torch

    best = logits.gather(1, lens).max(1)
    # The most probable lens token is also the best-ranked one.
    rank = torch.gt(logits, best.values[:, None]).sum(1, dtype=torch.int32)
    token = lens.gather(1, best.indices[:, None])
    probability = p.gather(1, token)[:, 0]
    return (1 - rank.double() / logits.shape[1]) * probability, rank, probability, token[:, 0]


def _promoted(p: torch.Tensor, clean: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, rise of probability) [n, k] of the tokens that gain most over the clean p [V]; p is overwritten."""
    if not k:
        return p.new_empty((len(p), 0)).long(), p.new_empty((len(p), 0))
    rise = p.sub_(clean).topk(k, dim=-1)
    return rise.indices, rise.values
