"""One extraction: the work on one shard of documents, from texts to counts.

Tokenisation runs a shard ahead in a thread; the model runs to the SAE's layer on length-sorted batches; only
tokens that count are encoded. Joins lm and sae; knows no labels, and writes no files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.compute.batching import Batcher
from tagsteer.errors import TagsteerError
from tagsteer.label.shards import Shard, texts_digest

if TYPE_CHECKING:
    import torch

    from tagsteer.label.counting import Counts, LatentTotals
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.label")

_VERSION = 1  # of what is counted and how it is stored: part of the settings of a folder


def sae_layer(model: LanguageModel, sae: SAE, layer: int | str | None = None) -> int:
    """The model's layer that the SAE reads, checked: its own unless another is given."""
    if layer is None and sae.layer is None:
        raise TagsteerError(f"{sae.source} does not say which layer it is for: give layer=")
    if sae.d_model != model.d_model:
        raise TagsteerError(
            f"the SAE {sae.source} reads residuals of width {sae.d_model}, {model.name} has {model.d_model}: "
            "load the SAE of this model"
        )
    if sae.hook != "resid_post":
        raise TagsteerError(
            f"the SAE {sae.source} reads {sae.hook!r}; only 'resid_post' (a layer's output) is supported"
        )
    return model.layer_index(sae.layer if layer is None else layer)  # type: ignore[arg-type]


@dataclass
class Extraction:
    """What is counted, and the work on one shard.

    Tokens longer than `sink_ratio` × the median are attention sinks. Behind layer 22 of SmolLM2 13 of 60,000
    tokens besides the first ones are, 70 times as long as the rest; with them the maximum of 44 % of the
    latents of a 4,096-latent SAE was more than twice, and of some 40 times, what it is without. Between 1.6
    and 5 times the median there is next to nothing.
    """

    model: LanguageModel
    sae: SAE
    layer: int
    max_tokens: int
    count_special: bool
    count_first: bool
    sink_ratio: float | None
    median_norm: float | None = None

    def check(self, texts: Sequence[str], robust_quantile: float, documents_per_shard: int) -> None:
        if not len(texts):
            raise TagsteerError("the corpus has no documents: nothing to extract")
        if self.max_tokens < 2:
            raise TagsteerError(f"max_tokens = {self.max_tokens} leaves nothing to count: give at least 2")
        if not 0 < robust_quantile <= 1:
            raise TagsteerError(
                f"robust_quantile = {robust_quantile} is no quantile: give a number above 0 and up to 1"
            )
        if documents_per_shard < 1:
            raise TagsteerError(f"documents_per_shard = {documents_per_shard}: give at least 1")
        if self.sink_ratio is not None and self.sink_ratio <= 1:
            raise TagsteerError(
                f"sink_ratio = {self.sink_ratio} would leave out ordinary tokens: give e.g. 5, or None"
            )

    def prepare(self, tokens_per_batch: int | None, latents_per_block: int | None) -> None:
        from tagsteer.label.counting import Counter

        self.batcher = Batcher(tokens_in_batch(self.model, tokens_per_batch))
        self.counter = Counter(self.sae, latents_per_block)

    def settings(self, texts: Sequence[str], documents_per_shard: int) -> dict[str, Any]:
        """Everything that changes the stored numbers."""
        return {
            "version": _VERSION,
            "model": self.model.name,
            "model_dtype": str(self.model.dtype),
            "model_weights": _fingerprint(list(self.model.final_norm.parameters())),
            "sae": self.sae.describe().split(" on ")[0],
            "sae_weights": _fingerprint(
                [self.sae.b_enc, self.sae.b_dec, self.sae.W_dec[:, ::64], self.sae.threshold]
            ),
            "layer": self.layer,
            "max_tokens": self.max_tokens,
            "count_special": self.count_special,
            "count_first": self.count_first,
            "sink_ratio": self.sink_ratio,
            "n_documents": len(texts),
            "texts": texts_digest(texts[i] for i in range(len(texts)))[:16],
            "documents_per_shard": documents_per_shard,
        }

    def measure_median_norm(self, texts: Sequence[str]) -> float | None:
        """Median length of the residuals of up to 8 documents spread over the corpus, 64 tokens of each."""
        import torch

        ordinary = replace(self, count_special=False, count_first=False)
        spread = sorted(set(np.linspace(0, len(texts) - 1, 8).round().astype(int).tolist()))
        ids = self.model.encode_batch([texts[i] for i in spread], min(64, self.max_tokens))
        filled = [tokens for tokens in ids if tokens]

        def norms(batch: list[int]) -> torch.Tensor:
            with torch.inference_mode():
                residual, keep, _ = ordinary.residuals([filled[i] for i in batch])
                return torch.linalg.vector_norm(residual[keep], dim=-1, dtype=torch.float32).cpu()

        found = [part for _, part in self.batcher.run([len(tokens) for tokens in filled], norms) if len(part)]
        return torch.cat(found).median().item() if found else None

    def residuals(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Residuals [batch, positions, d_model], mask of the tokens that count, number of sinks left out."""
        import torch

        from tagsteer.label.counting import counted_tokens
        from tagsteer.lm.hooks import residuals_at

        padded, lengths, mask = pad(self.model, ids)
        (residual,) = residuals_at(self.model, [self.layer], padded, mask)
        keep = counted_tokens(padded, lengths, self.model.special_ids, self.count_special, self.count_first)
        keep = keep.to(residual.device)
        sinks = 0
        if self.sink_ratio is not None and self.median_norm is not None:
            # Special tokens and the first one are kept only if the user asked for them: whatever their norm.
            ordinary = counted_tokens(padded, lengths, self.model.special_ids, False, False)
            norm = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32)
            sink = ordinary.to(residual.device) & (norm > self.sink_ratio * self.median_norm)
            sinks = int((keep & sink).sum())
            keep = keep & ~sink
        return residual, keep, sinks

    def run(self, ids: list[list[int]], bar: Any) -> Shard:
        """Count one shard of tokenised documents."""
        import torch

        from tagsteer.label.counting import LatentTotals

        totals = LatentTotals.zeros(self.sae.n_features, self.sae.device)
        token_counts = np.zeros(len(ids), dtype=np.int32)
        found: list[Counts] = []
        sinks = 0

        def work(batch: list[int]) -> tuple[Any, Any, Any, int]:
            with torch.inference_mode():
                residual, keep, sinks = self.residuals([ids[i] for i in batch])
                counts, parts = self.counter.count(residual[keep], keep.nonzero()[:, 0], len(batch))
                return counts, parts, keep.sum(1).cpu().numpy(), sinks

        # A document without tokens has nothing to run; it stays an empty row.
        filled = [i for i, tokens in enumerate(ids) if tokens]
        bar.advance(len(ids) - len(filled))
        for batch, (counts, parts, kept, left_out) in self.batcher.run(
            [len(ids[i]) for i in filled], lambda b: work([filled[i] for i in b])
        ):
            documents = np.array([filled[i] for i in batch])
            token_counts[documents] = kept
            counts.document = documents[counts.document].astype(np.int32)
            found.append(counts)
            sinks += left_out
            for part in parts:
                totals.add(part)
            bar.advance(len(batch))
        cut = sum(len(tokens) == self.max_tokens for tokens in ids)
        return _shard(found, totals, token_counts, np.array([sinks, cut], dtype=np.int64), self.max_tokens)


def tokens_in_batch(model: LanguageModel, asked: int | None) -> int:
    """The budget asked for, else the one that runs fastest on the model's kind of device."""
    if asked is not None:
        return asked
    return 1024 if model.device.type == "cpu" else 16_384


def pad(model: LanguageModel, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids [batch, positions], lengths [batch], attention mask [batch, positions], on the
    model's device."""
    import torch

    lengths = np.array([len(tokens) for tokens in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, model.pad_id, dtype=np.int64)
    padded[mask] = np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in ids])
    to = model.device
    return (
        torch.from_numpy(padded).to(to),
        torch.from_numpy(lengths).to(to),
        torch.from_numpy(mask.astype(np.int64)).to(to),
    )


def tokenised(
    model: LanguageModel, texts: Sequence[str], parts: list[tuple[int, range]], max_tokens: int
) -> Iterator[tuple[int, list[list[int]]]]:
    """(shard number, token ids of its documents), one shard ahead of whoever takes them."""

    def tokens_of(documents: range) -> list[list[int]]:
        return model.encode_batch([texts[n] for n in documents], max_tokens)

    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
        ahead = pool.submit(tokens_of, parts[0][1]) if parts else None
        for place, (number, _) in enumerate(parts):
            assert ahead is not None
            ids = ahead.result()
            if place + 1 < len(parts):
                ahead = pool.submit(tokens_of, parts[place + 1][1])
            yield number, ids


def _shard(
    found: list[Counts], totals: LatentTotals, token_counts: np.ndarray, tally: np.ndarray, max_tokens: int
) -> Shard:
    """Put the counts of all batches into CSR order, and everything on the host."""
    from scipy.sparse import coo_matrix

    d_sae = len(totals.maximum)
    document = np.concatenate([c.document for c in found] or [np.empty(0, np.int32)])
    latent = np.concatenate([c.latent for c in found] or [np.empty(0, np.int32)])
    count = np.concatenate([c.count for c in found] or [np.empty(0, np.int32)])
    # Pieces of a row that were counted apart are summed by the conversion.
    csr = coo_matrix((count, (document, latent)), shape=(len(token_counts), d_sae)).tocsr()
    csr.sort_indices()
    histogram = totals.histogram.cpu().numpy().ravel()
    cells = np.flatnonzero(histogram)
    return Shard(
        indptr=csr.indptr.astype(np.int64),
        indices=csr.indices.astype(np.int32),
        counts=csr.data.astype(
            np.uint8 if max_tokens <= 255 else np.uint16 if max_tokens <= 65_535 else np.uint32
        ),
        token_counts=token_counts,
        maximum=totals.maximum.cpu().numpy(),
        total=totals.total.cpu().numpy(),
        tokens=totals.tokens.cpu().numpy(),
        histogram_cells=cells.astype(np.int64),
        histogram_counts=histogram[cells].astype(np.int32),
        tally=tally,
    )


def _fingerprint(tensors: Sequence[torch.Tensor | None]) -> str:
    """Short SHA-256 over tensors, enough to tell two sets of weights apart."""
    import torch

    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None and not tensor.is_meta:
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
