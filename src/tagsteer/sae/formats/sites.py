"""Where in a model an SAE reads: from the formats' names to (hook, layer of the residual stream)."""

from __future__ import annotations

import re
from dataclasses import dataclass

RESIDUAL = "resid_post"


@dataclass(frozen=True)
class Site:
    """`hook` is "resid_post" with the layer whose output is read, or another point's name, without layer."""

    hook: str = RESIDUAL
    layer: int | None = None
    assumed: bool = False
    """Whether the file does not say and the residual stream was assumed."""


def read_site(name: str | None) -> Site:
    """Site of a hook name: TransformerLens' "blocks.7.hook_resid_post", sparsify's "layers.7" and the like.

    The residual before layer n is the one after layer n - 1. A name of anything else becomes the hook as it
    is.
    """
    if not name:
        return Site(assumed=True)
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", name):
        return Site(layer=int(found[1]))
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", name):
        before = int(found[1]) - 1
        return Site(layer=before) if before >= 0 else Site(hook=name)
    # The output of a whole decoder layer, by the module paths of transformers' families.
    if found := re.fullmatch(
        r"(?:(?:model|gpt_neox|transformer|decoder)\.)*(?:layers|h)\.(\d+)(?:\.output)?", name
    ):
        return Site(layer=int(found[1]))
    if found := re.fullmatch(r"resid_post(?:_layer)?_(\d+)", name):
        return Site(layer=int(found[1]))
    return Site(hook=name)


def layer_in_path(parts: tuple[str, ...]) -> int | None:
    """The layer in path parts like "layer_20" or "layer_20_width_16k_l0_small", deepest part first."""
    for part in reversed(parts):
        if found := re.match(r"layer_(\d+)(?:_|$)", part):
            return int(found[1])
    return None
