"""SAELens folders: cfg.json and sae_weights.safetensors, versions up to 5 (flat) and 6 (`metadata`).

x_n = normalize_activations(x) - b_dec (if apply_b_dec_to_input); W_enc [d_model, d_sae], W_dec [d_sae,
d_model]. standard: relu; jumprelu: pre > threshold; topk: k largest; gated: (x_n @ W_enc + b_gate > 0) ·
relu(x_n @ (W_enc · exp(r_mag)) + b_mag). rescale_acts_by_decoder_norm: activations, and what is compared, are
pre · ‖W_dec row‖. Trained BatchTopK and Matryoshka SAEs are saved as jumprelu; their training checkpoints
carry `topk_threshold`. (sae_lens/saes/*.py, loading/pretrained_sae_loaders.py: handle_pre_6_0_config)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Array, Files
from tagsteer.sae.formats.sites import Site, read_site
from tagsteer.sae.sae import INPUT_NORMS, SAE

FORMAT = "SAELens"
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_KINDS = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"} | dict.fromkeys(
    _BATCH, "jumprelu"
)
_MARKS = ("architecture", "metadata", "hook_name", "hook_point", "activation_fn_str", "sae_lens_version")


def recognises(files: Files) -> bool:
    return _config(files) is not None and "W_dec" in files.arrays


def load(files: Files, request: Request) -> SAE:
    """An SAE from a SAELens folder; other architectures and options are refused by name."""
    scaler = files.config_with("scaling_factor") or {}
    return from_state(_config(files) or {}, files.arrays, files.name, request, scaler.get("scaling_factor"))


def from_state(
    config: dict[str, Any],
    state: Mapping[str, Array],
    source: str,
    request: Request,
    factor: float | None = None,
) -> SAE:
    """The same from a config and state dict; `factor` is the norm factor of "expected_average_only_in"."""
    config = {**config, **(config.get("metadata") or {})}
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    options = config.get("activation_fn_kwargs") or {}
    name = "topk" if function == "topk" else config.get("architecture", "standard")
    if name not in _KINDS:
        raise one_of(name, sorted(_KINDS), f"SAELens architecture of {source}")
    if function not in ("relu", "topk"):
        raise one_of(function, ["relu", "topk"], f"SAELens activation_fn of {source}")
    _refuse(config, state, source)
    scale, input_norm = _normalisation(
        config, source, factor if request.input_scale is None else request.input_scale
    )
    hook = config.get("hook_name") or config.get("hook_point")
    card = {"model": config.get("model_name"), "neuronpedia": config.get("neuronpedia_id")}
    parts: dict[str, Any] = {"b_enc": state.get("b_enc")}
    if name == "gated":
        parts = {
            "b_enc": state["b_gate"],
            "b_mag": state["b_mag"],
            "gain": torch.as_tensor(state["r_mag"]).double().exp(),
        }
    elif name == "topk":
        parts["k"] = int(config.get("k") or options["k"])
    elif _KINDS[name] == "jumprelu":
        parts["threshold"] = _threshold(name, state, source)
    return assemble(
        Raw(
            *(FORMAT, source, _KINDS[name], state["W_enc"], state["W_dec"], state["b_dec"]),
            **parts,
            subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
            norm_fold=bool(config.get("rescale_acts_by_decoder_norm")) and name in ("topk", *_BATCH),
            scale=scale,
            input_norm=input_norm,
            site=Site("attn.hook_z") if _is_hook_z(config, hook) else read_site(hook),
            card={k: v for k, v in card.items() if v is not None},
        ),
        request,
    )


def _threshold(name: str, state: Mapping[str, Array], source: str) -> Array:
    if name in _BATCH and "threshold" not in state:
        if "topk_threshold" not in state:
            raise TagsteerError(
                f"{source}: a {name} SAE without topk_threshold fires by the batch; save it for inference"
            )
        return state["topk_threshold"]
    if "threshold" not in state and "log_threshold" in state:  # training checkpoints of version 6
        return torch.as_tensor(state["log_threshold"]).double().exp()
    if "threshold" not in state:
        raise TagsteerError(
            f"{source} lacks the tensor 'threshold' of a jumprelu SAE; it holds {', '.join(sorted(state))}"
        )
    return state["threshold"]


def _refuse(config: dict[str, Any], state: Mapping[str, Array], source: str) -> None:
    """Options that change what is computed and that tagsteer does not have."""
    for name in ("W_skip", "finetuning_scaling_factor", "scaling_factor"):
        if name in state and not (name != "W_skip" and bool((torch.as_tensor(state[name]) == 1).all())):
            raise TagsteerError(
                f"{source} has the tensor {name}, which tagsteer does not read; merge it into W_dec first"
            )
    if config.get("hook_name_out") not in (None, config.get("hook_name")):
        raise TagsteerError(
            f"{source} maps {config.get('hook_name')} to {config['hook_name_out']}: a transcoder, not an SAE"
        )
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise one_of(reshape, ["none", "hook_z"], "SAELens reshape_activations")


def _normalisation(config: dict[str, Any], source: str, factor: float | None) -> tuple[float, str | None]:
    """(factor on x, per-token normalisation)."""
    how = config.get("normalize_activations") or "none"
    how = "expected_average_only_in" if how is True else how  # before version 2 it was a bool
    if how == "none":
        return 1.0, None
    if how in INPUT_NORMS:
        return 1.0, how
    if how != "expected_average_only_in":
        raise one_of(
            how,
            ["none", "expected_average_only_in", *INPUT_NORMS],
            f"SAELens normalize_activations of {source}",
        )
    factor = factor or config.get("norm_scaling_factor")
    if not factor:
        raise TagsteerError(
            f"{source} was trained on inputs scaled by √d_model / mean norm, and its files do not say "
            "the factor: pass input_scale=, or take it from the registry with 'saelens:release/sae_id'"
        )
    return float(factor), None


def _is_hook_z(config: dict[str, Any], hook: str | None) -> bool:
    return config.get("reshape_activations") == "hook_z" or bool(hook and hook.endswith("hook_z"))


def _config(files: Files) -> dict[str, Any] | None:
    return next((c for c in files.configs.values() if "d_in" in c and any(m in c for m in _MARKS)), None)
