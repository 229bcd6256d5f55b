"""dictionary_learning: every class of it, saved as its trainers save, against its own encode and decode."""

from __future__ import annotations

import json

import pytest
import torch

from tagsteer.sae.loading import load_sae
from tests.sae.layouts import D_MODEL, D_SAE, K

PEER = "dictionary_learning"
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("peer")]


def _make(name: str):
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoderTopK": lambda: AutoEncoderTopK(D_MODEL, D_SAE, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(D_MODEL, D_SAE, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D_MODEL, D_SAE, K, [10, D_SAE - 10]),
    }
    return made[name]() if name in made else getattr(dictionary, name)(D_MODEL, D_SAE)


@pytest.mark.parametrize(
    "name",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
        "GatedAutoEncoder",
    ],
)
def test_what_it_saves(name, tmp_path, x):
    torch.manual_seed(0)
    model = _make(name)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        model.threshold.fill_(2.0)
    torch.save(model.state_dict(), tmp_path / "ae.pt")
    trainer = {
        "dict_class": name,
        "layer": 4,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_4",
    }
    (tmp_path / "config.json").write_text(
        json.dumps({"trainer": trainer | ({"k": K} if hasattr(model, "k") else {})})
    )
    sae = load_sae(tmp_path, device="cpu")
    flat = x.reshape(-1, D_MODEL)
    with torch.no_grad():
        wanted = model.encode(flat)
        rebuilt = model(flat)
    assert 0 < (wanted > 0).float().mean() < 1
    torch.testing.assert_close(sae.encode(flat), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(sae.encode(flat)), rebuilt, rtol=1e-4, atol=1e-4)
