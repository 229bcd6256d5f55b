"""From a format's raw tensors to the one SAE type: pick latents, fold every scaling into the weights, cast.

What a format file says in `Raw` is about normalised input x_n = scale · x; what comes out is about x itself:
W_enc · scale, W_dec / scale, b_dec / scale, activations unchanged. Knows the algebra, no file layout.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae.formats.files import Array, pick
from tagsteer.sae.formats.sites import RESIDUAL, Site
from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.sae")


@dataclass(frozen=True)
class Request:
    """What the caller of `load_sae` asked for."""

    features: tuple[int, ...] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    layer: int | None = None
    input_scale: float | None = None
    """Factor on the input, for files that normalise by a data set's mean norm without saying which."""


@dataclass(frozen=True)
class Raw:
    """An SAE as its file has it; its encoder sees x_n = scale · x, minus b_dec if `subtract_b_dec`."""

    format: str
    source: str
    kind: str
    W_enc: Array
    """[d_model, d_sae], or [d_sae, d_model] if `enc_rows` (torch's Linear layout)."""
    W_dec: Array
    """[d_sae, d_model], or [d_model, d_sae] if `dec_columns` (torch's Linear layout)."""
    b_dec: Array | None
    b_enc: Array | None = None
    enc_rows: bool = False
    dec_columns: bool = False
    threshold: Array | float | None = None
    k: int | None = None
    gain: Array | None = None
    b_mag: Array | None = None
    subtract_b_dec: bool = False
    norm_fold: bool = False
    """Activations are multiplied by the decoder rows' norms; threshold and top k are about those."""
    threshold_over_norm: bool = False
    """A latent fires where pre · norm of its decoder row > threshold; the activation is pre itself."""
    scale: float = 1.0
    input_norm: str | None = None
    site: Site = field(default_factory=Site)
    card: dict[str, Any] = field(default_factory=dict)


def assemble(raw: Raw, request: Request) -> SAE:
    """The SAE in the model's own units; TagsteerError where shapes or options do not fit."""
    d_sae, d_model = _sizes(raw)
    ids = _ids(request.features, d_sae)
    all_columns = raw.kind in ("topk", "batchtopk")
    columns = None if all_columns else ids
    if all_columns and ids is not None:
        log.info(
            "%s: activations of a %s SAE depend on all latents, so the whole encoder stays",
            raw.source,
            raw.kind,
        )
    work = torch.promote_types(request.dtype, torch.float32)

    def vector(array: Array | float | None, size: int, wanted: np.ndarray | None) -> torch.Tensor | None:
        if array is None:
            return None
        if isinstance(array, float) or array.ndim == 0 or (array.ndim == 1 and len(array) == 1 < size):
            return torch.full((size if wanted is None else len(wanted),), float(array), dtype=work)
        if tuple(array.shape) != (size,):
            raise TagsteerError(
                f"{raw.source}: a vector of shape {list(array.shape)} where {size} numbers were wanted"
            )
        return pick(array, 0, wanted).to(work)

    W_enc = pick(raw.W_enc, 0 if raw.enc_rows else 1, columns).to(work)
    W_enc = (W_enc.T if raw.enc_rows else W_enc).contiguous()  # [d_model, columns]
    dec_axis = 1 if raw.dec_columns else 0
    # The top k of norm-weighted scores needs the norms of all rows.
    rows = None if all_columns and raw.norm_fold else ids
    W_dec = pick(raw.W_dec, dec_axis, rows).to(work)
    W_dec = (W_dec.T if raw.dec_columns else W_dec).contiguous()  # [rows, d_model]
    zeros = torch.zeros(W_enc.shape[1], dtype=work)
    b_enc = vector(raw.b_enc, d_sae, columns)
    b_enc = zeros if b_enc is None else b_enc
    b_dec = vector(raw.b_dec, d_model, None)
    b_dec = torch.zeros(d_model, dtype=work) if b_dec is None else b_dec
    threshold, gain, b_mag = (vector(a, d_sae, columns) for a in (raw.threshold, raw.gain, raw.b_mag))

    if raw.subtract_b_dec and bool(b_dec.any()):
        shift = _project(b_dec, W_enc)
        b_enc = b_enc - shift
        b_mag = b_mag - gain * shift if b_mag is not None and gain is not None else None
    if raw.norm_fold or raw.threshold_over_norm:
        norms = W_dec.norm(dim=1).clamp(min=1e-8)  # SAELens' floor, for latents without a decoder row
        if raw.threshold_over_norm and threshold is not None:
            threshold = threshold / norms
        if raw.norm_fold:
            W_enc, b_enc, W_dec = W_enc.mul_(norms), b_enc * norms, W_dec.div_(norms[:, None])
            b_mag = None if b_mag is None else b_mag * norms
    if rows is None and ids is not None:
        W_dec = W_dec[torch.from_numpy(ids)]
    if raw.scale != 1.0:
        W_enc, W_dec, b_dec = W_enc.mul_(raw.scale), W_dec.div_(raw.scale), b_dec / raw.scale

    for name, tensor in {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}.items():
        if not bool(torch.isfinite(tensor.sum())):
            raise TagsteerError(f"{raw.source}: {name} is not finite everywhere; fetch the file again")
    sae = SAE(
        kind=raw.kind,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        threshold=threshold,
        k=raw.k,
        layer=_layer(raw, request),
        hook=raw.site.hook,
        source=raw.source,
        card=raw.card,
        features=None if ids is None else torch.from_numpy(ids),
        width=None if ids is None else d_sae,
        gain=gain,
        b_mag=b_mag,
        input_norm=raw.input_norm,
    )
    return sae.to(request.device, request.dtype)


def _sizes(raw: Raw) -> tuple[int, int]:
    enc, dec = tuple(raw.W_enc.shape), tuple(raw.W_dec.shape)
    found = (enc if raw.enc_rows else enc[::-1]), (dec[::-1] if raw.dec_columns else dec)
    if len(enc) != 2 or found[0] != found[1]:
        raise TagsteerError(
            f"{raw.source}: encoder {list(enc)} and decoder {list(dec)} are no pair of a {raw.format} SAE"
        )
    return found[0][0], found[0][1]


def _ids(features: tuple[int, ...] | None, d_sae: int) -> np.ndarray | None:
    if features is None:
        return None
    wrong = next((i for i in features if not 0 <= i < d_sae), None)
    if wrong is not None:
        raise TagsteerError(f"feature {wrong} is out of range: this SAE has latents 0 to {d_sae - 1}")
    if not features or len(set(features)) != len(features):
        raise TagsteerError("features must name at least one latent, and each once")
    return np.asarray(features, dtype=np.int64)


def _project(b: torch.Tensor, W: torch.Tensor, chunk: int = 4096) -> torch.Tensor:
    """b @ W with float64 sums, a few columns at a time: large offsets cancel in here."""
    return torch.cat([(b.double() @ part.double()).to(W.dtype) for part in W.split(chunk, dim=1)])


def _layer(raw: Raw, request: Request) -> int | None:
    site = raw.site
    if site.hook != RESIDUAL:
        if request.layer is not None:
            raise TagsteerError(
                f"{raw.source} reads {site.hook}, so layer={request.layer} cannot hold: tagsteer reads and "
                "steers the residual stream after a layer; choose a residual SAE"
            )
        log.warning(
            "%s reads %s, not the residual stream: it encodes, but nothing can be steered by it",
            raw.source,
            site.hook,
        )
        return None
    if site.assumed:
        log.info("%s: the file names no hook, so the residual stream after a layer is assumed", raw.source)
    if request.layer is not None:
        if site.layer not in (None, request.layer):
            log.warning(
                "%s: layer %d asked for although the file says %d", raw.source, request.layer, site.layer
            )
        return request.layer
    if site.layer is None:
        log.warning("%s: the file does not say its layer; pass layer=", raw.source)
    return site.layer
