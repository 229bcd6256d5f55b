"""What cannot be read exactly is refused by name, in one line that says the next step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.loading import load_sae
from tests.sae import layouts, layouts_linear
from tests.sae.layouts import D_MODEL, D_SAE, saelens, weights, write_json, write_pt, write_safetensors


def refused(path, *words: str, **kwargs) -> None:
    with pytest.raises(TagsteerError) as error:
        load_sae(path, device="cpu", **kwargs)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "temporal"}, ["temporal", "jumprelu"]),
        ({"architecture": "jumprelu_transcoder"}, ["jumprelu_transcoder"]),
        ({"normalize_activations": "covariance_whitening"}, ["covariance_whitening"]),
        ({"normalize_activations": "expected_average_only_in"}, ["input_scale", "saelens:"]),
        ({"reshape_activations": "hook_q"}, ["hook_q"]),
        ({"hook_name_out": "blocks.7.hook_mlp_out"}, ["hook_mlp_out", "transcoder"]),
        ({"activation_fn": "tanh-relu"}, ["tanh-relu"]),
    ],
)
def test_saelens_options(tmp_path, options, words):
    case = saelens(tmp_path, "standard")
    config = json.loads((tmp_path / "cfg.json").read_text())
    write_json(tmp_path / "cfg.json", config | options)
    refused(case.path, *words)


def test_saelens_batchtopk_without_threshold(tmp_path):
    case = saelens(tmp_path, "batchtopk")
    w = weights(3)
    write_safetensors(
        tmp_path / "sae_weights.safetensors", {k: w[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
    )
    refused(case.path, "batchtopk", "topk_threshold")


def test_saelens_scaling_factor_is_refused_unless_it_does_nothing(tmp_path):
    case = saelens(tmp_path, "standard")
    w = {k: weights(3)[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
    write_safetensors(
        tmp_path / "sae_weights.safetensors", w | {"scaling_factor": np.ones(D_SAE, np.float32)}
    )
    assert load_sae(case.path, device="cpu").kind == "relu"
    write_safetensors(
        tmp_path / "sae_weights.safetensors", w | {"scaling_factor": np.full(D_SAE, 1.1, np.float32)}
    )
    refused(case.path, "scaling_factor")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transcode": True}, ["transcoder"]),
        ({"skip_connection": True}, ["skip_connection"]),
        ({"activation": "groupmax"}, ["groupmax", "topk"]),
        ({"signed": True}, ["signed"]),
    ],
)
def test_sparsify_options(tmp_path, options, words):
    case = layouts.sparsify(tmp_path)
    config = json.loads((case.path / "cfg.json").read_text())
    write_json(case.path / "cfg.json", config | options)
    refused(case.path, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"act_fn": "gelu"}, ["gelu"]),
        ({"use_glu_encoder": True}, ["use_glu_encoder"]),
        ({"norm_activation": "batch-wise"}, ["batch-wise"]),
        ({"dataset_average_activation_norm": None}, ["input_scale"]),
        ({"act_fn": "batchtopk", "jump_relu_threshold": 0}, ["batchtopk", "jump_relu_threshold"]),
        ({"hook_point_out": "blocks.8.hook_mlp_out"}, ["hook_mlp_out"]),
        ({"sae_type": "lorsa"}, ["lorsa"]),
    ],
)
def test_openmoss_options(tmp_path, options, words):
    refused(layouts_linear.llama_scope(tmp_path, **options).path, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "transcoder"}, ["transcoder"]),
        ({"affine_connection": True}, ["affine"]),
        ({"architecture": "topk"}, ["topk", "jump_relu"]),
        (
            {"hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output"},
            ["post_feedforward_layernorm"],
        ),
    ],
)
def test_gemma_scope_2_options(tmp_path, options, words):
    case = layouts.gemma_scope_2(tmp_path)
    config = json.loads((case.path / "config.json").read_text())
    write_json(case.path / "config.json", config | options)
    refused(case.path, *words)


@pytest.mark.parametrize(
    "folder", ["gemma-scope-2b-pt-transcoders/layer_3", "gemma-scope-2b-pt-res/embedding"]
)
def test_gemma_scope_places(tmp_path, folder):
    path = tmp_path / folder / "width_16k/average_l0_5/params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **{k: weights()[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
    refused(path, "embedding" if "embedding" in folder else "transcoder")


def test_dictionary_learning_classes(tmp_path):
    case = layouts_linear.dictionary_learning(tmp_path, "BatchTopKSAE")
    write_json(tmp_path / "config.json", {"trainer": {"dict_class": "CrossCoder"}})
    refused(case.path, "CrossCoder")
    (tmp_path / "config.json").unlink()
    refused(case.path, "config.json", "TopK")


def test_dictionary_learning_without_threshold(tmp_path):
    case = layouts_linear.dictionary_learning(tmp_path, "BatchTopKSAE")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    write_pt(tmp_path / "ae.pt", {k: v.numpy() for k, v in state.items()} | {"threshold": np.float32(-1.0)})
    refused(case.path, "threshold", "-1")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"encoder.weight": Bomb()}, tmp_path / "ae.pt")
    refused(tmp_path / "ae.pt", "cannot read")
    np.savez(
        tmp_path / "params.npz",
        W_enc=np.array([Bomb()], dtype=object),
        W_dec=1,
        b_enc=1,
        b_dec=1,
        threshold=1,
    )
    refused(tmp_path / "params.npz")
    assert not (tmp_path / "exploded").exists()


def test_unknown_contents_are_described(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"lm_head.weight": np.zeros((3, 4), np.float32)})
    refused(tmp_path, "no known format", "lm_head.weight", "converter=")


def test_broken_and_ambiguous_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    refused(tmp_path / "a.safetensors", "cannot read")
    (tmp_path / "b.npz").write_bytes(b"nonsense")
    refused(tmp_path / "b.npz", "cannot read")
    refused(tmp_path, "2 weight files", "a.safetensors")
    (tmp_path / "c.txt").write_text("x")
    refused(tmp_path / "c.txt", "no weight file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no weight file")


def test_a_folder_of_saes_names_them(tmp_path):
    layouts.sparsify(tmp_path)
    refused(tmp_path, "layers.5")


def test_shapes_and_values_are_checked(tmp_path):
    w = {k: weights()[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    np.savez(tmp_path / "p.npz", **w | {"W_enc": w["W_enc"].T})
    refused(tmp_path / "p.npz", f"[{D_SAE}, {D_MODEL}]")
    np.savez(tmp_path / "p.npz", **w | {"b_enc": w["b_enc"][:-1]})
    refused(tmp_path / "p.npz", f"{D_SAE} numbers")
    np.savez(tmp_path / "p.npz", **w | {"b_dec": np.full(D_MODEL, np.nan, np.float32)})
    refused(tmp_path / "p.npz", "b_dec", "finite")
