"""Random SAEs of every kind for the tests of this room."""

from __future__ import annotations

import torch

from tagsteer.sae.sae import SAE

D_SAE = 48


def random_sae(
    kind: str = "jumprelu", d_model: int = 32, d_sae: int = D_SAE, layer: int = 1, seed: int = 0, **parts
) -> SAE:
    """Weights at the scale of a tiny model's residuals, so that about a third of the latents fire on a
    token."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    more = {
        "relu": {},
        "jumprelu": {"threshold": normal(d_sae).abs() * 0.02},
        "topk": {"k": 7},
        "gated": {"gain": normal(d_sae).mul(0.3).exp(), "b_mag": normal(d_sae) * 0.01},
    }[kind]
    weights = {
        "W_enc": normal(d_model, d_sae),
        "b_enc": normal(d_sae) * 0.02 - 0.02,
        "W_dec": torch.nn.functional.normalize(normal(d_sae, d_model), dim=1),
        "b_dec": normal(d_model) * 0.01,
    }
    return SAE(kind, **{**weights, "layer": layer, "source": f"random {kind}", **more, **parts})
