"""Inputs of a whole run that takes a second: a saved tiny model, an SAE of its width, and tagged documents."""

from __future__ import annotations

from pathlib import Path

import torch

from tagsteer.config import RunConfig
from tagsteer.sae.sae import SAE
from tests.tiny import D_MODEL, tiny_model

D_SAE = 48


def write_inputs(folder: Path) -> Path:
    """model/, sae/ and posts.csv, whose letters differ by tag."""
    model = tiny_model("llama")
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=g), dim=1)
    weights = {"W_enc": rows.T.contiguous(), "b_enc": torch.full((D_SAE,), -0.02), "W_dec": rows}
    SAE(kind="relu", **weights, b_dec=torch.zeros(D_MODEL), layer=1).save(folder / "sae")
    lines = [f'"{"brd oven " * 3}{i}","bread"' for i in range(40)]
    lines += [f'"{"WINE 77 " * 3}{i}","wine"' for i in range(40)]
    (folder / "posts.csv").write_text("text,tags\n" + "\n".join(lines) + "\n")
    return folder


def tiny_config(inputs: Path, **steer) -> RunConfig:
    """One pair for each of two labels; `steer` changes [steer]."""
    return RunConfig.model_validate({
        "name": "tiny",
        "model": {"name": str(inputs / "model"), "device": "cpu"},
        "sae": {"name": str(inputs / "sae")},
        "corpus": {"kind": "table", "path": str(inputs / "posts.csv"), "text": ["text"], "labels": "tags"},
        "extract": {"max_tokens": 32},
        "score": {"min_support": 20, "permutations": 2, "matches_per_label": 4},
        "select": {"min_output_score": 0.0, "top_k": 2, "evidence_documents": 2, "one_per_label": True},
        "steer": {"strengths": [0.5, 2.0], "instructions": 4, "max_new_tokens": 4, **steer},
        "judge": {"kind": "offline", "perplexity": False},
    })  # fmt: skip
