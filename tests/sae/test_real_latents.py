"""Ten real Gemma Scope latents: they load, and what steering does with them holds on random residuals.

The residuals of the recorded runs are not known (they need Gemma-2-2B), so activations are checked against
the published formula, and clamp and addition against the decoder algebra.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagsteer.sae.loading import load_sae

pytestmark = pytest.mark.shared
FILE = "axbench/gemma_scope_2b_l20_65k_10_latents.npz"


@pytest.fixture
def raw(shared):
    with np.load(shared / FILE, allow_pickle=False) as file:
        return {k: file[k].astype(np.float64) for k in file}


@pytest.fixture
def sae(shared):
    return load_sae(shared / FILE, layer=20, device="cpu", dtype="float64")


@pytest.fixture
def x(raw):
    """Residuals around b_dec, along some decoder rows, so that latents fire: [200, 2304]."""
    rng = np.random.default_rng(0)
    along = rng.uniform(0, 60, size=(200, 10)) * (rng.random((200, 10)) < 0.3)
    return raw["b_dec"] + along @ raw["W_dec"] + rng.normal(size=(200, 2304))


def test_they_load(sae):
    assert (sae.kind, sae.d_model, sae.d_sae, sae.layer, sae.hook) == ("jumprelu", 2304, 10, 20, "resid_post")
    # Gemma Scope keeps decoder rows at norm 1.
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(10, dtype=torch.float64), atol=1e-3, rtol=0)


def test_activations_equal_the_published_formula(sae, raw, x):
    pre = x @ raw["W_enc"] + raw["b_enc"]
    wanted = (pre > raw["threshold"]) * np.maximum(pre, 0)
    assert 0.05 < (wanted > 0).mean() < 0.95
    np.testing.assert_allclose(sae.encode(torch.from_numpy(x)).numpy(), wanted, rtol=1e-10, atol=1e-10)


def test_clamp_and_addition(sae, raw, x):
    """x' = x - Dec(a) + Dec(a with a_i := c), in float64, equals one row and one column of arithmetic."""
    a = sae.encode(torch.from_numpy(x)).numpy()
    for i in range(10):
        clamped = a.copy()
        clamped[:, i] = 25.0
        wanted = x - (a @ raw["W_dec"] + raw["b_dec"]) + (clamped @ raw["W_dec"] + raw["b_dec"])
        part = sae.select([i])
        t = torch.from_numpy(x)
        got = t + (25.0 - part.encode(t)) * part.W_dec[0]
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-9)
        # Addition moves the latent's own pre-activation by s · (w_dec · w_enc).
        added = t + 8.0 * part.W_dec[0]
        moved = part.preactivations(added) - part.preactivations(t)
        np.testing.assert_allclose(
            moved.numpy(), 8.0 * float(raw["W_dec"][i] @ raw["W_enc"][:, i]), rtol=1e-9
        )


def test_a_part_of_them(sae, shared, x):
    part = load_sae(shared / FILE, layer=20, features=[9, 0], device="cpu", dtype="float64")
    t = torch.from_numpy(x)
    torch.testing.assert_close(part.encode(t), sae.encode(t)[:, [9, 0]], rtol=1e-12, atol=1e-12)
