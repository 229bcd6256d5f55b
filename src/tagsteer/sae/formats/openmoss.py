"""Llama Scope and other SAEs of OpenMOSS: hyperparams.json (or config.json) and encoder/decoder in torch's
layout.

encoder.weight [d_sae, d_model], decoder.weight [d_model, d_sae]. The encoder sees x_n = x · √d_model / norm
with `dataset_average_activation_norm`, and the decoder gives x̂_n. With `sparsity_include_decoder_norm` a
latent fires by pre · ‖its decoder column‖. OpenMOSS first brings weights into the model's units (b_enc /
scale), then the columns to unit norm, and then applies the one `jump_relu_threshold` of hyperparams.json
(lm_saes/initializer.py, state "inference"): so that number is in the model's units, and in x_n's units it is
multiplied by scale. A `log_jumprelu_threshold` per latent was trained on x_n and is in its units.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Array, Files
from tagsteer.sae.formats.sites import read_site
from tagsteer.sae.sae import SAE

FORMAT = "OpenMOSS"
_NORM = "dataset_average_activation_norm"
_LOG_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


def recognises(files: Files) -> bool:
    return files.config_with("hook_point_in", "d_model") is not None and any(
        name in files.arrays for name in ("encoder.weight", "W_E")
    )


def load(files: Files, request: Request) -> SAE:
    """An SAE of OpenMOSS; transcoders, GLU encoders, attention SAEs, batch-wise norms are refused by name."""
    config = files.config_with("hook_point_in", "d_model") or {}
    point_in, point_out = config["hook_point_in"], config.get("hook_point_out", config["hook_point_in"])
    if point_in != point_out or config.get("sae_type", "sae") != "sae":
        raise TagsteerError(
            f"{files.name} is a {config.get('sae_type', 'transcoder')} from {point_in} to "
            f"{point_out}, not an SAE"
        )
    if config.get("use_glu_encoder"):
        raise TagsteerError(f"{files.name} has use_glu_encoder: tagsteer reads SAEs with one linear encoder")
    linear = "encoder.weight" in files.arrays
    scale, input_norm = _normalisation(files, config, request)
    by_norm = bool(config.get("sparsity_include_decoder_norm"))
    kind, threshold, k = _activation(files, config, scale)
    return assemble(
        Raw(
            FORMAT, files.name, kind,
            files.need("encoder.weight" if linear else "W_E"),
            files.need("decoder.weight" if linear else "W_D"),
            files.arrays.get("decoder.bias" if linear else "b_D"),
            b_enc=files.need("encoder.bias" if linear else "b_E"),
            enc_rows=linear, dec_columns=linear,
            threshold=threshold, k=k,
            subtract_b_dec=bool(config.get("apply_decoder_bias_to_pre_encoder")),
            norm_fold=by_norm and kind == "topk", threshold_over_norm=by_norm,
            scale=scale, input_norm=input_norm,
            site=read_site(point_in),
            card={"model": config["model_name"]} if config.get("model_name") else {},
        ),
        request,
    )  # fmt: skip


def _activation(
    files: Files, config: dict[str, Any], scale: float
) -> tuple[str, Array | float | None, int | None]:
    """(kind, threshold on x_n's pre-activations, k). TopK with a threshold acts as JumpReLU, as there."""
    name = str(config.get("act_fn", "?")).lower()
    given = float(config.get("jump_relu_threshold") or 0.0)
    if name == "relu":
        return "relu", None, None
    if name == "topk" and given <= 0:
        return "topk", None, int(config["top_k"])
    if name not in ("jumprelu", "topk", "batchtopk"):
        raise one_of(name, ["relu", "jumprelu", "topk", "batchtopk"], "act_fn of OpenMOSS")
    trained = next((files.arrays[n] for n in _LOG_THRESHOLDS if n in files.arrays), None)
    if trained is not None:
        return "jumprelu", torch.as_tensor(trained).double().exp(), None
    if given <= 0:
        raise TagsteerError(
            f"{files.name} is a {name} SAE without a threshold: what fires would depend on the batch; "
            "set jump_relu_threshold in its hyperparams.json"
        )
    return "jumprelu", given * scale, None


def _normalisation(files: Files, config: dict[str, Any], request: Request) -> tuple[float, str | None]:
    """(factor on x, per-token normalisation)."""
    how = config.get("norm_activation", "inference")
    if how == "inference":
        return 1.0, None
    if how == "token-wise":
        return 1.0, "constant_norm_rescale"
    if how != "dataset-wise":
        raise one_of(how, ["dataset-wise", "token-wise", "inference"], "norm_activation of OpenMOSS")
    if request.input_scale is not None:
        return request.input_scale, None
    norms = config.get(_NORM) or {}
    stored = files.arrays.get(f"{_NORM}.{config['hook_point_in']}", files.arrays.get(f"{_NORM}.in"))
    norm = norms.get("in", norms.get(config["hook_point_in"])) if stored is None else float(stored)
    if not norm or not norm > 0:
        raise TagsteerError(
            f"{files.name} normalises by a data set's mean norm but has no {_NORM}: pass input_scale="
        )
    return math.sqrt(config["d_model"]) / norm, None
