"""Read and edit the residual stream after a decoder layer, through hooks on plain transformers modules.

Raw and SAE-agnostic. Layers return a tensor (transformers 5) or a tuple whose first member is the residual
(transformers 4); other members pass through untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    import torch

    from tagsteer.lm.model import LanguageModel


class _Stop(Exception):
    """Ends a forward pass at the layer that raised it."""


def residual_of(output: Any) -> torch.Tensor:
    """The residual in a decoder layer's output: [batch, positions, d_model]."""
    residual = output[0] if isinstance(output, tuple) else output
    if getattr(residual, "ndim", 0) != 3:
        raise TagsteerError(
            f"the hooked layer returned {type(output).__name__} instead of a [batch, positions, d_model] tensor"
        )
    return residual


def with_residual(output: Any, residual: torch.Tensor) -> Any:
    """The same output with its residual replaced."""
    return (residual, *output[1:]) if isinstance(output, tuple) else residual


@contextmanager
def edit_residual(
    model: LanguageModel, layer: int, edit: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """While inside, the output of `layer` is `edit(residual)`; `edit` returns a new tensor of the same shape."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return with_residual(output, edit(residual_of(output)))

    handle = model.layers[model.layer_index(layer)].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def residuals_at(
    model: LanguageModel, layers: list[int], input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> list[torch.Tensor]:
    """Residuals [batch, positions, d_model] after each of `layers` (ascending); nothing above the last one runs.

    Only the decoder stack is called, without cache, so no logits are computed.
    """
    import torch

    found: dict[int, torch.Tensor] = {}
    last = max(layers)

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            found[layer] = residual_of(output)
            if layer == last:
                raise _Stop

        return hook

    handles = [model.layers[model.layer_index(layer)].register_forward_hook(keep(layer)) for layer in layers]
    try:
        with torch.inference_mode():
            model.hf.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [found[layer] for layer in layers]
