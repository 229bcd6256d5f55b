"""Residuals for SAE training: run a model over texts and conversations, in numbered buffers or to disk.

Left out of training: the first token (an attention sink), padding, and the part of the chat template that is
the same in every conversation, of which a small share is kept. Must not know SAEs or labels.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tagsteer.compute.batching import Batcher
from tagsteer.errors import TagsteerError
from tagsteer.lm.hooks import residuals_at
from tagsteer.lm.model import LanguageModel
from tagsteer.progress import track

log = logging.getLogger("tagsteer.lm")

Document = str | tuple[tuple[str, str], ...]
"""Plain text, or a conversation ((role, text), ...) that is put into the model's chat template."""

KEEP_PREFIX = 0.02
"""Share of the conversations whose constant template prefix is kept."""
DOCUMENTS_PER_CHUNK = 512


@dataclass(frozen=True)
class Tokens:
    """Token ids of a document, and the first position that counts."""

    ids: list[int]
    start: int


def tokenise(model: LanguageModel, documents: Sequence[Document], max_tokens: int) -> list[Tokens]:
    """Documents as token ids cut to `max_tokens`; those with fewer than two tokens that count are left out."""
    texts = iter(model.encode_batch([d for d in documents if isinstance(d, str)], max_tokens))
    prefix = _template_prefix(model)
    found = []
    for document in documents:
        if isinstance(document, str):
            tokens = Tokens(next(texts), 1)
        else:
            keep = random.Random(repr(document)).random() < KEEP_PREFIX
            tokens = Tokens(_conversation(model, document)[:max_tokens], 1 if keep else prefix)
        if len(tokens.ids) >= tokens.start + 2:
            found.append(tokens)
    return found


def _conversation(model: LanguageModel, turns: tuple[tuple[str, str], ...]) -> list[int]:
    """A finished conversation: the template up to the last answer, the answer, and the end-of-turn token."""
    *before, (role, answer) = turns
    if role != "assistant" or not before:
        raise TagsteerError(
            f"a conversation must end with an answer by 'assistant', this one ends with {role!r}"
        )
    ids = model.chat_ids(before) + model.encode_batch([answer])[0]
    return ids + sorted(model.eos_ids)[:1]


def _template_prefix(model: LanguageModel) -> int:
    """Number of leading tokens that every conversation shares."""
    a, b = model.chat_ids([("user", "x")]), model.chat_ids([("user", "5 y")])
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return max(1, same)


def padded(batch: Sequence[Tokens], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, attention mask, and which positions count: each [documents, positions], on the CPU."""
    width = max(len(tokens.ids) for tokens in batch)
    ids = torch.full((len(batch), width), pad_id)
    mask, keep = torch.zeros_like(ids), torch.zeros(len(batch), width, dtype=torch.bool)
    for row, tokens in enumerate(batch):
        n = len(tokens.ids)
        ids[row, :n] = torch.tensor(tokens.ids)
        mask[row, :n] = 1
        keep[row, tokens.start : n] = True
    return ids, mask, keep


def residual_chunks(
    model: LanguageModel, layers: list[int], documents: Sequence[Document], max_tokens: int, batcher: Batcher
) -> Iterator[list[torch.Tensor]]:
    """For each batch of documents, the kept residuals [tokens, d_model] after each of `layers`, in model dtype."""
    tokens = tokenise(model, documents, max_tokens)

    def run(batch: list[int]) -> list[torch.Tensor]:
        ids, mask, keep = padded([tokens[i] for i in batch], model.pad_id)
        found = residuals_at(model, layers, ids.to(model.device), mask.to(model.device))
        return [x[keep.to(x.device)] for x in found]

    for _, residuals in batcher.run([len(t.ids) for t in tokens], run):
        yield residuals


@dataclass(frozen=True, eq=False)
class TextSource:
    """Buffers made by running the model when they are asked for: buffer n holds one chunk of the documents."""

    model: LanguageModel
    layer: int
    documents: Sequence[Document]
    max_tokens: int = 256
    tokens_per_batch: int = 4096
    documents_per_buffer: int = 1024

    @property
    def d_model(self) -> int:
        return self.model.d_model

    def buffer(self, n: int) -> torch.Tensor:
        """Residuals [tokens, d_model] of the n-th chunk, counting on from the start after the last document."""
        chunks = -(-len(self.documents) // self.documents_per_buffer)
        start = (n % chunks) * self.documents_per_buffer
        documents = self.documents[start : start + self.documents_per_buffer]
        parts = residual_chunks(
            self.model, [self.layer], documents, self.max_tokens, Batcher(self.tokens_per_batch)
        )
        found = [part[0].cpu() for part in parts]
        return torch.cat(found) if found else torch.empty(0, self.d_model)


def cache_residuals(
    model: LanguageModel,
    layers: list[int],
    documents: Sequence[Document],
    folder: Path,
    *,
    max_tokens: int = 256,
    tokens_per_batch: int = 4096,
    limit: int | None = None,
) -> list[Path]:
    """Write residuals to folder/layer-NN/ (residuals.bin, residuals.json), one forward pass for all layers.

    Resumable: after each chunk of documents the byte counts are noted, and a later call with the same documents
    cuts off what was half written and goes on. Returns the folders of the layers.
    """
    targets = [folder / f"layer-{layer:02d}" for layer in layers]
    if all((target / "residuals.json").exists() for target in targets):
        return targets
    for target in targets:
        target.mkdir(parents=True, exist_ok=True)
    note = folder / "progress.json"
    done = json.loads(note.read_text("utf-8")) if note.exists() else {"documents": 0, "tokens": 0}
    width = model.d_model * model.dtype.itemsize
    files = [(target / "residuals.bin").open("r+b" if note.exists() else "wb") for target in targets]
    try:
        for file in files:
            file.truncate(done["tokens"] * width)
            file.seek(0, 2)
        batcher = Batcher(tokens_per_batch)
        with track("Caching residuals", len(documents), "documents", done=done["documents"]) as bar:
            for start in range(done["documents"], len(documents), DOCUMENTS_PER_CHUNK):
                chunk = documents[start : start + DOCUMENTS_PER_CHUNK]
                for residuals in residual_chunks(model, layers, chunk, max_tokens, batcher):
                    for file, x in zip(files, residuals, strict=True):
                        file.write(x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
                    done["tokens"] += len(residuals[0])
                for file in files:
                    file.flush()
                done["documents"] = start + len(chunk)
                _write(note, done)
                bar.advance(len(chunk))
                bar.note(f"{done['tokens']:,} tokens")
                if limit and done["tokens"] >= limit:
                    break
    finally:
        for file in files:
            file.close()
    meta = {
        "model": model.name,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        **done,
    }
    for layer, target in zip(layers, targets, strict=True):
        _write(target / "residuals.json", {**meta, "layer": layer, "n_tokens": done["tokens"]})
    return targets


def _write(path: Path, value: dict) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1), "utf-8")
    partial.replace(path)
