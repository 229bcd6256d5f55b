"""The layouts that keep torch's Linear weights, OpenMOSS and dictionary_learning, with their meaning in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.sae.layouts import (
    D_MODEL,
    D_SAE,
    Case,
    Encode,
    K,
    relu,
    top_k,
    weights,
    write_json,
    write_pt,
    write_safetensors,
)


def llama_scope(folder: Path, decoder_norm: bool = True, norm: float = 6.3125, **options) -> Case:
    """hyperparams.json and checkpoints/final.safetensors with one threshold.

    The reference runs OpenMOSS's own steps for inference: weights to the model's units, decoder columns to
    unit norm, one threshold; only then are activations brought back to the units of the normalised input.
    """
    w = weights(5)
    threshold = 0.2021484375
    write_safetensors(
        folder / "checkpoints/final.safetensors",
        {
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T,
            "decoder.bias": w["b_dec"],
        },
    )
    config = {
        "hook_point_in": "blocks.8.hook_resid_post",
        "hook_point_out": "blocks.8.hook_resid_post",
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": D_SAE / D_MODEL,
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": threshold,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "sparsity_include_decoder_norm": decoder_norm,
        "use_glu_encoder": False,
        "top_k": 50,
    } | options
    write_json(folder / "hyperparams.json", config)
    v = {k: a.astype(np.float64) for k, a in w.items()}
    s = np.sqrt(D_MODEL) / norm
    n = np.linalg.norm(v["W_dec"], axis=1) if decoder_norm else np.ones(D_SAE)

    def encode(x: np.ndarray) -> np.ndarray:
        W, b = (
            v["W_enc"] * n,
            v["b_enc"] / s * n,
        )  # standardize_parameters_of_dataset_norm, transform_to_unit_decoder_norm
        pre = x @ W + b
        return np.where(pre > threshold, pre, 0) / n * s

    def decode(a: np.ndarray) -> np.ndarray:
        return (a @ v["W_dec"] + v["b_dec"]) / s

    return Case(folder, encode, decode, "jumprelu", 8)


def openmoss_trained_thresholds(folder: Path) -> Case:
    """config.json and sae_weights.safetensors, a log threshold per latent in the normalised input's units."""
    w = weights(6)
    norm = 9.0
    write_safetensors(
        folder / "sae_weights.safetensors",
        {
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T,
            "decoder.bias": w["b_dec"],
            "log_jumprelu_threshold": np.log(w["threshold"]),
            "dataset_average_activation_norm.in": np.float32(norm).reshape(()),
        },
    )
    write_json(
        folder / "config.json",
        {
            "sae_type": "sae",
            "hook_point_in": "blocks.15.hook_resid_post",
            "hook_point_out": "blocks.15.hook_resid_post",
            "d_model": D_MODEL,
            "act_fn": "jumprelu",
            "norm_activation": "dataset-wise",
            "sparsity_include_decoder_norm": True,
            "apply_decoder_bias_to_pre_encoder": True,
        },
    )
    v = {k: a.astype(np.float64) for k, a in w.items()}
    s, n = np.sqrt(D_MODEL) / norm, np.linalg.norm(v["W_dec"], axis=1)

    def encode(x: np.ndarray) -> np.ndarray:
        pre = (x * s - v["b_dec"]) @ v["W_enc"] + v["b_enc"]
        return pre * (pre * n > v["threshold"])

    return Case(folder, encode, lambda a: (a @ v["W_dec"] + v["b_dec"]) / s, "jumprelu", 15)


def openmoss_topk(folder: Path) -> Case:
    """TopK by decoder-norm-weighted scores; activations carry the norm (unit decoder columns)."""
    case = llama_scope(folder, act_fn="topk", jump_relu_threshold=0.0, top_k=K)
    v = {k: a.astype(np.float64) for k, a in weights(5).items()}
    s, n = np.sqrt(D_MODEL) / 6.3125, np.linalg.norm(v["W_dec"], axis=1)
    return Case(
        folder,
        lambda x: top_k((x * s @ v["W_enc"] + v["b_enc"]) * n),
        lambda a: ((a / n) @ v["W_dec"] + v["b_dec"]) / s,
        "topk",
        case.layer,
    )


def dictionary_learning(folder: Path, name: str) -> Case:
    w = weights(7)
    v = {k: a.astype(np.float64) for k, a in w.items()}
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    own = {k: w[k] for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
    one = {"k": np.int32(K).reshape(()), "threshold": np.float32(1.5).reshape(())}
    centred = lambda x: (x - v["b_dec"]) @ v["W_enc"] + v["b_enc"]  # noqa: E731
    plain = lambda x: x @ v["W_enc"] + v["b_enc"]  # noqa: E731

    def gated(x: np.ndarray) -> np.ndarray:
        inner = (x - v["b_dec"]) @ v["W_enc"]
        return (inner + v["b_enc"] > 0) * relu(np.exp(v["r_mag"]) * inner + v["b_mag"])

    table: dict[str, tuple[dict, Encode, str]] = {
        "AutoEncoder": (linear | {"bias": w["b_dec"]}, lambda x: relu(centred(x)), "relu"),
        "AutoEncoderNew": (linear | {"decoder.bias": w["b_dec"]}, lambda x: relu(plain(x)), "relu"),
        "AutoEncoderTopK": (linear | one | {"b_dec": w["b_dec"]}, lambda x: top_k(relu(centred(x))), "topk"),
        "BatchTopKSAE": (
            linear | one | {"b_dec": w["b_dec"]},
            lambda x: relu(centred(x)) * (relu(centred(x)) > 1.5),
            "jumprelu",
        ),
        "MatryoshkaBatchTopKSAE": (
            own | one | {"group_sizes": np.array([10, D_SAE - 10])},
            lambda x: relu(centred(x)) * (relu(centred(x)) > 1.5),
            "jumprelu",
        ),
        "JumpReluAutoEncoder": (
            own | {"threshold": w["threshold"]},
            lambda x: relu(plain(x) * (plain(x) > v["threshold"])),
            "jumprelu",
        ),
        "GatedAutoEncoder": (
            {
                "encoder.weight": w["W_enc"].T,
                "decoder.weight": w["W_dec"].T,
                "decoder_bias": w["b_dec"],
                "r_mag": w["r_mag"],
                "gate_bias": w["b_enc"],
                "mag_bias": w["b_mag"],
            },
            gated,
            "gated",
        ),
    }
    tensors, encode, kind = table[name]
    write_pt(folder / "ae.pt", tensors)
    trainer = {
        "dict_class": name,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_8",
    }
    write_json(
        folder / "config.json", {"trainer": trainer | ({"k": K} if "k" in tensors else {}), "buffer": {}}
    )
    return Case(folder, encode, lambda a: a @ v["W_dec"] + v["b_dec"], kind, 8)
