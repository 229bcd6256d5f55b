"""Explained variance of an SAE at other L0s: `python docs/sae_at_l0.py TRAINING.toml SAE [FACTOR ...]`.

Its thresholds are multiplied by each factor, and L0 and explained variance (typical tokens) measured on the
[[held_out]] texts of the training file. docs/saes.md quotes
`python docs/sae_at_l0.py examples/saes/smollm2-layer-22-l0-64.toml smollm2-135m-instruct/layer-22-l0-64 1 1.1`.
"""

# ruff: noqa: T201 - a script that talks to whoever runs it
from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from tagsteer.compute.batching import Batcher
from tagsteer.config import check, read_toml
from tagsteer.lm.activations import residual_chunks
from tagsteer.lm.model import load_model
from tagsteer.sae.health import measure
from tagsteer.sae.loading import load_sae
from tagsteer.training import TrainingConfig, _resolved, documents_of


def main(path: Path, name: str, factors: list[float]) -> None:
    config = check(TrainingConfig, _resolved(read_toml(path), path.parent), str(path))
    model = load_model(config.model.name, config.model.device, config.model.dtype)
    layer = model.layer_index(config.layer)
    held_out = documents_of(config.held_out, int(config.train.get("seed", 0)))
    chunks = residual_chunks(model, [layer], held_out, config.max_tokens, Batcher(config.tokens_per_batch))
    residuals = [x[0].float().cpu() for x in chunks]
    sae = load_sae(name)
    assert sae.threshold is not None, f"{name} has no thresholds to multiply"
    for factor in factors:
        found = measure(dataclasses.replace(sae, threshold=sae.threshold * factor), residuals).typical
        print(
            f"thresholds x {factor:g}: L0 {found.l0:.2f}, explained variance {found.explained_variance:.4f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [float(f) for f in sys.argv[3:]] or [1.0])
