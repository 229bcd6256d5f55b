"""Every layout by name, for tests that go through all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.sae.layouts import Case, gemma_scope, gemma_scope_2, saelens, sparsify
from tests.sae.layouts_linear import (
    dictionary_learning,
    llama_scope,
    openmoss_topk,
    openmoss_trained_thresholds,
)

CASES: dict[str, Callable[[Path], Case]] = {
    "gemma scope": gemma_scope,
    "gemma scope compressed": lambda f: gemma_scope(f, compressed=True),
    "gemma scope 2": gemma_scope_2,
    "saelens standard": lambda f: saelens(f, "standard"),
    "saelens standard v5": lambda f: saelens(f, "standard", 5),
    "saelens standard, b_dec not subtracted": lambda f: saelens(f, "standard", apply_b_dec_to_input=False),
    "saelens standard, scaled input": lambda f: saelens(
        f, "standard", normalize_activations="expected_average_only_in", scaler=0.37
    ),
    "saelens jumprelu": lambda f: saelens(f, "jumprelu"),
    "saelens jumprelu v5, b_dec not subtracted": lambda f: saelens(
        f, "jumprelu", 5, apply_b_dec_to_input=False
    ),
    "saelens jumprelu, scaled input": lambda f: saelens(
        f, "jumprelu", normalize_activations="expected_average_only_in", scaler=0.37
    ),
    "saelens topk": lambda f: saelens(f, "topk"),
    "saelens topk v5": lambda f: saelens(f, "topk", 5),
    "saelens topk by decoder norm": lambda f: saelens(f, "topk", rescale_acts_by_decoder_norm=True),
    "saelens gated": lambda f: saelens(f, "gated"),
    "saelens gated v5": lambda f: saelens(f, "gated", 5),
    "saelens gated, scaled input": lambda f: saelens(
        f, "gated", normalize_activations="expected_average_only_in", scaler=2.5
    ),
    "saelens batchtopk checkpoint": lambda f: saelens(f, "batchtopk", rescale_acts_by_decoder_norm=True),
    "saelens matryoshka checkpoint": lambda f: saelens(f, "matryoshka_batchtopk"),
    "sparsify": sparsify,
    "llama scope": llama_scope,
    "llama scope, norms not included": lambda f: llama_scope(f, decoder_norm=False),
    "openmoss, trained thresholds": openmoss_trained_thresholds,
    "openmoss topk": openmoss_topk,
} | {
    f"dictionary_learning {name}": (lambda f, name=name: dictionary_learning(f, name))
    for name in (
        "AutoEncoder",
        "AutoEncoderNew",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
        "GatedAutoEncoder",
    )
}
