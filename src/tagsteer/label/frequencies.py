"""Activation frequencies: for every document the share of its tokens on which each feature is active.

z[n, i] = (kept tokens of document n with a_i > 0) / (kept tokens of document n). Special tokens and BOS
stay in the model's input but are not kept by default; padding never is. Attention sinks are not kept
either: the first token of a sequence, and tokens whose residual is many times longer than the median one
(their activations say nothing about the text, and one of them would set the maximum of a feature).

The model runs only up to the SAE's layer. Joins lm and sae; knows no labels.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.label import shards as files
from tagsteer.label.extraction import Extraction, sae_layer, tokenised
from tagsteer.label.shards import Shard, ShardFolder
from tagsteer.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from tagsteer.corpus.store import Corpus
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.label")

SINK_RATIO = 5.0
ROBUST_QUANTILE = 0.999


@dataclass(frozen=True, eq=False)
class Frequencies:
    """How often each feature is active, per document and over all documents; columns are rows of the SAE."""

    matrix: csr_matrix
    """float32 [n_documents, n_features], z; a document without kept tokens has an empty row."""
    token_counts: np.ndarray
    """int32 [n_documents], kept tokens."""
    max_activation: np.ndarray
    """float32 [n_features], exact maximum over kept tokens; NaN for a feature that never fired."""
    robust_max: np.ndarray
    """float32 [n_features], high quantile (meta["robust_quantile"]) of the activations above 0, from a
    histogram in quarter octaves; NaN for a feature that never fired. The unit of steering strengths."""
    mean_active: np.ndarray
    """float32 [n_features], mean over the tokens on which it fired; NaN for a feature that never fired."""
    n_tokens_active: np.ndarray
    """int64 [n_features]."""
    n_docs_active: np.ndarray
    """int64 [n_features]."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Settings, counts of tokens kept and left out, seconds."""

    def save(self, folder: str | Path) -> Path:
        """Write the matrix as CSR files and the rest beside them; `load` opens them by memory map."""
        folder = Path(folder)
        matrix = self.matrix.tocsr()
        files.write_matrix(folder, iter([(np.diff(matrix.indptr), matrix.indices, matrix.data)]), matrix.nnz)
        self._save_rest(folder)
        return folder

    def _save_rest(self, folder: Path) -> None:
        np.save(folder / "token_counts.npy", self.token_counts)
        np.savez(folder / "latents.npz", **{name: getattr(self, name) for name in _PER_FEATURE})
        files.write_atomically(folder / "complete.json", json.dumps(self.meta, indent=1).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Frequencies:
        """Open what `save` or an extraction with `folder` wrote. TagsteerError if it is not there or not
        complete."""
        folder = Path(folder)
        folder = folder / "matrix" if (folder / "matrix").is_dir() else folder
        meta = files.read_json(folder / "complete.json")
        if meta is None:
            raise TagsteerError(f"{folder} holds no complete extraction: run `tagsteer extract` (it resumes)")
        with np.load(folder / "latents.npz", allow_pickle=False) as arrays:
            latents = {name: arrays[name] for name in _PER_FEATURE}
        matrix = files.open_matrix(folder, len(latents["max_activation"]))
        return cls(matrix, np.load(folder / "token_counts.npy", allow_pickle=False), **latents, meta=meta)


_PER_FEATURE = ("max_activation", "robust_max", "mean_active", "n_tokens_active", "n_docs_active")


def extract_frequencies(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus | Sequence[str],
    *,
    layer: int | str | None = None,
    max_tokens: int = 256,
    tokens_per_batch: int | None = None,
    count_special: bool = False,
    count_first: bool | None = None,
    sink_ratio: float | None = SINK_RATIO,
    robust_quantile: float = ROBUST_QUANTILE,
    documents_per_shard: int = 1024,
    latents_per_block: int | None = None,
    folder: str | Path | None = None,
) -> Frequencies:
    """Run the model to the SAE's layer over all documents and count where each feature is active.

    `layer` defaults to the SAE's own. `max_tokens` cuts documents (BOS included). `tokens_per_batch` defaults
    to 1,024 on CPUs, where larger batches leave the caches and pad more, and to 16,384 elsewhere. `count_first` counts
    position 0 (default: as `count_special`); `sink_ratio` leaves out tokens whose residual is longer than
    that many times the median (None: keeps them). With `folder`, shards of `documents_per_shard` are
    written as they are done, a later call resumes to the same result, and the matrix is a memory map: what
    is held at once is one shard.

    Raises TagsteerError for a layer out of range, an SAE of another width or hook, an empty corpus, and a
    folder with other settings.
    """
    if isinstance(corpus, str):
        raise TagsteerError(f"the corpus is the text {corpus[:40]!r}: give a Corpus or a list of texts")
    texts: Sequence[str] = corpus if isinstance(corpus, Sequence) else corpus.texts
    count_first = count_special if count_first is None else count_first
    job = Extraction(
        model, sae, sae_layer(model, sae, layer), max_tokens, count_special, count_first, sink_ratio
    )
    job.check(texts, robust_quantile, documents_per_shard)
    job.prepare(tokens_per_batch, latents_per_block)
    ranges = files.shard_ranges(len(texts), documents_per_shard)
    settings = job.settings(texts, documents_per_shard)

    def measured() -> dict[str, Any]:
        return {"median_norm": None if sink_ratio is None else job.measure_median_norm(texts)}

    store = ShardFolder(Path(folder), settings, measured) if folder is not None else None
    extra = store.extra if store else measured()
    job.median_norm = extra["median_norm"]
    started = time.monotonic()
    kept_in_memory: dict[int, Shard] = {}

    todo = list(range(len(ranges)))
    if store:
        todo = [i for i in todo if not store.is_done(i, ranges[i])]
        if len(todo) < len(ranges):
            log.info("%s: %d of %d shards are done", folder, len(ranges) - len(todo), len(ranges))
    done = len(texts) - sum(len(ranges[i]) for i in todo)
    with track("extract", total=len(texts), unit="documents", done=done) as bar:
        for i, ids in tokenised(model, texts, [(i, ranges[i]) for i in todo], max_tokens):
            shard = job.run(ids, bar)
            if store:
                store.write(i, shard, ranges[i])
            else:
                kept_in_memory[i] = shard
    meta = {**settings, **extra, "robust_quantile": robust_quantile, "seconds": time.monotonic() - started}
    if store:
        return _assemble_on_disk(store, len(ranges), meta)
    return _assemble([kept_in_memory[i] for i in range(len(ranges))], meta)


class _Sums:
    """Totals over shards, added in their order so that floating sums come out the same."""

    def __init__(self) -> None:
        self.token_counts: list[np.ndarray] = []
        self.first = True

    def add(self, shard: Shard) -> None:
        from tagsteer.label.counting import N_BINS

        if self.first:
            n = len(shard.maximum)
            self.maximum, self.total = np.zeros(n, np.float32), np.zeros(n, np.float64)
            self.tokens, self.documents = np.zeros(n, np.int64), np.zeros(n, np.int64)
            self.histogram, self.tally = np.zeros(n * N_BINS, np.int64), np.zeros(2, np.int64)
            self.first = False
        np.maximum(self.maximum, shard.maximum, out=self.maximum)
        self.total += shard.total
        self.tokens += shard.tokens
        self.documents += np.bincount(shard.indices, minlength=len(self.documents))
        self.histogram[shard.histogram_cells] += shard.histogram_counts
        self.tally += shard.tally
        self.token_counts.append(shard.token_counts)

    def frequencies(self, matrix: csr_matrix, meta: dict[str, Any]) -> Frequencies:
        from tagsteer.label.counting import N_BINS, quantile

        fired = self.tokens > 0
        token_counts = np.concatenate(self.token_counts)
        q = meta["robust_quantile"]
        meta = {
            **meta,
            "tokens_counted": int(token_counts.sum(dtype=np.int64)),
            "attention_sinks_left_out": int(self.tally[0]),
            "documents_at_max_tokens": int(self.tally[1]),
            "documents_without_tokens": int((token_counts == 0).sum()),
            "features_never_active": int((~fired).sum()),
            "non_zeros": int(matrix.nnz),
        }
        log.info(
            "%d documents, %d tokens counted, %d attention sinks left out; %d of %d features never active",
            *(len(token_counts), meta["tokens_counted"], meta["attention_sinks_left_out"]),
            *(meta["features_never_active"], len(fired)),
        )
        return Frequencies(
            matrix=matrix,
            token_counts=token_counts,
            max_activation=np.where(fired, self.maximum, np.nan).astype(np.float32),
            robust_max=quantile(self.histogram.reshape(-1, N_BINS), q, self.maximum),
            mean_active=np.divide(
                self.total, self.tokens, out=np.full(len(fired), np.nan), where=fired
            ).astype(np.float32),
            n_tokens_active=self.tokens,
            n_docs_active=self.documents,
            meta=meta,
        )


def _assemble(parts: list[Shard], meta: dict[str, Any]) -> Frequencies:
    """Frequencies in memory."""
    from scipy.sparse import csr_matrix

    sums = _Sums()
    for shard in parts:
        sums.add(shard)
    data = np.concatenate([files.shares(s.counts, s.token_counts, s.indptr) for s in parts])
    indices = np.concatenate([s.indices for s in parts])
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(s.indptr) for s in parts]))])
    matrix = csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, len(sums.maximum)))
    return sums.frequencies(matrix, meta)


def _assemble_on_disk(store: ShardFolder, n_shards: int, meta: dict[str, Any]) -> Frequencies:
    """Frequencies of a folder whose shards are all there; its matrix is written once and opened by memory
    map."""
    abouts = [store.about(i) or {} for i in range(n_shards)]
    folder, digest = store.folder / "matrix", files.digest_of(abouts)
    old = files.read_json(folder / "complete.json")
    if old and old.get("shards") == digest and old.get("robust_quantile") == meta["robust_quantile"]:
        return Frequencies.load(folder)
    (folder / "complete.json").unlink(missing_ok=True)
    sums = _Sums()

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for i in range(n_shards):
            shard = store.read(i)
            sums.add(shard)
            yield (
                np.diff(shard.indptr),
                shard.indices,
                files.shares(shard.counts, shard.token_counts, shard.indptr),
            )

    files.write_matrix(folder, rows(), sum(about["non_zeros"] for about in abouts))
    result = sums.frequencies(files.open_matrix(folder, len(sums.maximum)), {**meta, "shards": digest})
    result._save_rest(folder)
    return result
