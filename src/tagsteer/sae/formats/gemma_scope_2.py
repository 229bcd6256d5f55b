"""Gemma Scope 2: config.json and params.safetensors with lower-case names w_enc, w_dec, b_enc, b_dec,
threshold.

The same JumpReLU as Gemma Scope, x not centred. config.json: hf_hook_point_in and hf_hook_point_out
("model.layers.12.output"), model_name, width, l0, architecture "jump_relu", type, affine_connection.
https://huggingface.co/google/gemma-scope-2
"""

from __future__ import annotations

from pathlib import PurePath

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Files
from tagsteer.sae.formats.sites import Site, layer_in_path, read_site
from tagsteer.sae.sae import SAE

FORMAT = "Gemma Scope 2"
_NEEDED = ("w_enc", "w_dec", "b_enc", "b_dec")
# The release's folders by site; the residual ones begin with resid_post.
_OTHER_SITES = ("attn_out", "mlp_out", "transcoder", "clt", "crosscoder")


def recognises(files: Files) -> bool:
    return all(name in files.arrays for name in _NEEDED)


def load(files: Files, request: Request) -> SAE:
    """A Gemma Scope 2 SAE; transcoders, crosscoders and skip connections are refused by name."""
    config = files.config_with("hf_hook_point_in") or {}
    kind = config.get("type", "sae")
    point_in = config.get("hf_hook_point_in")
    point_out = config.get("hf_hook_point_out") or point_in
    if kind != "sae" or point_out != point_in:
        raise TagsteerError(
            f"{files.name} is a {kind} from {point_in} to {point_out}, not an SAE of one place"
        )
    if config.get("affine_connection") or "affine_skip_connection" in files.arrays:
        raise TagsteerError(
            f"{files.name} has an affine skip connection: tagsteer reads plain SAEs; take a resid_post one"
        )
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise one_of(architecture, ["jump_relu"], f"architecture of {FORMAT}")
    card = {"model": config.get("model_name"), "l0": config.get("l0")}
    return assemble(
        Raw(
            *(FORMAT, files.name, "jumprelu", files.need("w_enc"), files.need("w_dec"), files.need("b_dec")),
            b_enc=files.need("b_enc"),
            threshold=files.need("threshold"),
            site=read_site(point_in) if point_in else _site_in_path(files),
            card={k: v for k, v in card.items() if v is not None},
        ),
        request,
    )


def _site_in_path(files: Files) -> Site:
    """Without config.json: the release's folder, as resid_post_all/layer_10_width_16k_l0_small."""
    parts = (*PurePath(files.name).parts, *files.weights.parts)
    other = next((p for p in parts if p.startswith(_OTHER_SITES)), None)
    if other:
        return Site(other)
    return Site(layer=layer_in_path(parts), assumed=not any(p.startswith("resid_post") for p in parts))
