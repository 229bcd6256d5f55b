"""SAELens: folders that it saves (inference, training), old configs, its converters and its registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.loading import load_sae
from tests.sae import layouts, layouts_linear
from tests.sae.cases import CASES
from tests.sae.layouts import D_MODEL, D_SAE, K

PEER = "sae_lens"
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("peer")]


def _randomise(model, seed=0):
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn_like(parameter)
        if name == "threshold":
            parameter.data = parameter.data.abs()
    return model


def _check(sae, peer, x):
    """Activations, reconstruction of them, and the whole way through."""
    with torch.no_grad():
        whole = peer(x)
        wanted = peer.encode(x)
    a = sae.encode(x)
    assert 0 < (wanted > 0).float().mean() < 1
    if sae.input_norm is None:
        torch.testing.assert_close(a, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.decode(a), whole, rtol=1e-4, atol=1e-4)
        return
    scale = (
        x.norm(dim=-1, keepdim=True) / D_MODEL**0.5
        if sae.input_norm == "constant_norm_rescale"
        else x.std(-1, keepdim=True)
    )
    torch.testing.assert_close(a / scale, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(a, x), whole, rtol=1e-4, atol=1e-4)


SETTINGS = {
    "standard": {},
    "standard, not centred": {"apply_b_dec_to_input": False},
    "standard layer_norm": {"normalize_activations": "layer_norm"},
    "jumprelu": {},
    "jumprelu constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
    "topk": {"k": K},
    "topk rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "topk layer_norm": {"k": K, "normalize_activations": "layer_norm"},
    "gated": {},
    "gated constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
}


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_what_it_saves(setting, tmp_path, x):
    import sae_lens

    name = {"standard": "Standard", "jumprelu": "JumpReLU", "topk": "TopK", "gated": "Gated"}[
        setting.split()[0].strip(",")
    ]
    config = getattr(sae_lens, f"{name}SAEConfig")(d_in=D_MODEL, d_sae=D_SAE, **SETTINGS[setting])
    config.metadata.hook_name = "blocks.6.hook_resid_pre"
    peer = _randomise(getattr(sae_lens, f"{name}SAE")(config))
    peer.save_model(tmp_path)
    sae = load_sae(tmp_path, device="cpu")
    assert (sae.hook, sae.layer) == ("resid_post", 5)  # what enters layer 6 leaves layer 5
    _check(sae, peer, x)
    _check(sae, sae_lens.SAE.load_from_disk(tmp_path), x)


@pytest.mark.parametrize("name", ["BatchTopK", "MatryoshkaBatchTopK", "JumpReLU", "TopK"])
@pytest.mark.parametrize("saved", ["for inference", "as a checkpoint"])
def test_trained_saes(name, saved, tmp_path, x):
    """What training classes save for inference, and their checkpoints, both against the inference class."""
    import sae_lens

    options = {"k": float(K)} if "Batch" in name else {"k": K} if name == "TopK" else {}
    options |= {"matryoshka_widths": [10, D_SAE]} if name.startswith("Mat") else {}
    trained = getattr(sae_lens, f"{name}TrainingSAE")(
        getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=D_MODEL, d_sae=D_SAE, **options)
    )
    _randomise(trained)
    if "Batch" in name:
        trained.topk_threshold.fill_(3.0)
    inference, checkpoint = tmp_path / "inference", tmp_path / "checkpoint"
    trained.save_inference_model(inference)
    trained.save_model(checkpoint)
    peer = sae_lens.SAE.load_from_disk(inference)
    _check(load_sae(inference if saved == "for inference" else checkpoint, device="cpu"), peer, x)


@pytest.mark.parametrize(
    "name",
    [n for n in CASES if n.startswith("saelens") and "checkpoint" not in n and "scaled" not in n],
)
def test_our_layouts_are_theirs(name, tmp_path, x):
    import sae_lens

    case = CASES[name](tmp_path)
    _check(load_sae(case.path, device="cpu"), sae_lens.SAE.load_from_disk(case.path), x)


def test_a_norm_factor_folds_as_theirs(tmp_path, x):
    import sae_lens

    case = CASES["saelens gated, scaled input"](tmp_path)
    peer = sae_lens.SAE.load_from_disk(case.path)
    peer.fold_activation_norm_scaling_factor(2.5)
    _check(load_sae(case.path, device="cpu"), peer, x)


def _through_converter(loader: str, folder: Path, monkeypatch):
    """An SAE by one of sae-lens' hub converters, with local files in the hub's place."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(*args, filename=None, subfolder="", **_kwargs):
        return str(folder / subfolder / (filename or args[1]))

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    config, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](
        repo_id="google/gemma-scope-2b-pt-res",
        folder_name=".",
        device="cpu",
        force_download=False,
        cfg_overrides={"dtype": "float32"},
    )
    config = loaders.handle_config_defaulting(config)
    config["d_in"], config["d_sae"] = D_MODEL, D_SAE
    cls = SAE.get_sae_class_for_architecture(config["architecture"])
    peer = cls(SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config))
    peer.load_state_dict(state)
    return peer


def test_llama_scope_as_its_converter_reads_it(tmp_path, x, monkeypatch):
    """The threshold's units and the norm's fold; without decoder norms, which sae-lens does not know."""
    case = layouts_linear.llama_scope(tmp_path, decoder_norm=False)
    peer = _through_converter("llama_scope", tmp_path, monkeypatch)
    peer.fold_activation_norm_scaling_factor(D_MODEL**0.5 / 6.3125)
    _check(load_sae(case.path, device="cpu"), peer, x)


@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderTopK", "GatedAutoEncoder"])
def test_dictionary_learning_as_its_converter_reads_it(name, tmp_path, x, monkeypatch):
    import json

    case = layouts_linear.dictionary_learning(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    config["trainer"] |= {"activation_dim": D_MODEL, "dict_size": D_SAE}
    config["buffer"] = {"ctx_len": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _check(
        load_sae(case.path, device="cpu"),
        _through_converter("dictionary_learning_1", tmp_path, monkeypatch),
        x,
    )


def test_a_live_object(x):
    import sae_lens

    from tagsteer.sae.formats.assemble import Request
    from tagsteer.sae.formats.saelens_registry import from_object

    peer = _randomise(sae_lens.GatedSAE(sae_lens.GatedSAEConfig(d_in=D_MODEL, d_sae=D_SAE)))
    _check(from_object(peer, "memory", Request(layer=3)), peer, x)


def test_registry_names(tmp_path, monkeypatch):
    """Releases are found by name, files fetched from where it says, its figures land on the card."""
    from tagsteer.sae import hub

    case = layouts.gemma_scope(tmp_path)
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda name: asked.append(name) or case.path)
    sae = load_sae("saelens:gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", device="cpu")
    assert asked == ["google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"]
    assert (sae.layer, sae.card["model"], sae.card["l0"]) == (20, "gemma-2-2b", 71)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("saelens:gemma-scope-2b-pt-rse/layer_1", "gemma-scope-2b-pt-res"),
        ("saelens:gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_72", "average_l0_71"),
        ("saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre", "sae-lens cannot load"),
    ],
)
def test_registry_errors_name_the_next_step(name, words):
    with pytest.raises(TagsteerError, match=words):
        load_sae(name, device="cpu")


def test_other_architectures_are_refused_by_name(tmp_path):
    import sae_lens

    config = sae_lens.AbsTopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=K)
    sae_lens.AbsTopKSAE(config).save_model(tmp_path)
    with pytest.raises(TagsteerError, match="abstopk"):
        load_sae(tmp_path, device="cpu")
    assert dataclasses.is_dataclass(config)
