"""tagsteer's own format: a folder with sae.safetensors and card.json. What `SAE.save` writes.

card.json: {"format": "tagsteer-sae", "version": 1, kind, k, layer, hook, d_model, d_sae, input_norm, source, card}.
The tensors bear the names of the fields of `SAE`; matrices may be fp16 or bf16, vectors are float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tagsteer.errors import TagsteerError

FORMAT, VERSION = "tagsteer-sae", 1
_MATRICES = ("W_enc", "W_dec")
_VECTORS = ("b_enc", "b_dec", "threshold", "gain", "b_mag")


def save(sae: Any, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Write the SAE to `folder` (made if absent); each file appears whole or not at all."""
    from safetensors.torch import save_file

    if sae.W_enc.is_complex() or (dtype is not None and not dtype.is_floating_point):
        raise TagsteerError(f"cannot store an SAE as {dtype}: use float16, bfloat16 or float32")
    tensors = {name: getattr(sae, name).to("cpu", dtype or sae.dtype).contiguous() for name in _MATRICES}
    for name in _VECTORS:
        if (vector := getattr(sae, name)) is not None:
            # Vectors cost nothing, and a rounded threshold would move activations in and out.
            tensors[name] = vector.to("cpu", torch.promote_types(vector.dtype, torch.float32)).contiguous()
    if sae.features is not None:
        tensors["features"] = sae.features.to("cpu").contiguous()
    head = {"format": FORMAT, "version": VERSION}
    head |= {n: getattr(sae, n) for n in ("kind", "k", "layer", "hook", "d_model", "d_sae", "input_norm", "source", "card")}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "sae.safetensors.partial"
    save_file(tensors, partial)
    partial.replace(folder / "sae.safetensors")
    partial = folder / "card.json.partial"
    partial.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(folder / "card.json")
    return folder
