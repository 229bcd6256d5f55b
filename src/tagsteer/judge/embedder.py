"""Sentence and token embeddings by all-MiniLM-L6-v2 (a pinned wheel of the package index), in batches by length.

Knows transformers and the asset; must not know judges, ratings or what the texts are for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

log = logging.getLogger("tagsteer.judge")

ASSET = "all-minilm-l6-v2"
WIDTH = 384
MAX_TOKENS = 256
"""The length that all-MiniLM-L6-v2 was trained with; longer texts are cut (sentence-transformers does the same)."""
BATCH_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """One text's contextual token vectors, marks ([CLS], [SEP]) left out."""

    vectors: np.ndarray
    """float32 [tokens, 384], as the last layer gives them (not normalised)."""
    spans: np.ndarray
    """int32 [tokens, 2]: first and last-plus-one character of each token in the text."""
    pooled: np.ndarray
    """float32 [384]: unit mean over all tokens, marks included, as sentence-transformers pools."""


@dataclass(frozen=True, eq=False)
class SentenceEmbedder:
    """A BERT encoder with mean pooling. `device` and `dtype` are those of its weights."""

    hf: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [texts, 384]; an empty text has a vector too (that of the two marks)."""
        import torch

        out = np.zeros((len(texts), WIDTH), np.float32)
        for indices, hidden, mask, _ in self._forward(texts):
            pooled = _mean(hidden, mask)
            out[indices] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return out

    def embed_tokens(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Token vectors with their places in the text, one pass over the encoder for each text."""
        import torch

        out: list[TokenEmbeddings | None] = [None] * len(texts)
        for indices, hidden, mask, offsets in self._forward(texts):
            pooled = torch.nn.functional.normalize(_mean(hidden, mask), dim=-1).cpu().numpy()
            vectors, lengths = hidden.float().cpu().numpy(), mask.sum(1).tolist()
            for row, index in enumerate(indices):
                inner = slice(1, lengths[row] - 1)
                spans = np.asarray(offsets[row], np.int32).reshape(-1, 2)[inner]
                out[index] = TokenEmbeddings(vectors[row, inner], spans, pooled[row])
        return [e for e in out if e is not None]

    def _forward(self, texts: Sequence[str]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, list]]:
        """Batches of (places in `texts`, hidden [rows, tokens, 384], mask [rows, tokens], character offsets)."""
        import torch

        if not len(texts):
            return
        # In chunks: a fast tokenizer's encodings of 60,000 texts would fill memory.
        for start in range(0, len(texts), 2048):
            chunk = list(texts[start : start + 2048])
            coded = self.tokenizer(chunk, truncation=True, max_length=MAX_TOKENS, return_offsets_mapping=True)
            ids, offsets = coded["input_ids"], coded["offset_mapping"]
            order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
            at = 0
            while at < len(order):
                rows = [order[at]]
                while at + len(rows) < len(order):
                    longest = len(ids[order[at + len(rows)]])
                    if longest * (len(rows) + 1) > BATCH_TOKENS:
                        break
                    rows.append(order[at + len(rows)])
                at += len(rows)
                width = max(len(ids[i]) for i in rows)
                tokens = torch.zeros(len(rows), width, dtype=torch.long)
                mask = torch.zeros(len(rows), width, dtype=torch.long)
                for row, i in enumerate(rows):
                    tokens[row, : len(ids[i])] = torch.tensor(ids[i])
                    mask[row, : len(ids[i])] = 1
                tokens, mask = tokens.to(self.device), mask.to(self.device)
                with torch.inference_mode():
                    hidden = self.hf(input_ids=tokens, attention_mask=mask).last_hidden_state
                yield [start + i for i in rows], hidden, mask, [offsets[i] for i in rows]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


@cache
def load_embedder(device: str = "cpu", dtype: str = "auto") -> SentenceEmbedder:
    """The embedder of the pinned wheel. dtype "auto": bfloat16 where the processor multiplies it natively.

    The cosine between bfloat16 and float32 embeddings of a text is above 0.999 (tested).
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    from tagsteer.assets.fetch import fetch

    if dtype == "auto":
        native = torch.device(device).type == "cuda" or (
            device == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        )
        dtype = "bfloat16" if native else "float32"
    folder = fetch(ASSET)
    log.info("embedder %s on %s in %s", ASSET, device, dtype)
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, attn_implementation="sdpa"
    )
    hf = transformers.BertModel(config, add_pooling_layer=False)
    # Loaded by hand: from_pretrained reports the file's unused pooler on stderr.
    weights = load_file(folder / "model.safetensors")
    hf.load_state_dict({k: v for k, v in weights.items() if k in hf.state_dict()}, strict=True)
    hf.requires_grad_(False).eval().to(device, getattr(torch, dtype))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # The wheel's tokenizer.json asks for padding and truncation to 128; batches are padded here.
    tokenizer.backend_tokenizer.no_padding()
    return SentenceEmbedder(hf, tokenizer, torch.device(device), hf.dtype)
