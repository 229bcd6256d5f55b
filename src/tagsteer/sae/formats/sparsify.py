"""EleutherAI sparsify: layers.N/cfg.json and sae.safetensors (encoder.weight, encoder.bias, W_dec, b_dec).

encoder.weight and W_dec are both [d_sae, d_model]. a = top k of relu((x - b_dec) @ encoder.weight.T + bias),
x̂ = a @ W_dec + b_dec (sparsify/sparse_coder.py, fused_encoder.py). The folder's name is the hook point.
"""

from __future__ import annotations

from pathlib import PurePath

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae.formats.assemble import Raw, Request, assemble
from tagsteer.sae.formats.files import Files
from tagsteer.sae.formats.sites import Site, read_site
from tagsteer.sae.sae import SAE

FORMAT = "sparsify"


def recognises(files: Files) -> bool:
    return (
        "encoder.weight" in files.arrays
        and "W_dec" in files.arrays
        and files.config_with("d_in", "k") is not None
    )


def load(files: Files, request: Request) -> SAE:
    """A TopK SAE of sparsify; transcoders, groupmax and signed activations are refused by name."""
    config = files.config_with("d_in", "k") or {}
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in files.arrays:
        raise TagsteerError(
            f"{files.name} is a transcoder (transcode or skip_connection in cfg.json), not an autoencoder"
        )
    if config.get("signed"):
        raise TagsteerError(
            f"{files.name} has signed activations: tagsteer reads SAEs whose activations are >= 0"
        )
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise one_of(activation, ["topk"], "activation of sparsify")
    run = files.config_with("model", "dataset") or {}
    return assemble(
        Raw(
            *(
                FORMAT,
                files.name,
                "topk",
                files.need("encoder.weight"),
                files.need("W_dec"),
                files.need("b_dec"),
            ),
            b_enc=files.need("encoder.bias"),
            enc_rows=True,
            k=int(config["k"]),
            subtract_b_dec=True,
            site=_site(files),
            card={"model": run["model"]} if run else {},
        ),
        request,
    )


def _site(files: Files) -> Site:
    """Hook point from the folder's name: "layers.5" is the layer's output, "layers.5.mlp" is not."""
    for name in (files.weights.parent.name, *reversed(PurePath(files.name).parts)):
        if name.startswith(("layers.", "h.")) or name == "embed_tokens":
            return read_site(name)
    return Site(assumed=True)
