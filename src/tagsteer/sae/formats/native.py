"""tagsteer's own format: a folder with sae.safetensors and card.json. What `SAE.save` writes.

card.json: {"format": "tagsteer-sae", "version": 1, kind, k, layer, hook, d_model, d_sae, input_norm, source,
card}. The tensors bear the names of the fields of `SAE`; matrices may be fp16 or bf16, vectors are float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tagsteer.errors import TagsteerError
from tagsteer.files import as_others_are
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Files
from tagsteer.sae.formats.sites import Site
from tagsteer.sae.sae import SAE

FORMAT, VERSION = "tagsteer-sae", 1
_MATRICES = ("W_enc", "W_dec")
_VECTORS = ("b_enc", "b_dec", "threshold", "gain", "b_mag")


def save(sae: SAE, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Write the SAE to `folder` (made if absent); each file appears whole or not at all."""
    from safetensors.torch import save_file

    if dtype is not None and not dtype.is_floating_point:
        raise TagsteerError(f"cannot store an SAE as {dtype}: use float16, bfloat16 or float32")
    # Copies: tied matrices share memory, which safetensors refuses.
    tensors = {
        name: getattr(sae, name).to("cpu", dtype or sae.dtype).clone().contiguous() for name in _MATRICES
    }
    for name in _VECTORS:
        if (vector := getattr(sae, name)) is not None:
            # Vectors cost nothing, and a rounded threshold would move activations in and out.
            tensors[name] = vector.to("cpu", torch.promote_types(vector.dtype, torch.float32)).contiguous()
    if sae.features is not None:
        tensors["features"] = sae.features.to("cpu").contiguous()
    head = {"format": FORMAT, "version": VERSION}
    head |= {
        n: getattr(sae, n)
        for n in ("kind", "k", "layer", "hook", "d_model", "d_sae", "input_norm", "source", "card")
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "sae.safetensors.partial"
    save_file(tensors, partial)
    as_others_are(partial).replace(folder / "sae.safetensors")
    partial = folder / "card.json.partial"
    partial.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(folder / "card.json")
    return folder


def recognises(files: Files) -> bool:
    return _card(files) is not None


def load(files: Files, request: Request) -> SAE:
    """The saved SAE; the layer, source and card are those of the file."""
    head = _card(files) or {}
    if head.get("version") != VERSION:
        raise TagsteerError(
            f"{files.weights.parent}/card.json has version {head.get('version')!r}: update tagsteer"
        )
    stored = files.arrays.get("features")
    raw = Raw(
        *(
            FORMAT,
            files.name,
            head.get("kind", "?"),
            files.need("W_enc"),
            files.need("W_dec"),
            files.need("b_dec"),
        ),
        b_enc=files.need("b_enc"),
        threshold=files.arrays.get("threshold"),
        gain=files.arrays.get("gain"),
        b_mag=files.arrays.get("b_mag"),
        k=head.get("k"),
        input_norm=head.get("input_norm"),
        site=Site(head.get("hook", "resid_post"), head.get("layer")),
        card=head.get("card", {}),
    )
    if stored is None:
        return assemble(raw, request)
    return _selected(raw, torch.as_tensor(stored), head["d_sae"], request)


def _selected(raw: Raw, features: torch.Tensor, width: int, request: Request) -> SAE:
    """An SAE that was saved after `select`: its W_dec has fewer rows than it has latents."""
    tensors = {n: getattr(raw, n) for n in (*_MATRICES, *_VECTORS)}
    placed = {
        n: torch.as_tensor(t).to(request.device, request.dtype) for n, t in tensors.items() if t is not None
    }
    layer = raw.site.layer if request.layer is None else request.layer
    sae = SAE(
        raw.kind, **placed, k=raw.k, layer=layer, hook=raw.site.hook, source=raw.source, card=raw.card,
        features=features.clone().to(request.device), width=width, input_norm=raw.input_norm,
    )  # fmt: skip
    return sae if request.features is None else sae.select(request.features)


def _card(files: Files) -> dict[str, Any] | None:
    return next((c for c in files.configs.values() if c.get("format") == FORMAT), None)
