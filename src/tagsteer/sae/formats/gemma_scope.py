"""Gemma Scope: params.npz with W_enc [d_model, d_sae], W_dec [d_sae, d_model], b_enc, b_dec, threshold.

a = pre where pre > threshold, else 0 (and never below 0), pre = x @ W_enc + b_enc; x is not centred. The file
says nothing else: the layer and the site come from the published repository's folders, where they are known.
https://huggingface.co/google/gemma-scope (Lieberum et al. 2024)
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from tagsteer.errors import TagsteerError
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Files
from tagsteer.sae.formats.sites import Site, layer_in_path
from tagsteer.sae.sae import SAE

FORMAT = "Gemma Scope"
_NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
# Repositories of the release: residual stream, MLP output, attention output, transcoders.
_REPOSITORY = re.compile(r"gemma-scope-(?P<size>\d+b)-(?P<tuning>pt|it)-(?P<site>res|mlp|att|transcoders)$")


def recognises(files: Files) -> bool:
    return all(name in files.arrays for name in _NEEDED) and not files.config_with("d_in")


def load(files: Files, request: Request) -> SAE:
    """A Gemma Scope JumpReLU SAE; transcoders and embedding SAEs are refused."""
    parts = (*PurePath(files.name).parts, *files.weights.parts)
    site, card = _from_path(parts, files.name)
    return assemble(
        Raw(
            *(FORMAT, files.name, "jumprelu", files.need("W_enc"), files.need("W_dec"), files.need("b_dec")),
            b_enc=files.need("b_enc"),
            threshold=files.need("threshold"),
            site=site,
            card=card,
        ),
        request,
    )


def _from_path(parts: tuple[str, ...], name: str) -> tuple[Site, dict[str, Any]]:
    """Site and card from .../gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz."""
    card: dict[str, Any] = {}
    if "embedding" in parts:
        raise TagsteerError(
            f"{name} is an embedding SAE: tagsteer steers the residual stream after a layer; take layer_N"
        )
    layer = layer_in_path(parts)
    if found := next((f for p in parts if (f := re.fullmatch(r"average_l0_(\d+)", p))), None):
        card["l0"] = float(found[1])
    # In the hub's cache the repository is a folder models--google--gemma-scope-2b-pt-res.
    found = next((f for p in parts if (f := _REPOSITORY.search(p.partition("@")[0]))), None)
    if found is None:
        return Site(layer=layer, assumed=True), card
    card["model"] = f"google/gemma-2-{found['size']}" + ("-it" if found["tuning"] == "it" else "")
    if found["site"] == "transcoders":
        raise TagsteerError(
            f"{name} is a transcoder, not an autoencoder: take a -res repository of Gemma Scope"
        )
    if found["site"] != "res":
        return Site({"mlp": "mlp_out", "att": "attn.hook_z"}[found["site"]]), card
    return Site(layer=layer), card
