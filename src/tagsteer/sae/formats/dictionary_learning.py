"""dictionary_learning: config.json (trainer.dict_class) and ae.pt, a plain state dict, read with
weights_only.

AutoEncoder: relu((x - bias) @ encoder.weight.T + encoder.bias); AutoEncoderTopK, BatchTopKSAE and
MatryoshkaBatchTopKSAE subtract b_dec, the latter two fire above one threshold; GatedAutoEncoder subtracts
decoder_bias; JumpReluAutoEncoder and AutoEncoderNew subtract nothing (dictionary_learning/dictionary.py and
trainers/*.py). Weights are saved in the model's units: its trainer scales the biases back before saving.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Files
from tagsteer.sae.formats.sites import Site, read_site
from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.sae")

FORMAT = "dictionary_learning"
_THRESHOLD_CLASSES = (
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "MatroyshkaBatchTopKSAE",
)  # the second typo is theirs
_CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    *_THRESHOLD_CLASSES,
)
# A state dict alone tells these apart; TopK and BatchTopK have the same tensors and need their config.json.
_TELLING = {
    "AutoEncoder": {"bias", "encoder.weight", "encoder.bias", "decoder.weight"},
    "AutoEncoderNew": {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"},
    "GatedAutoEncoder": {
        "decoder_bias",
        "encoder.weight",
        "r_mag",
        "gate_bias",
        "mag_bias",
        "decoder.weight",
    },
    "MatryoshkaBatchTopKSAE": {"k", "threshold", "group_sizes", "W_enc", "b_enc", "W_dec", "b_dec"},
}


def recognises(files: Files) -> bool:
    return (
        _trainer(files) is not None
        or set(files.arrays) in _TELLING.values()
        or {"k", "b_dec"} <= set(files.arrays)
    )


def load(files: Files, request: Request) -> SAE:
    """An SAE of dictionary_learning; unknown classes and a missing BatchTopK threshold are refused by name."""
    trainer = _trainer(files) or {}
    name = trainer.get("dict_class") or next(
        (c for c, keys in _TELLING.items() if keys == set(files.arrays)), None
    )
    if name is None:
        raise TagsteerError(
            f"{files.weights} needs its config.json: the tensors alone do not tell TopK from BatchTopK"
        )
    if name not in _CLASSES:
        raise one_of(name, list(_CLASSES), "dict_class of dictionary_learning")
    linear = "encoder.weight" in files.arrays
    parts: dict[str, Any] = {"enc_rows": linear, "dec_columns": linear, "subtract_b_dec": True}
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}.get(
        name, "b_dec"
    )
    kind = "relu"
    if name == "GatedAutoEncoder":
        kind, parts["b_mag"] = "gated", files.need("mag_bias")
        parts["b_enc"], parts["gain"] = (
            files.need("gate_bias"),
            torch.as_tensor(files.need("r_mag")).double().exp(),
        )
    else:
        parts["b_enc"] = files.need("encoder.bias" if linear else "b_enc")
    if name in ("JumpReluAutoEncoder", "AutoEncoderNew"):
        parts["subtract_b_dec"] = False
    if name == "JumpReluAutoEncoder":
        kind, parts["threshold"] = "jumprelu", files.need("threshold")
    if name == "AutoEncoderTopK":
        kind, parts["k"] = "topk", int(files.arrays.get("k", trainer.get("k")))  # type: ignore[arg-type]
    if name in _THRESHOLD_CLASSES:
        kind, parts["threshold"] = "jumprelu", _one_threshold(files)
    model = trainer.get("lm_name")
    return assemble(
        Raw(
            FORMAT, files.name, kind,
            files.need("encoder.weight" if linear else "W_enc"),
            files.need("decoder.weight" if linear else "W_dec"),
            files.need(bias), site=_site(trainer), card={"model": model} if model else {}, **parts,
        ),
        request,
    )  # fmt: skip


def _one_threshold(files: Files) -> float:
    """The scalar above which latents fire; -1 is the library's mark for "not estimated yet"."""
    value = float(files.need("threshold"))
    if value < 0:
        raise TagsteerError(
            f"{files.name} is a BatchTopK SAE without a threshold ({value:g}): what fires would depend on the "
            "batch; train past threshold_start_step or set the tensor `threshold`"
        )
    return value


def _site(trainer: dict[str, Any]) -> Site:
    """Layer of the trainer; a submodule other than resid_post_* or a layer is not the residual stream."""
    site = read_site(trainer.get("submodule_name"))
    if site.assumed or (site.hook.startswith("resid_post") and site.layer is None):
        return Site(layer=trainer.get("layer"), assumed=site.assumed)
    return site


def _trainer(files: Files) -> dict[str, Any] | None:
    config = files.config_with("trainer") or {}
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, dict) and "dict_class" in trainer else None
