"""Small SAEs written in each file layout, each with its own computation in numpy float64.

Every reference is written from the format's documented semantics, in the format's own terms and units, and
knows nothing of how tagsteer folds things.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

D_MODEL, D_SAE, K = 12, 40, 5
Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A layout: how its files are written, and what they mean."""

    path: Path
    encode: Encode
    decode: Encode
    kind: str
    layer: int | None
    hook: str = "resid_post"
    kwargs: dict = field(default_factory=dict)
    """Arguments of load_sae beside the path."""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights with decoder rows of unequal norms and offsets that matter."""
    rng = np.random.default_rng(seed)
    return {
        "W_enc": rng.normal(size=(D_MODEL, D_SAE)).astype(np.float32),
        "W_dec": (rng.normal(size=(D_SAE, D_MODEL)) * rng.uniform(0.3, 2, size=(D_SAE, 1))).astype(
            np.float32
        ),
        "b_enc": rng.normal(size=D_SAE).astype(np.float32),
        "b_dec": (3 * rng.normal(size=D_MODEL)).astype(np.float32),
        "threshold": rng.uniform(0.2, 2.5, size=D_SAE).astype(np.float32),
        "r_mag": (0.5 * rng.normal(size=D_SAE)).astype(np.float32),
        "b_mag": rng.normal(size=D_SAE).astype(np.float32),
    }


def residuals(n: int = 64, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D_MODEL)) * 2 + 0.5


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def top_k(x: np.ndarray, k: int = K) -> np.ndarray:
    """The k largest entries of each row, 0 elsewhere; then never below 0."""
    kth = np.sort(x, axis=1)[:, -k][:, None]
    return relu(np.where(x >= kth, x, 0))


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_pt(path: Path, tensors: dict[str, np.ndarray]) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, path)


def _linear(w: dict[str, np.ndarray]) -> tuple[Encode, Encode]:
    w = {k: v.astype(np.float64) for k, v in w.items()}
    return (lambda x: x @ w["W_enc"] + w["b_enc"]), (lambda a: a @ w["W_dec"] + w["b_dec"])


def gemma_scope(folder: Path, compressed: bool = False) -> Case:
    w = weights()
    path = folder / "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz"
    path.parent.mkdir(parents=True)
    save = np.savez_compressed if compressed else np.savez
    save(path, **{k: w[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
    pre, decode = _linear(w)
    return Case(path, lambda x: relu(pre(x)) * (pre(x) > w["threshold"]), decode, "jumprelu", 20)


def gemma_scope_2(folder: Path) -> Case:
    w = weights(2)
    write_safetensors(
        folder / "params.safetensors",
        {k.lower(): w[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")},
    )
    write_json(
        folder / "config.json",
        {
            "hf_hook_point_in": "model.layers.12.output",
            "hf_hook_point_out": "model.layers.12.output",
            "width": D_SAE,
            "model_name": "google/gemma-3-1b-pt",
            "architecture": "jump_relu",
            "l0": 60,
            "affine_connection": False,
            "type": "sae",
        },
    )
    pre, decode = _linear(w)
    return Case(folder, lambda x: relu(pre(x)) * (pre(x) > w["threshold"]), decode, "jumprelu", 12)


def saelens(folder: Path, architecture: str, version: int = 6, **options) -> Case:
    """A SAELens folder; `options` go to its cfg.json, `scaler` to activation_scaler.json."""
    w = weights(3)
    scaler = options.pop("scaler", None)
    config = {
        "architecture": architecture,
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    } | options
    names = ["W_enc", "W_dec", "b_dec"]
    stored = {k: w[k] for k in names}
    if architecture == "gated":
        stored |= {"b_gate": w["b_enc"], "r_mag": w["r_mag"], "b_mag": w["b_mag"]}
    else:
        stored["b_enc"] = w["b_enc"]
    if architecture == "jumprelu":
        stored["threshold"] = w["threshold"]
    if architecture == "topk":
        config["k"] = K
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        config["k"], stored["topk_threshold"] = float(K), np.float64(1.25).reshape(())
    site = {"model_name": "gpt2-small", "hook_name": "blocks.7.hook_resid_post"}
    if version == 6:
        config["metadata"] = site | {"sae_lens_version": "6.54.12"}
    else:  # everything on the top level, and topk is an activation of the standard architecture
        config |= site | {"hook_layer": 7, "activation_fn_str": "relu"}
        if architecture == "topk":
            config |= {
                "architecture": "standard",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
            }
            del config["k"]
    write_safetensors(folder / "sae_weights.safetensors", stored)
    write_json(folder / "cfg.json", config)
    if scaler is not None:
        write_json(folder / "activation_scaler.json", {"scaling_factor": scaler})

    v = {k: a.astype(np.float64) for k, a in w.items()}
    norms = (
        np.linalg.norm(v["W_dec"], axis=1) if config.get("rescale_acts_by_decoder_norm") else np.ones(D_SAE)
    )
    factor = scaler or 1.0

    def inner(x: np.ndarray) -> np.ndarray:
        x = x * factor
        return x - v["b_dec"] if config["apply_b_dec_to_input"] else x

    def encode(x: np.ndarray) -> np.ndarray:
        pre = inner(x) @ v["W_enc"] + v["b_enc"]
        if architecture == "gated":
            magnitude = inner(x) @ (v["W_enc"] * np.exp(v["r_mag"])) + v["b_mag"]
            return (pre > 0) * relu(magnitude)
        if architecture == "topk":
            return top_k(pre * norms)
        if architecture == "jumprelu":
            return relu(pre) * (pre > v["threshold"])
        if architecture in ("batchtopk", "matryoshka_batchtopk"):
            return relu(pre * norms) * (pre * norms > 1.25)
        return relu(pre)

    def decode(a: np.ndarray) -> np.ndarray:
        return ((a / norms) @ v["W_dec"] + v["b_dec"]) / factor

    kind = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}.get(
        architecture, "jumprelu"
    )
    return Case(folder, encode, decode, kind, 7)


def sparsify(folder: Path) -> Case:
    w = weights(4)
    place = folder / "layers.5"
    write_safetensors(
        place / "sae.safetensors",
        {
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        },
    )
    write_json(
        place / "cfg.json",
        {
            "activation": "topk",
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": D_SAE,
            "k": K,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": D_MODEL,
        },
    )
    v = {k: a.astype(np.float64) for k, a in w.items()}
    _, decode = _linear(w)
    return Case(place, lambda x: top_k(relu((x - v["b_dec"]) @ v["W_enc"] + v["b_enc"])), decode, "topk", 5)
