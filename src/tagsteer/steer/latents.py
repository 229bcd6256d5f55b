"""The few rows and columns of an SAE that an engine needs, on the device of the residual stream.

Must not know text, labels or what is done with the latents. Clamping feature i needs column i of W_enc and row i
of W_dec; only topk kinds, whose activations depend on one another, need the whole encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.steer")

# Elements of one [tokens, d_sae] block when a whole topk encoder runs: 256 MB in float32.
_BLOCK = 2**26


class Latents:
    """Selected latents of `sae`, and named vectors [d_model] that can be added beside them."""

    def __init__(self, sae: SAE | None, vectors: Mapping[str, torch.Tensor] | None = None) -> None:
        self.sae = sae
        self.vectors = dict(vectors or {})
        self._encoders: dict[tuple[torch.device, torch.dtype], SAE] = {}
        if sae is not None and sae.kind == "batchtopk":
            raise TagsteerError(
                "a batchtopk SAE without a threshold gives each token an activation that depends on its batch: "
                "save it as jumprelu with its trained threshold, then steer with that"
            )

    def check(self, features: Iterable[int | str]) -> None:
        """Raise TagsteerError for a feature that the SAE or the table of vectors does not have."""
        for name in features:
            if isinstance(name, str):
                if name not in self.vectors:
                    known = ", ".join(sorted(self.vectors)[:5]) or "none were given"
                    raise TagsteerError(
                        f"no vector is called {name!r} (known: {known}): pass it in vectors={{...}}"
                    )
            elif self.sae is None:
                raise TagsteerError(f"feature {name} is steered but no SAE was given: pass sae=load_sae(...)")
            else:
                self.sae.row(name)

    def encoder(self, features: Sequence[int], device: torch.device, dtype: torch.dtype) -> SAE:
        """An SAE whose `encode` returns exactly these latents, in this order, on `device` in `dtype`."""
        assert self.sae is not None
        if not self.sae.depends_on_all:
            return self.sae.select(features).to(device, dtype)
        place = (device, dtype)
        if place not in self._encoders:
            log.info(
                "%s: an activation of a %s SAE depends on all %d latents, so its whole encoder goes to %s (%.0f MB)",
                *(self.sae.source, self.sae.kind, self.sae.W_enc.shape[1], device),
                self.sae.W_enc.numel() * torch.finfo(dtype).bits / 8e6,
            )
            self._encoders[place] = self.sae.select(features).to(device, dtype)
        # Only W_dec differs between selections of a topk kind: take it anew, keep the encoder where it is.
        import dataclasses

        return dataclasses.replace(
            self._encoders[place],
            W_dec=self.decoder(features, device, dtype),
            features=torch.tensor(list(features), dtype=torch.int64, device=device),
        )

    def decoder(
        self, features: Sequence[int | str], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Directions of features and vectors, in order: [n, d_model] on `device` in `dtype`."""
        numbers = [name for name in features if not isinstance(name, str)]
        rows: dict[int | str, torch.Tensor] = {}
        if numbers:
            assert self.sae is not None
            index = torch.tensor([self.sae.row(i) for i in numbers], device=self.sae.W_dec.device)
            rows.update(zip(numbers, self.sae.W_dec[index].to(device, dtype), strict=True))
        rows.update(
            {name: self.vectors[name].to(device, dtype) for name in features if isinstance(name, str)}
        )
        return torch.stack([rows[name] for name in features])


def activations(encoder: SAE, x: torch.Tensor) -> torch.Tensor:
    """encoder.encode(x) for x [batch, positions, d_model], whole topk encoders in blocks of bounded memory."""
    if not encoder.depends_on_all:
        return encoder.encode(x)
    flat = x.reshape(-1, x.shape[-1])
    step = max(1, _BLOCK // encoder.W_enc.shape[1])
    return torch.cat([encoder.encode(part) for part in flat.split(step)]).reshape(*x.shape[:-1], -1)
