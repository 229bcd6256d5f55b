"""The tokens that a feature's decoder row points at: logit lens, in blocks of features.

z = unembedding(final_norm(W_dec[f])): the final norm is applied to the row as it is, and no soft-cap follows
(Arad et al. 2025). Joins lm and sae's rows; knows no documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tagsteer.compute.batching import Batcher
from tagsteer.errors import TagsteerError
from tagsteer.progress import track

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tagsteer.lm.model import LanguageModel


def lens_logits(model: LanguageModel, vectors: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] of vectors [n, d_model] read through the final norm and the unembedding."""
    norm, unembedding = _parameter(model.final_norm), _parameter(model.unembedding)
    normed = model.final_norm(vectors.to(norm.device, norm.dtype))
    return model.unembedding(normed.to(unembedding.device, unembedding.dtype))


def lens_tokens(
    model: LanguageModel, vectors: torch.Tensor, k: int = 20, rows_per_batch: int | None = None
) -> np.ndarray:
    """Ids int32 [n, k] of the tokens with the largest lens logits of each vector [n, d_model], best first.

    Never more than `rows_per_batch` × vocabulary numbers at once (default: about 2^25). TagsteerError if
    `k` is no number of tokens, or if the vectors are not of the model's width.
    """
    import torch

    if not 1 <= k <= model.vocab_size:
        raise TagsteerError(f"k = {k} lens tokens: give 1 to {model.vocab_size} (the vocabulary)")
    if vectors.ndim != 2 or vectors.shape[1] != model.d_model:
        raise TagsteerError(
            f"vectors of shape {list(vectors.shape)}: wanted [n, {model.d_model}] for {model.name}"
        )
    found = np.empty((len(vectors), k), dtype=np.int32)

    def top(rows: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return lens_logits(model, vectors[rows]).topk(k, dim=-1).indices.cpu().numpy()

    with track("logit lens", total=len(vectors), unit="features") as bar:
        batcher = Batcher(rows_per_batch or rows_within(model.vocab_size), "rows")
        for rows, ids in batcher.run([1] * len(vectors), top):
            found[rows] = ids
            bar.advance(len(rows))
    return found


def rows_within(vocabulary: int, numbers: int = 2**25) -> int:
    """Rows of logits that hold about so many numbers: between 1 and 1024."""
    return max(1, min(1024, numbers // vocabulary))


def _parameter(module: nn.Module) -> torch.Tensor:
    return next(module.parameters())
