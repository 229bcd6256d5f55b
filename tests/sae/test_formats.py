"""Every file layout, whole and in part, against a computation in numpy from the format's own semantics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagsteer.sae.loading import load_sae
from tests.sae.cases import CASES
from tests.sae.layouts import D_MODEL, D_SAE, residuals

KEPT = [31, 4, 17]


@pytest.fixture(params=list(CASES))
def case(request, tmp_path):
    return CASES[request.param](tmp_path / "sae")


@pytest.fixture
def sae(case):
    return load_sae(case.path, device="cpu", dtype="float64")


def test_encode_and_decode_equal_the_reference(case, sae):
    x = residuals()
    wanted = case.encode(x)
    a = sae.encode(torch.from_numpy(x))
    assert 0.02 < (wanted > 0).mean() < 0.98  # a reference of zeros would prove nothing
    np.testing.assert_allclose(a.numpy(), wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sae.decode(a).numpy(), case.decode(wanted), rtol=1e-9, atol=1e-9)


def test_float32_agrees_with_the_reference(case):
    x = residuals()
    sae = load_sae(case.path, device="cpu")
    assert sae.dtype == torch.float32
    a = sae.encode(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(a, case.encode(x), rtol=1e-4, atol=1e-4)


def test_kind_sizes_and_site(case, sae):
    assert (sae.kind, sae.d_model, sae.d_sae, sae.n_features) == (case.kind, D_MODEL, D_SAE, D_SAE)
    assert (sae.layer, sae.hook) == (case.layer, "resid_post")


def test_a_clamp_needs_one_row_in_the_models_units(case, sae):
    """x - Dec(a) + Dec(a with a_i := c) = x + (c - a_i) · W_dec[i], with the format's own decoder."""
    x, i, c = residuals(8), 17, 6.5
    a = case.encode(x)
    clamped = a.copy()
    clamped[:, i] = c
    wanted = x - case.decode(a) + case.decode(clamped)
    t = torch.from_numpy(x)
    got = t + (c - sae.encode(t)[:, i : i + 1]) * sae.W_dec[i]
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["select", "partial loading"])
def test_a_part_gives_the_same_columns(case, sae, how):
    part = (
        sae.select(KEPT)
        if how == "select"
        else load_sae(case.path, features=KEPT, device="cpu", dtype="float64")
    )
    x = torch.from_numpy(residuals())
    assert (part.n_features, part.d_sae, part.features.tolist()) == (3, D_SAE, KEPT)
    torch.testing.assert_close(part.encode(x), sae.encode(x)[:, KEPT], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.W_dec, sae.W_dec[KEPT], rtol=0, atol=0)
    assert [part.row(f) for f in KEPT] == [0, 1, 2]
    columns = D_SAE if part.depends_on_all else 3
    assert part.W_enc.shape == (D_MODEL, columns)


def test_saved_and_loaded_again_it_is_the_same(sae, tmp_path):
    x = torch.from_numpy(residuals())
    for name, one in (("whole", sae), ("part", sae.select(KEPT))):
        back = load_sae(one.save(tmp_path / name), device="cpu", dtype="float64")
        assert (back.kind, back.layer, back.d_sae, back.card) == (one.kind, one.layer, one.d_sae, one.card)
        torch.testing.assert_close(back.encode(x), one.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(
        load_sae(tmp_path / "whole", features=KEPT, device="cpu", dtype="float64").encode(x),
        sae.select(KEPT).encode(x),
    )


def test_a_name_decides_nothing(tmp_path):
    """The same files in folders called like another format load all the same."""
    case = CASES["sparsify"](tmp_path / "gemma-scope-llama_scope-ae.pt")
    assert load_sae(case.path, device="cpu").kind == "topk"
