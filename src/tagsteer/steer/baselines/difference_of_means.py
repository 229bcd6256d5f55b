"""Difference of means: steering along the direction from documents without a label to those with it.

v = (μ₊ − μ₋) / |μ₊ − μ₋| and x' = x + s·v (AxBench's DiffMean): no SAE, only the tagged documents. Knows residuals,
not how documents were tagged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tagsteer.errors import TagsteerError
from tagsteer.steer.baselines.methods import Method, Pair, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse

    from tagsteer.lm.model import LanguageModel


@dataclass(frozen=True, eq=False)
class Direction:
    """A label's unit vector [d_model] and the largest projection of a residual on it."""

    vector: torch.Tensor
    max_projection: float | None = None


def difference_of_means(positive: torch.Tensor, negative: torch.Tensor, label: str = "?") -> torch.Tensor:
    """(μ₊ − μ₋) / |μ₊ − μ₋| in float32, from the mean residuals [d_model] of both sides."""
    if positive.shape != negative.shape or positive.ndim != 1:
        raise TagsteerError(
            f"means of {label!r} have shapes {list(positive.shape)} and {list(negative.shape)}: wanted two of [d_model]"
        )
    v = positive.double() - negative.double()
    norm = v.norm()
    if not bool(torch.isfinite(norm)) or norm == 0:
        raise TagsteerError(
            f"the means of {label!r} differ by {norm:g}: a direction needs two different, finite means"
        )
    return (v / norm).float()


def steering_vectors(directions: Mapping[str, Direction], settings: Settings) -> Method:
    """Addition of each label's direction; run it with Engine(..., layer=layer, vectors=method.vectors).

    Strengths in unit "max_activation" are multiples of the largest projection; a label without a positive one is
    an error when its items are made.
    """
    tops = {_name(label): d.max_projection for label, d in directions.items() if d.max_projection is not None}
    own = dataclasses.replace(settings, kind="addition", max_activations=tops)
    return Method(
        name="difference of means",
        provenance="unit vector between the mean residuals with and without the label",
        pairs=tuple(Pair(label, _name(label)) for label in directions),
        settings=own,
        vectors={_name(label): direction.vector for label, direction in directions.items()},
    )


def _name(label: str) -> str:
    return f"mean:{label}"


def fit_directions(
    model: LanguageModel,
    layer: int | str,
    texts: Sequence[str],
    label_matrix: scipy.sparse.csr_matrix,
    labels: Mapping[str, int],
    *,
    max_tokens: int = 256,
    tokens_per_batch: int = 4096,
) -> dict[str, Direction]:
    """Directions of `labels` {name: column of label_matrix [n_docs, n_labels]} from documents' mean residuals.

    A document counts as the mean over its tokens without special ones; max_projection is the largest x·v on a
    token of a document with the label (a second pass over those). Raises TagsteerError for a label that all or no
    documents have.
    """
    columns = list(labels.values())
    y = torch.from_numpy(label_matrix[:, columns].toarray().astype("float64"))  # (docs, labels)
    positives = y.sum(0)
    for name, count in zip(labels, positives.tolist(), strict=True):
        if not 0 < count < len(texts):
            raise TagsteerError(
                f"label {name!r} is on {count:.0f} of {len(texts)} documents: both kinds are needed"
            )
    total = torch.zeros(model.d_model, dtype=torch.float64)
    by_label = torch.zeros(len(columns), model.d_model, dtype=torch.float64)
    kept_docs = torch.zeros(len(texts), dtype=torch.float64)
    for docs, x, kept in _residuals(model, layer, texts, range(len(texts)), max_tokens, tokens_per_batch):
        counts = kept.sum(1)
        mean = ((x * kept[..., None]).sum(1) / counts.clamp(min=1)[:, None]).double().cpu()
        kept_docs[docs] = (counts > 0).double().cpu()
        total += mean.sum(0)
        by_label += y[docs].T @ mean
    n, p = kept_docs.sum(), (y * kept_docs[:, None]).sum(0)
    vectors = [
        difference_of_means(by_label[i] / p[i], (total - by_label[i]) / (n - p[i]), name)
        for i, name in enumerate(labels)
    ]
    stacked = torch.stack(vectors)  # (labels, d_model)
    tops = torch.full((len(columns),), -torch.inf)
    tagged = torch.nonzero(y.any(1))[:, 0].tolist()
    for docs, x, kept in _residuals(model, layer, texts, tagged, max_tokens, tokens_per_batch):
        projected = (
            (x @ stacked.T.to(x.device)).masked_fill(~kept[..., None], -torch.inf).amax(1).cpu()
        )  # (docs, labels)
        tops = torch.maximum(tops, projected.masked_fill(y[docs] == 0, -torch.inf).amax(0))
    return {name: Direction(v, float(top)) for name, v, top in zip(labels, vectors, tops, strict=True)}


def _residuals(model, layer, texts, docs, max_tokens, tokens_per_batch):
    """(document numbers, residuals [docs, tokens, d_model] in float32, which tokens count) in batches by length."""
    from tagsteer.compute.batching import Batcher
    from tagsteer.lm.hooks import residuals_at

    docs = list(docs)
    ids = model.encode_batch([texts[d] for d in docs], max_tokens)
    special = torch.tensor(sorted(model.special_ids), device=model.device)

    def work(rows):
        width = max(len(ids[r]) for r in rows)
        tokens = torch.tensor(
            [ids[r] + [model.pad_id] * (width - len(ids[r])) for r in rows], device=model.device
        )
        mask = torch.tensor(
            [[1] * len(ids[r]) + [0] * (width - len(ids[r])) for r in rows], device=model.device
        )
        x = residuals_at(model, [model.layer_index(layer)], tokens, mask)[0].float()
        return x, ((mask == 1) & ~torch.isin(tokens, special)).to(x.device)

    known = [r for r in range(len(docs)) if ids[r]]
    for batch, (x, kept) in Batcher(tokens_per_batch).run(
        [len(ids[r]) for r in known], lambda b: work([known[i] for i in b])
    ):
        yield [docs[known[i]] for i in batch], x, kept
