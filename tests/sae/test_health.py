"""Health figures against closed forms, with and without tokens of enormous norm."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.health import compare, measure
from tagsteer.sae.sae import SAE

D = 8


def identity(shrink: float = 1.0) -> SAE:
    """Two latents a direction, +e_i and -e_i: x̂ = shrink · x exactly, and L0 = D."""
    e = torch.eye(D)
    both = torch.cat([e, -e])
    return SAE("relu", both.T, torch.zeros(2 * D), shrink * both, torch.zeros(D))


@pytest.fixture
def x():
    return torch.randn(4000, D, generator=torch.Generator().manual_seed(0)) + 0.3


def test_figures_equal_the_formula(x):
    sae = identity(0.7)
    health = measure(sae, x, batch=300)
    y = x.double().numpy()
    wanted = 1 - ((0.3 * y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert health.all.explained_variance == pytest.approx(wanted, abs=1e-6)
    assert (health.all.l0, health.dead_share, health.n_outliers) == (D, 0.0, 0)
    assert health.median_norm == pytest.approx(float(np.median(np.linalg.norm(y, axis=1))), rel=1e-2)


def test_outlier_tokens_hide_the_rest(x):
    """Five sinks of 60 median norms: reconstructed well, they lift explained variance of a useless SAE."""
    sink = torch.zeros(5, D)
    sink[:, 0] = 60 * float(x.norm(dim=1).median())
    only_sink = SAE(
        "jumprelu",
        torch.eye(D)[:, :1],
        torch.zeros(1),
        torch.eye(D)[:1],
        torch.zeros(D),
        threshold=torch.tensor([20.0]),
    )
    health = measure(only_sink, [x, sink])
    assert health.n_outliers == 5 and health.typical.n_tokens == len(x)
    assert health.all.explained_variance > 0.7
    assert health.typical.explained_variance == pytest.approx(measure(only_sink, x).all.explained_variance)
    assert health.typical.explained_variance < 0
    assert health.typical.l0 == 0


def test_dead_share_counts_silent_latents(x):
    sae = identity()
    sae.b_enc[:4] = -1e9
    assert measure(sae, x).dead_share == pytest.approx(4 / (2 * D))


def test_bf16_residuals_and_shapes(x):
    one = measure(identity(), x.reshape(40, 100, D).bfloat16())
    assert one.all.n_tokens == 4000 and one.all.explained_variance > 0.999


def test_compare_warns_where_the_card_differs(x, caplog):
    caplog.set_level(logging.WARNING, "tagsteer.sae")
    health = measure(identity(), x)
    assert compare(health, {"l0": 8.0, "explained_variance": 0.95, "dead_share": 0.0}) == []
    assert not caplog.records
    found = compare(health, {"l0": 71.0, "explained_variance": 0.6}, "some SAE")
    assert len(found) == 2 and "71" in found[0] and "0.600" in found[1] and "some SAE" in found[0]
    assert len(caplog.records) == 2


def test_a_wrong_sae_is_noticed_without_a_card(x):
    found = compare(measure(identity(-1.0), x), {})
    assert len(found) == 1 and "explained variance" in found[0]
    sae = identity()
    sae.b_enc[:] = -1e9
    assert len(compare(measure(sae, x), {})) == 2


def test_refusals(x):
    with pytest.raises(TagsteerError, match="whole SAE"):
        measure(identity().select([1]), x)
    with pytest.raises(TagsteerError, match="no residuals"):
        measure(identity(), x[:0])
    with pytest.raises(TagsteerError, match="not finite"):
        measure(identity(), x / 0)


def test_lines_are_readable(x):
    lines = measure(identity(), x).lines()
    assert "L0 8.0" in lines[0] and "0 tokens of more than 6 median norms" in lines[1]
