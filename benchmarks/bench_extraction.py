"""Extraction: tokens per second beside the bare truncated forward pass and beside the common way."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks import Row
from tagsteer.compute.batching import length_buckets
from tagsteer.corpus.store import Corpus
from tagsteer.label.extraction import pad
from tagsteer.label.frequencies import extract_frequencies
from tagsteer.lm.hooks import residuals_at
from tagsteer.lm.model import LanguageModel, load_model
from tagsteer.sae.sae import SAE

LAYER = 22
L0 = 40
BUDGET = 1024  # the default on CPUs, for both sides


def random_sae(model: LanguageModel, texts: list[str], d_sae: int) -> SAE:
    """Random rows with thresholds at which about 40 latents fire on a token, as on a trained SAE."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn((d_sae, model.d_model), generator=generator), dim=1)
    W_enc = W_dec.T.contiguous()
    ids, _, mask = pad(model, model.encode_batch(texts[:8], 64))
    (residual,) = residuals_at(model, [LAYER], ids, mask)
    x = residual[:, 1:][mask[:, 1:].bool()]
    b_enc = -(x.mean(0) @ W_enc)
    threshold = torch.quantile(x @ W_enc[:, :1024] + b_enc[:1024], 1 - L0 / d_sae).clamp(min=0)
    zeros = torch.zeros(model.d_model)
    return SAE("jumprelu", W_enc, b_enc, W_dec, zeros, threshold.expand(d_sae).contiguous(), layer=LAYER)


def bare(model: LanguageModel, texts: list[str]) -> None:
    """The truncated forward pass of the same batches, and nothing else."""
    ids = model.encode_batch(texts, 256)
    for batch in length_buckets([len(i) for i in ids], BUDGET):
        padded, _, mask = pad(model, [ids[i] for i in batch])
        residuals_at(model, [LAYER], padded, mask)


def common(model: LanguageModel, sae: SAE, texts: list[str], together: int) -> np.ndarray:
    """`together` documents at a time as they come: all hidden states, dense encode, a loop over documents."""
    rows = []
    for start in range(0, len(texts), together):
        ids = model.encode_batch(texts[start : start + together], 256)
        padded, lengths, mask = pad(model, ids)
        with torch.no_grad():
            out = model.hf(input_ids=padded, attention_mask=mask, output_hidden_states=True)
            pre = out.hidden_states[LAYER + 1] @ sae.W_enc + sae.b_enc
            a = torch.relu(pre) * (pre > sae.threshold)
            for i, n in enumerate(lengths.tolist()):
                rows.append((a[i, 1:n] > 0).float().mean(0).numpy())
    return np.stack(rows)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def run(quick: bool) -> list[Row]:
    """WordNet glosses through the embedded model; every round times each way once, the best round counts."""
    model = load_model(device="cpu")
    corpus = Corpus.from_wordnet()
    n = 48 if quick else 384
    chosen = np.random.default_rng(0).choice(len(corpus.texts), n, replace=False)
    texts = [corpus.texts[int(i)] for i in chosen]
    rows = []
    for d_sae in (4096,) if quick else (4096, 8192, 16_384, 65_536, 131_072):
        sae = random_sae(model, texts, d_sae)
        some = texts if d_sae <= 16_384 else texts[: n // 4]
        tokens = sum(len(ids) for ids in model.encode_batch(some, 256))
        ways: dict[str, Callable[[], object]] = {
            "tagsteer": partial(extract_frequencies, model, sae, some),
            "the bare forward pass, truncated at the layer, of the same batches": partial(bare, model, some),
        }
        if d_sae <= 16_384:
            ways["full forward, dense encode, document by document"] = partial(common, model, sae, some, 1)
            ways["the same, 16 documents at a time"] = partial(common, model, sae, some, 16)
        rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(1 if quick else 2)]
        wall = {name: min(r[name][0] for r in rounds) for name in ways}
        cpu = {name: min(r[name][1] for r in rounds) for name in ways}
        targets = dict(zip(ways, ("", "≥ 0.85 ×" if d_sae <= 8192 else "", "≥ 2 ×", ""), strict=False))
        rows += [
            Row(
                f"extract {len(some)} documents, {tokens:,} tokens, layer {LAYER}, {d_sae:,} latents",
                tokens / wall["tagsteer"],
                "tokens/s",
                against=name,
                against_value=tokens / wall[name],
                higher_is_better=True,
                target=targets[name],
                note=f"{cpu[name] / cpu['tagsteer']:.2f} × by processor time",
            )
            for name in list(ways)[1:]
        ]
    return rows
