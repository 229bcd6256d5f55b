"""`load_sae`: one string, whatever it names, to the one SAE type; says what it loaded and from where.

Resolves names only: embedded SAEs, local files, hub ids, SAELens' registry. The formats do the reading.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae import formats
from tagsteer.sae.formats.assemble import Request
from tagsteer.sae.formats.files import open_files
from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.sae")

EMBEDDED = "smollm2-135m-instruct"
_REGISTRY_PREFIX = "saelens:"
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_sae(
    name: str | Path = EMBEDDED,
    *,
    layer: int | None = None,
    features: Sequence[int] | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    converter: Callable[[Path], SAE] | None = None,
    input_scale: float | None = None,
) -> SAE:
    """Load an SAE by embedded name, hub id with its path, local folder or file, or "saelens:release/sae_id".

    `features` keeps (and, where the format allows, reads) only those latents. `layer` is for files that do
    not say theirs. `dtype` defaults to float32 everywhere: thresholds in bfloat16 move activations in and
    out. `converter` reads a local path of a format that is unknown here. `input_scale` is the factor on the
    input of SAEs that were trained on normalised activations and do not say by what. Raises TagsteerError for
    all that cannot be read exactly.
    """
    name = str(name)
    where, why = _device(device)
    request = Request(
        None if features is None else tuple(int(i) for i in features),
        where,
        _dtype(dtype),
        layer,
        input_scale,
    )
    if converter is not None:
        sae = _converted(name, converter, request)
    elif name.startswith(_REGISTRY_PREFIX):
        from tagsteer.sae.formats import saelens_registry

        sae = saelens_registry.load(name.removeprefix(_REGISTRY_PREFIX), request)
    else:
        sae = formats.load(open_files(_local_path(name), name), request)
    log.info("%s: %s (%s; format %s)", name, sae.describe(), why, sae.card.get("format", "tagsteer-sae"))
    if sae.input_norm:
        log.warning(
            "%s normalises each token (%s): activations are given in the model's units, that is, SAELens' values "
            "times the scale of the token",
            *(name, sae.input_norm),
        )
    return sae


def embedded_saes() -> dict[str, list[str]]:
    """Names of the shipped SAEs by model, the default one first."""
    found: dict[str, list[str]] = {}
    for model, entry in _index().items():
        below = _assets() / model
        there = (
            sorted(p.name for p in below.iterdir() if (p / "card.json").is_file()) if below.is_dir() else []
        )
        found[model] = sorted(there, key=lambda folder: folder != entry["default"])
    return found


def _assets() -> Path:
    return Path(str(resources.files("tagsteer.assets").joinpath("saes")))


def _index() -> dict[str, dict[str, Any]]:
    return tomllib.loads((_assets() / "index.toml").read_text("utf-8"))


def _local_path(name: str) -> Path:
    """Folder or file on this machine: an embedded SAE, the user's own, or the hub's cache after fetching."""
    model, _, folder = name.partition("/")
    index = _index()
    if model in index:
        folder = folder or index[model]["default"]
        path = _assets() / model / folder
        if path.is_dir():
            return path
        there = embedded_saes()[model]
        if not there:
            raise TagsteerError(
                f"this installation ships no SAE for {model}: reinstall tagsteer, or give a folder or hub id"
            )
        raise one_of(folder, there, f"embedded SAE of {model}")
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") < 1:
        raise TagsteerError(
            f"no SAE at {name!r}: give a folder, a .npz or .safetensors file, a hub id with its path like "
            "'google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71', 'saelens:release/sae_id', "
            "or one of "
            + ", ".join(f"{m}/{f}" for m, fs in embedded_saes().items() for f in fs or ["(none shipped)"])
        )
    from tagsteer.sae.hub import fetch

    return fetch(name)


def _converted(name: str, converter: Callable[[Path], SAE], request: Request) -> SAE:
    path = Path(name).expanduser()
    if not path.exists():
        raise TagsteerError(f"converter= reads local files, and there is nothing at {name!r}")
    sae = converter(path)
    if not isinstance(sae, SAE):
        raise TagsteerError(
            f"the converter returned {type(sae).__name__}: it must return a tagsteer.sae.sae.SAE"
        )
    sae = sae if request.features is None else sae.select(request.features)
    sae = sae.to(request.device, request.dtype)
    if request.layer is not None:
        import dataclasses

        sae = dataclasses.replace(sae, layer=request.layer)
    return sae


def _device(device: str) -> tuple[torch.device, str]:
    """Where the weights go, and why; CUDA, then MPS, then the CPU."""
    if device != "auto":
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise TagsteerError(
                f"device {device!r} was asked for but torch sees no CUDA device; use device='cpu'"
            )
        try:
            return torch.device(device), "device asked for"
        except RuntimeError as error:
            raise TagsteerError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda' or 'mps'") from error
    if torch.cuda.is_available():
        return torch.device("cuda"), "CUDA found"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "no CUDA, MPS found"
    return torch.device("cpu"), "no CUDA and no MPS"


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "auto"):
        return torch.float32
    if dtype not in _DTYPES:
        raise one_of(dtype, list(_DTYPES), "dtype")
    return _DTYPES[str(dtype)]
