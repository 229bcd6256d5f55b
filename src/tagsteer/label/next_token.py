"""Next-token logits after a prompt, for many edits of the residual at its last position.

All edits share everything but the last position above one layer. So the prompt before it runs once and its
keys and values are kept; for each batch the last position runs alone as one row up to the layer, where it
fans out into one row per edit. Whether a model takes that is found out by comparing it with full forward
passes; if it does not, full passes are used. Knows hooks on residuals; knows no SAE.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError
from tagsteer.lm.hooks import edit_residual

if TYPE_CHECKING:
    import torch

    from tagsteer.lm.model import LanguageModel

log = logging.getLogger("tagsteer.label")


class LastPosition:
    """A prompt whose last residual after `layer` can be moved; everything before it is computed once."""

    def __init__(self, model: LanguageModel, layer: int, prompt: str) -> None:
        """Runs the prompt (tokenised with the tokenizer's own BOS, no chat template) twice or thrice.

        TagsteerError for an empty prompt and for logits that are not finite.
        """
        import torch

        self.model, self.layer = model, layer
        self.token_ids = model.encode(prompt)
        if not self.token_ids:
            raise TagsteerError(f"the prompt {prompt!r} has no tokens: give a text")
        self._ids = torch.tensor([self.token_ids], device=model.device)
        with torch.inference_mode():
            seen: list[torch.Tensor] = []

            def look(x: torch.Tensor) -> torch.Tensor:
                seen.append(x[0, -1].clone())
                return x

            with edit_residual(model, layer, look):
                self.logits: torch.Tensor = self._full(1)[0].float()
            self.residual: torch.Tensor = seen[0]
            """Clean residual at the last position, [d_model]."""
            if not torch.isfinite(self.logits).all():
                raise TagsteerError(
                    f"{model.name} gives logits that are not finite in {model.dtype}: use another dtype"
                )
            self._cache = self._shared_part()
        self.shares_prefix = self._check()
        """Whether batches run only the last position, and the layers up to `layer` only once."""

    def logits_after(self, moves: torch.Tensor) -> torch.Tensor:
        """Next-token logits float32 [n, vocabulary] with x_last + moves[j] in place of x_last; moves [n,
        d_model]."""
        import torch

        with torch.inference_mode():
            logits = (self._fanned(moves) if self.shares_prefix else self._plain(moves)).float()
        # A NaN anywhere is the maximum of its row.
        if not torch.isfinite(logits.amax(1)).all():
            raise TagsteerError(
                f"an edit gives logits that are not finite in {self.model.dtype}: use another dtype"
            )
        return logits

    def rows_per_batch(self) -> int:
        """How many moves to give at once so that logits stay small."""
        from tagsteer.label.logit_lens import rows_within

        rows = rows_within(self.logits.shape[0])
        return rows if self.shares_prefix else max(1, rows // len(self.token_ids))

    def _full(self, n: int) -> torch.Tensor:
        """Logits [n, vocabulary] at the last position of n copies of the prompt."""
        return self.model.hf(input_ids=self._ids.expand(n, -1), use_cache=False).logits[:, -1]

    def _plain(self, moves: torch.Tensor) -> torch.Tensor:
        """One full forward pass per move: the definition."""

        def edit(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, -1] += moves.to(x.device, x.dtype)
            return x

        with edit_residual(self.model, self.layer, edit):
            return self._full(len(moves))

    def _shared_part(self) -> Any:
        """Keys and values of all positions before the last one; None for a prompt of one token."""
        if self._ids.shape[1] == 1:
            return None
        return self.model.hf(input_ids=self._ids[:, :-1], use_cache=True).past_key_values

    def _fanned(self, moves: torch.Tensor) -> torch.Tensor:
        """The last position alone: one row up to the layer, one row per move above it."""
        cache = copy.deepcopy(self._cache)
        if cache is not None:
            for part in cache.layers[self.layer + 1 :]:
                part.keys = part.keys.expand(len(moves), -1, -1, -1)
                part.values = part.values.expand(len(moves), -1, -1, -1)

        def fan_out(x: torch.Tensor) -> torch.Tensor:
            return x + moves.to(x.device, x.dtype)[:, None]

        # Masks and rotary embeddings were made for one row and are broadcast.
        with edit_residual(self.model, self.layer, fan_out):
            return self.model.hf(
                input_ids=self._ids[:, -1:], past_key_values=cache, use_cache=cache is not None
            ).logits[:, -1]

    def _check(self) -> bool:
        """Compare the fast way with full forward passes on three moves as long as the residual itself."""
        import torch

        generator = torch.Generator().manual_seed(0)
        moves = torch.randn((3, len(self.residual)), generator=generator)
        moves = moves / moves.norm(dim=1, keepdim=True) * self.residual.float().norm().cpu()
        moves[0] = 0
        with torch.inference_mode():
            wanted = self._plain(moves).float()
            try:
                found = self._fanned(moves).float()
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            else:
                # Low precision rounds differently for other shapes; a wrong path is off by the logits' own
                # size.
                tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.1
                scale = wanted.abs().max().clamp(min=1e-6)
                if found.shape == wanted.shape and (found - wanted).abs().max() <= tolerance * scale:
                    return True
                reason = "its logits differ from those of full forward passes"
        log.warning(
            "%s does not take one shared prefix (%s): every edit runs the whole prompt",
            self.model.name,
            reason,
        )
        return False
