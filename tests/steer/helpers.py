"""A small random SAE and what the steering tests compute by hand."""

from __future__ import annotations

import torch

from tagsteer.lm.hooks import residual_of
from tagsteer.lm.model import LanguageModel
from tagsteer.sae.sae import SAE
from tagsteer.steer.generate import Engine, Generation, WorkItem
from tests.tiny import D_MODEL, tiny_model

LAYER, D_SAE = 1, 24


def small_sae(kind: str = "jumprelu", dtype: torch.dtype = torch.float32, d_sae: int = D_SAE) -> SAE:
    """Random weights; about half of the latents fire on a random residual."""
    g = torch.Generator().manual_seed(7)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    parts = {
        "W_enc": rand(D_MODEL, d_sae),
        "b_enc": rand(d_sae) * 0.1,
        "W_dec": rand(d_sae, D_MODEL),
        "b_dec": rand(D_MODEL),
    }
    extra = {
        "relu": {},
        "jumprelu": {"threshold": rand(d_sae).abs() * 0.3},
        "topk": {"k": 5},
        "batchtopk": {"k": 5},
        "gated": {"gain": rand(d_sae).exp(), "b_mag": rand(d_sae) * 0.1},
    }[kind]
    return SAE(kind, **parts, **extra, layer=LAYER, source=f"small-{kind}")


def precise_model(family: str, loud: float = 10.0) -> LanguageModel:
    """A tiny model in float64, so that two ways to one text agree to the last draw.

    transformers' eager attention takes its softmax in float32, where the mask of a padding row in float64
    overflows to NaN; torch's own attention does not, but Gemma 2 cannot use it and stays in float32. `loud`
    scales the unembedding: random logits are nearly flat.
    """
    double = family != "gemma2"
    model = tiny_model(family, dtype=torch.float64 if double else torch.float32)
    if double:
        model.hf.set_attn_implementation("sdpa")
    model.unembedding.weight.mul_(loud)
    return model


def texts(engine: Engine, items: list[WorkItem]) -> dict[object, Generation]:
    return {found.key: found for found in engine.run(items)}


class Recorder:
    """Residuals after a layer's hooks have run, one tensor per forward pass."""

    def __init__(self, model, layer: int = LAYER) -> None:
        self.seen: list[torch.Tensor] = []
        self._module = model.layers[layer + 1]

    def __enter__(self) -> Recorder:
        # The next layer's input is the edited residual, whatever the order of hooks on the edited layer.
        self._handle = self._module.register_forward_pre_hook(
            lambda _m, args, kwargs: self.seen.append(
                residual_of(args[0] if args else kwargs["hidden_states"]).clone()
            ),
            with_kwargs=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
