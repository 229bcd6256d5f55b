"""EleutherAI sparsify: files that it writes and files of ours, against its own encode and decode."""

from __future__ import annotations

import pytest
import torch

from tagsteer.sae.loading import load_sae
from tests.sae import layouts

PEER = "sparsify"
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("peer")]


def _check(path, coder, x):
    sae = load_sae(path, device="cpu")
    flat = x.reshape(-1, x.shape[-1])
    with torch.no_grad():
        acts, indices, _ = coder.encode(flat)
        wanted = torch.zeros(len(flat), sae.d_sae).scatter_(1, indices, acts)
        rebuilt = coder.decode(acts, indices)
    torch.testing.assert_close(sae.encode(flat), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(sae.encode(flat)), rebuilt, rtol=1e-4, atol=1e-4)


def _randomise(coder):
    for parameter in coder.parameters():
        parameter.data = torch.randn_like(parameter)


@pytest.mark.parametrize("width", [{"num_latents": 40}, {"expansion_factor": 4}])
def test_what_it_saves(tmp_path, x, width):
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(layouts.D_MODEL, SparseCoderConfig(k=5, **width))
    _randomise(coder)
    coder.save_to_disk(tmp_path / "layers.3")
    _check(tmp_path / "layers.3", coder, x)
    assert load_sae(tmp_path / "layers.3", device="cpu").layer == 3


def test_our_layout_is_theirs(tmp_path, x):
    from sparsify import SparseCoder

    case = layouts.sparsify(tmp_path)
    _check(case.path, SparseCoder.load_from_disk(case.path), x)
