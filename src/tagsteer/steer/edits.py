"""Apply a batch of interventions to residuals: every row its own features, values and tokens, in three matmuls.

Knows tensors and latents; must not know the language model or text. With U the latents that any row of the batch
steers, a [batch, positions, U] their activations and M_op, V [batch, 1, U] the rows' masks and values,

    coefficients = w · (M_clamp (V − a) + M_if_active (a > 0) (V − a) + M_min max(0, V − a) + M_add V)
    x' = x + coefficients @ W_dec[U]

A row has zeros for the features of the others, so rows do not touch one another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tagsteer.steer.interventions import Intervention
from tagsteer.steer.latents import Latents, activations


class BatchEdit:
    """`edit(x, t)` for one batch whose row b gets interventions[b]; built anew when the rows change.

    Computed in float32 at least (float64 for float64 models) and returned in x's dtype: a row without an edit
    comes back bit for bit.
    """

    def __init__(self, latents: Latents, interventions: Sequence[Intervention], max_new_tokens: int) -> None:
        self._latents = latents
        self._interventions = list(interventions)
        terms = [term for intervention in interventions for term in intervention.terms]
        encoded = list(dict.fromkeys(term.feature for term in terms if term.operation != "addition"))
        added = list(dict.fromkeys(term.feature for term in terms if term.feature not in set(encoded)))
        self._encoded, self._columns = encoded, encoded + added
        self._steps = max_new_tokens
        self._place: tuple[torch.device, torch.dtype] | None = None

    @property
    def is_nothing(self) -> bool:
        return not self._columns

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Lay out masks, values and weights on the device where the residuals turned out to be."""
        self._place = (device, dtype)
        column = {name: u for u, name in enumerate(self._columns)}
        shape = (len(self._interventions), 1, len(self._columns))
        value = torch.zeros(shape, dtype=dtype)
        masks: dict[str, torch.Tensor] = {}
        for b, intervention in enumerate(self._interventions):
            for term in intervention.terms:
                u = column[term.feature]
                value[b, 0, u] = term.value
                masks.setdefault(term.operation, torch.zeros(shape, dtype=dtype))[b, 0, u] = 1
        n = len(self._encoded)
        # Constant part (addition) over all columns; the parts that need a over the first n only.
        self._added = (masks.pop("addition") * value).to(device) if "addition" in masks else None
        self._value = value[..., :n].to(device)
        self._masks = {name: mask[..., :n].to(device) for name, mask in masks.items()}
        self._encoder = self._latents.encoder([int(i) for i in self._encoded], device, dtype) if n else None
        self._decoder = self._latents.decoder(self._columns, device, dtype)
        self._weights = None
        if not all(intervention.always or not intervention.terms for intervention in self._interventions):
            rows = [[i.weight(t) for t in range(self._steps + 1)] for i in self._interventions]
            self._weights = torch.tensor(rows, dtype=dtype).to(device)  # [batch, steps + 1]

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x' for x [batch, positions, d_model]; t [batch, positions] counts the tokens generated up to each position:
        −1 for padding (left as it is), 0 in the prompt, j for the j-th generated token."""
        if self.is_nothing:
            return x
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self._place != (x.device, dtype):
            self._move(x.device, dtype)
        high = x.to(dtype)
        coefficients = self._coefficients(high)
        t = t.to(x.device)
        weight = (t >= 0).to(dtype)
        if self._weights is not None:
            weight = weight * self._weights.gather(1, t.clamp(0, self._steps))
        coefficients = coefficients * weight[..., None]
        flat = torch.addmm(
            high.reshape(-1, high.shape[-1]), coefficients.reshape(-1, len(self._columns)), self._decoder
        )
        return flat.reshape(x.shape).to(x.dtype)

    def _coefficients(self, x: torch.Tensor) -> torch.Tensor:
        """c_k(x) of every row and column: [batch, positions, U]."""
        total = x.new_zeros(*x.shape[:2], len(self._columns))
        if self._encoder is not None:
            a = activations(self._encoder, x)  # (batch, positions, encoded)
            gap = self._value - a
            part = total[..., : a.shape[-1]]
            for operation, mask in self._masks.items():
                if operation == "clamp":
                    part += mask * gap
                elif operation == "min_clamp":
                    part += mask * gap.clamp(min=0)
                else:
                    part += mask * gap * (a > 0)
        return total if self._added is None else total + self._added
