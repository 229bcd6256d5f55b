"""The one SAE type: frozen weights in the model's own activation units, whatever file they came from.

Knows weights only: no language model, no text, no file format (the loaders under formats/ build it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tagsteer.errors import TagsteerError, one_of

KINDS = ("relu", "jumprelu", "topk", "batchtopk", "gated")
INPUT_NORMS = ("layer_norm", "constant_norm_rescale")
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "gain", "b_mag")
_LAYER_NORM_EPS = 1e-5  # SAELens' constant


@dataclass(frozen=True, eq=False)
class SAE:
    """a = act(x @ W_enc + b_enc), x̂ = a @ W_dec + b_dec, with x the residual stream as the model has it.

    Kinds (pre = x @ W_enc + b_enc): relu a = max(pre, 0); jumprelu a = pre where pre > max(threshold, 0),
    else 0; topk a = max(pre, 0) on the k largest of a token, else 0; batchtopk the same on the k·tokens
    largest of the batch given (training only: no loader returns it, its results depend on the batch); gated a
    = max(gain · (x @ W_enc) + b_mag, 0) where pre > 0, else 0.

    Raises TagsteerError for shapes that do not fit together, unknown kinds, and missing parts of a kind.
    """

    kind: str
    W_enc: torch.Tensor
    """[d_model, d_sae]; after `select` only the kept columns, except for topk kinds: they need all."""
    b_enc: torch.Tensor
    """[columns of W_enc]; a subtraction of b_dec from the input is already folded in."""
    W_dec: torch.Tensor
    """[n_features, d_model], in the model's own units: adding s · W_dec[i] to x adds s of feature i."""
    b_dec: torch.Tensor
    """[d_model]."""
    threshold: torch.Tensor | None = None
    """[columns of W_enc], for jumprelu."""
    k: int | None = None
    """Active latents per token, for topk and batchtopk."""
    layer: int | None = None
    """Decoder layer whose output x is; None when the file does not say or x is no residual stream."""
    hook: str = "resid_post"
    source: str = "memory"
    card: dict[str, Any] = field(default_factory=dict)
    """What is said about the SAE, such as `model`, `l0`, `explained_variance`, `dead_share` on its data."""
    features: torch.Tensor | None = None
    """Original ids of the latents kept by `select`, int64 [n_features]; None when all are there."""
    width: int | None = None
    """Number of latents before `select`; None when all are there."""
    gain: torch.Tensor | None = None
    """[columns of W_enc], exp(r_mag) of the gated kind."""
    b_mag: torch.Tensor | None = None
    """[columns of W_enc], bias of the magnitudes of the gated kind."""
    input_norm: str | None = None
    """Normalisation of each token by its own statistics (cannot be folded into weights): see `encode`."""

    def __post_init__(self) -> None:
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                object.__setattr__(self, name, tensor.detach())
        if self.threshold is not None:
            # max(pre, 0) where pre > threshold: a negative threshold never binds.
            object.__setattr__(self, "threshold", self.threshold.clamp(min=0))
        self._check()

    def _check(self) -> None:
        if self.kind not in KINDS:
            raise one_of(self.kind, list(KINDS), "SAE kind")
        if self.input_norm is not None and self.input_norm not in INPUT_NORMS:
            raise one_of(self.input_norm, list(INPUT_NORMS), "input normalisation")
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2:
            raise TagsteerError(f"W_enc {_shape(self.W_enc)} and W_dec {_shape(self.W_dec)} must be matrices")
        d_model, columns = self.W_enc.shape
        rows = len(self.features) if self.features is not None else columns
        wanted = {"b_enc": (columns,), "W_dec": (rows, d_model), "b_dec": (d_model,)}
        wanted |= {"threshold": (columns,), "gain": (columns,), "b_mag": (columns,)}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise TagsteerError(
                    f"{name} has shape {_shape(tensor)}, wanted {list(shape)} beside W_enc "
                    f"{_shape(self.W_enc)}: the weights belong to different SAEs or are transposed"
                )
        needs = {"jumprelu": ("threshold",), "topk": ("k",), "batchtopk": ("k",), "gated": ("gain", "b_mag")}
        missing = [name for name in needs.get(self.kind, ()) if getattr(self, name) is None]
        if missing:
            raise TagsteerError(f"a {self.kind} SAE needs {' and '.join(missing)}")
        if self.k is not None and not 1 <= self.k <= columns:
            raise TagsteerError(f"k = {self.k} is out of range: this SAE has {columns} latents")

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents of the whole SAE, also after `select`."""
        return self.width if self.width is not None else self.W_enc.shape[1]

    @property
    def n_features(self) -> int:
        """Width of what `encode` returns: d_sae, or the number of latents kept by `select`."""
        return self.W_dec.shape[0]

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def depends_on_all(self) -> bool:
        """Whether an activation depends on all latents (topk kinds): `select` then keeps the whole encoder."""
        return self.kind in ("topk", "batchtopk")

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """x @ W_enc + b_enc of x [..., d_model] in any dtype: [..., columns of W_enc] in the SAE's dtype."""
        return self._preactivations(self._normalise(self._receive(x))[0])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [..., n_features] of residuals x [..., d_model], in the SAE's dtype, all >= 0.

        With `input_norm` each token is normalised first and its activations are multiplied by the scale taken
        out, so that a_i · W_dec[i] is in the model's units here too (SAELens' own values are a / scale).
        """
        normed, scale, _ = self._normalise(self._receive(x))
        a = self._activate(self._preactivations(normed))
        return a if scale is None else a.mul_(scale)

    def decode(self, a: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstruction [..., d_model] of a [..., n_features]; after `select` of the kept latents only.

        With `input_norm` the residuals x that were encoded are needed, for the scale and mean of each token.
        """
        a = a.to(self.dtype)
        if self.input_norm is None:
            return torch.addmm(self.b_dec, a.reshape(-1, self.n_features), self.W_dec).reshape(
                *a.shape[:-1], -1
            )
        if x is None:
            raise TagsteerError(
                f"this SAE normalises each token ({self.input_norm}): call decode(a, x) with the residuals"
            )
        _, scale, mean = self._normalise(self._receive(x))
        return a @ self.W_dec + scale * self.b_dec + mean

    def row(self, feature: int) -> int:
        """Position of a latent (by its original id) in `encode`'s output and W_dec; absent is an error."""
        feature = int(feature)
        if not 0 <= feature < self.d_sae:
            raise TagsteerError(
                f"feature {feature} is out of range: {self.source} has latents 0 to {self.d_sae - 1}"
            )
        if self.features is None:
            return feature
        found = torch.nonzero(self.features == feature)
        if not len(found):
            raise TagsteerError(
                f"feature {feature} was not kept by select(): load it with features=[..., {feature}]"
            )
        return int(found[0])

    def select(self, features: Sequence[int]) -> SAE:
        """Only these latents (original ids, in this order); topk kinds keep the whole encoder they need."""
        ids = [int(i) for i in features]
        if not ids:
            raise TagsteerError("select() got no feature: give at least one id")
        if len(set(ids)) != len(ids):
            raise TagsteerError(f"select() got feature {max(ids, key=ids.count)} twice: give each id once")
        rows = torch.tensor([self.row(i) for i in ids], device=self.device)
        kept: dict[str, Any] = {"W_dec": self.W_dec[rows]}
        if not self.depends_on_all:
            kept["W_enc"] = self.W_enc[:, rows].contiguous()
            for name in ("b_enc", "threshold", "gain", "b_mag"):
                tensor = getattr(self, name)
                kept[name] = None if tensor is None else tensor[rows]
        return dataclasses.replace(
            self, **kept, features=torch.tensor(ids, dtype=torch.int64, device=self.device), width=self.d_sae
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE elsewhere or in another precision."""
        moved = {
            name: tensor.to(device=device, dtype=dtype)
            for name in _TENSORS
            if (tensor := getattr(self, name)) is not None
        }
        if self.features is not None:
            moved["features"] = self.features.to(device=device)
        return dataclasses.replace(self, **moved)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write sae.safetensors (matrices in `dtype`) and card.json, which `load_sae(folder)` reads."""
        from tagsteer.sae.formats import native

        return native.save(self, Path(folder), dtype)

    def describe(self) -> str:
        """One line: kind, sizes, layer and hook, precision."""
        k = f" k={self.k}" if self.k is not None else ""
        kept = f", {self.n_features:,} latents kept" if self.features is not None else ""
        where = (
            f"{self.hook} of layer {self.layer}" if self.layer is not None else f"{self.hook}, layer unknown"
        )
        norm = f", input {self.input_norm}" if self.input_norm else ""
        size = f"d_model {self.d_model}, d_sae {self.d_sae:,}{kept}"
        precision = str(self.dtype).removeprefix("torch.")
        return f"{self.kind}{k} SAE, {size}, {where}{norm}, {precision} on {self.device}"

    __repr__ = describe

    def _receive(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.d_model:
            raise TagsteerError(
                f"residuals of width {x.shape[-1]} do not fit this SAE of d_model {self.d_model}: "
                "it is of another model"
            )
        if x.device != self.device:
            raise TagsteerError(
                f"residuals are on {x.device}, the SAE is on {self.device}: use sae.to({str(x.device)!r})"
            )
        return x.to(self.dtype)

    def _preactivations(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.b_enc, x.reshape(-1, self.d_model), self.W_enc).reshape(*x.shape[:-1], -1)

    def _normalise(self, x: torch.Tensor) -> tuple[torch.Tensor, Any, Any]:
        """(normalised x, scale [..., 1], mean [..., 1] or 0), so that x ≈ normalised · scale + mean."""
        if self.input_norm is None:
            return x, None, 0
        if self.input_norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_model**0.5
            return x / scale, scale, 0
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        scale = centred.std(dim=-1, keepdim=True)  # with n - 1, as SAELens computes it
        return centred / (scale + _LAYER_NORM_EPS), scale, mean

    def _activate(self, pre: torch.Tensor) -> torch.Tensor:
        """Activations from pre-activations, which are overwritten: [..., columns] to [..., n_features]."""
        # What a kind needs was checked at construction; the asserts below tell the type checker so.
        if self.kind == "relu":
            return pre.relu_()
        if self.kind == "jumprelu":
            assert self.threshold is not None
            return pre.mul_(pre > self.threshold)
        if self.kind == "gated":
            assert self.gain is not None and self.b_mag is not None
            fires = pre > 0
            return pre.mul_(self.gain).add_(self.b_mag - self.gain * self.b_enc).relu_().mul_(fires)
        assert self.k is not None
        flat = pre if self.kind == "topk" else pre.reshape(-1)
        k = self.k if self.kind == "topk" else min(self.k * (pre.numel() // pre.shape[-1]), pre.numel())
        top = flat.topk(k, dim=-1, sorted=False)
        a = torch.zeros_like(flat).scatter_(-1, top.indices, top.values.relu()).reshape(pre.shape)
        return a if self.features is None else a[..., self.features]


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
