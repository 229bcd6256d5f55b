"""Output score: milliseconds per feature beside one full forward pass per feature."""

from __future__ import annotations

import time

import torch

from benchmarks import Row
from tagsteer.label.logit_lens import lens_logits
from tagsteer.label.output_score import PROMPT, output_scores
from tagsteer.lm.hooks import edit_residual
from tagsteer.lm.model import LanguageModel, load_model
from tagsteer.sae.sae import SAE

LAYER = 22


def plain(model: LanguageModel, sae: SAE, feature: int, strength: float) -> float:
    """The definition for one feature: its lens tokens, one full forward pass of the prompt, one score."""
    ids = torch.tensor([model.encode(PROMPT)])

    def edit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, -1] += strength * sae.W_dec[feature]
        return x

    with torch.inference_mode():
        lens = lens_logits(model, sae.W_dec[feature][None])[0].softmax(0).topk(20).indices
        with edit_residual(model, LAYER, edit):
            p = model.hf(input_ids=ids, use_cache=False).logits[0, -1].softmax(0)
        rank = torch.empty_like(p, dtype=torch.int64)
        rank[p.argsort(descending=True)] = torch.arange(len(p))
        return float((1 - rank[lens].min() / len(p)) * p[lens].max())


def run(quick: bool) -> list[Row]:
    """Random decoder rows on the embedded model; rounds take both ways in turn, the best of each counts."""
    model = load_model(device="cpu")
    n, few, d_sae = (1024, 4, 4096) if quick else (4096, 16, 8192)
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn((d_sae, model.d_model), generator=generator), dim=1)
    zeros = torch.zeros(model.d_model)
    sae = SAE("relu", W_dec.T.contiguous(), torch.full((d_sae,), -10.0), W_dec, zeros, layer=LAYER)
    ours, theirs, cpu, apart = [], [], [], 0.0
    for _ in range(1 if quick else 3):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = output_scores(model, sae, range(n), promoted=0)
        middle, middle_cpu = time.perf_counter(), time.process_time()
        wanted = [plain(model, sae, i, found.strength) for i in range(few)]
        end, end_cpu = time.perf_counter(), time.process_time()
        ours.append((middle - start) / n * 1e3)
        theirs.append((end - middle) / few * 1e3)
        cpu.append((end_cpu - middle_cpu) / few / ((middle_cpu - start_cpu) / n))
        apart = max(apart, *(abs(a - b) for a, b in zip(wanted, found.score[:few].tolist(), strict=True)))
    return [
        Row(
            f"output score of {n:,} features, layer {LAYER}",
            min(ours),
            "ms/feature",
            against=f"one full forward pass per feature ({few} of them)",
            against_value=min(theirs),
            target="≥ 30 ×",
            note=f"{max(cpu):.0f} × by processor time; largest difference of the scores {apart:.1e}",
        )
    ]
