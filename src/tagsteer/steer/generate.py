"""The batched engine: one list of work items, packed across pairs and strengths into full batches.

Knows models, latents and interventions; must not know labels or judges, nor where results are written. Rows that
finish leave the batch and waiting items take their places; every result is yielded as soon as it is complete,
so a caller that writes it down resumes by passing only the items that are missing.

What holds about seeds: an item's random numbers depend on its key, the run's seed and the step alone. Its logits
do too, up to the rounding of matrix products, which depends on the shapes of the batch. See docs of `Engine`.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tagsteer.compute.batching import is_out_of_memory
from tagsteer.errors import TagsteerError
from tagsteer.lm.hooks import edit_residual
from tagsteer.progress import track
from tagsteer.steer.edits import BatchEdit
from tagsteer.steer.items import MAX_NEW_TOKENS, Generation, WorkItem, work_units
from tagsteer.steer.kv import arrange, new_cache
from tagsteer.steer.latents import Latents
from tagsteer.steer.sampling import draw, item_seed, step_keys

if TYPE_CHECKING:
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

__all__ = ["MAX_NEW_TOKENS", "Engine", "Generation", "WorkItem", "work_units"]

log = logging.getLogger("tagsteer.steer")


@dataclass(eq=False)
class _Row:
    item: WorkItem
    seed: bytes
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None

    @property
    def length(self) -> int:
        """The prompt and all tokens drawn so far."""
        return len(self.item.prompt_ids) + len(self.tokens)


class _Batch:
    """Rows that run together: their cache, the columns that are padding, and the edit that steers them."""

    def __init__(self, rows: list[_Row], cache: Any, mask: torch.Tensor, edit: BatchEdit) -> None:
        self.rows, self.cache, self.mask, self.edit = rows, cache, mask, edit

    @property
    def live(self) -> list[int]:
        return [b for b, row in enumerate(self.rows) if row.finish is None]


class Engine:
    """Generates steered texts with one model and one SAE (or none) at `layer` (default: the SAE's).

    vectors: named directions [d_model] that items may add. batch_size: rows at most (default 64), halved when
    memory runs out. seed: the run's seed. use_cache=False recomputes the whole text for each token, as a slow
    reference.

    Reproducibility: with the same device, dtype and software the same item gives the same draws. In float32
    texts agree between batch sizes, orders and resumed runs except where rounding decides a draw (on the embedded
    model at most one text of 128 tokens in 3,000: `benchmarks/bench_steering.py`); in bfloat16 or float16 rounding
    is coarse and many texts differ once batches are composed differently. The same list with the same batch_size
    repeats every bit on deterministic kernels: `work_units` cuts a run into lists that do not depend on workers or
    interruptions.
    """

    def __init__(
        self,
        model: LanguageModel,
        sae: SAE | None = None,
        *,
        layer: int | str | None = None,
        vectors: Mapping[str, torch.Tensor] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        use_cache: bool = True,
    ) -> None:
        if sae is not None and sae.d_model != model.d_model:
            raise TagsteerError(
                f"the SAE has d_model {sae.d_model}, {model.name} has {model.d_model}: load the SAE of this model"
            )
        for name, vector in (vectors or {}).items():
            if tuple(vector.shape) != (model.d_model,) or not bool(torch.isfinite(vector).all()):
                raise TagsteerError(
                    f"vector {name!r} has shape {list(vector.shape)}: wanted {model.d_model} finite numbers, "
                    f"the width of {model.name}"
                )
        if layer is None and sae is not None:
            layer = sae.layer
        if layer is None and (sae is not None or vectors):
            raise TagsteerError("neither the SAE nor the call says which layer to steer: pass layer=...")
        if batch_size is not None and batch_size < 1:
            raise TagsteerError(f"batch_size {batch_size}: give 1 or more")
        self.model = model
        self.layer = None if layer is None else model.layer_index(layer)
        self.seed = seed
        self.batch_size = batch_size or 64
        self.use_cache = use_cache
        self._latents = Latents(sae, vectors)
        # Positions the model has; some families have no limit.
        self._room = getattr(model.hf.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._keep_logits = "logits_to_keep" in inspect.signature(model.hf.forward).parameters
        self._rearranges = not use_cache or new_cache(model.hf.config)[1]
        if not self._rearranges:
            log.info(
                "%s keeps a cache that rows cannot leave: each batch runs until its last text is done",
                model.name,
            )

    def run(self, items: Iterable[WorkItem]) -> Iterator[Generation]:
        """Each item's text as it is finished, in no particular order. Items are checked before anything runs."""
        return self.run_units([tuple(items)])

    def run_units(self, units: Sequence[Sequence[WorkItem]]) -> Iterator[Generation]:
        """As `run`, one list after another: rows of different `work_units` never share a batch."""
        rows = self._rows(item for unit in units for item in unit)
        where = "unsteered" if self.layer is None else f"steered after layer {self.layer}"
        dtype = str(self.model.dtype).removeprefix("torch.")
        log.info(
            "%d texts, %s, in batches of up to %d on %s in %s",
            *(len(rows), where, self.batch_size, self.model.device, dtype),
        )
        with track("steering", total=len(rows), unit="texts") as bar:
            start = 0
            for unit in units:
                part = rows[start : start + len(unit)]
                start += len(unit)
                for finished, _ in self._steps(part):
                    for row in finished:
                        bar.advance()
                        yield self._generation(row)

    def stream(self, item: WorkItem) -> Iterator[int]:
        """The new token ids of one item, one by one, as `run` would draw them; the one that ends it left out."""
        for _, stepped in self._steps(self._rows([item])):
            yield from (row.tokens[-1] for row in stepped if row.finish in (None, "length"))

    def _rows(self, items: Iterable[WorkItem]) -> list[_Row]:
        rows = [_Row(item, item_seed(item.key, self.seed)) for item in items]
        seen: set[bytes] = set()
        room = self._room
        for row in rows:
            item = row.item
            if row.seed in seen:
                raise TagsteerError(
                    f"two work items have the key {item.key!r}: they would draw the same text, give each its own"
                )
            seen.add(row.seed)
            if not item.prompt_ids:
                raise TagsteerError(f"the prompt of {item.key!r} is empty: give at least one token")
            if item.max_new_tokens < 1:
                raise TagsteerError(f"max_new_tokens {item.max_new_tokens} of {item.key!r}: give 1 or more")
            if room is not None and len(item.prompt_ids) + item.max_new_tokens > room:
                raise TagsteerError(
                    f"{item.key!r} needs {len(item.prompt_ids)} prompt and {item.max_new_tokens} new tokens, "
                    f"{self.model.name} has room for {room}: shorten the prompt or lower max_new_tokens"
                )
        self._latents.check(dict.fromkeys(name for row in rows for name in row.item.intervention.features))
        return rows

    def _steps(self, rows: list[_Row]) -> Iterator[tuple[list[_Row], list[_Row]]]:
        """After every forward pass: (rows that finished, rows that got a token)."""
        # Longest first: memory runs out at the beginning if at all, and neighbours have similar lengths.
        rows = sorted(rows, key=lambda row: (-len(row.item.prompt_ids), -row.item.max_new_tokens, row.seed))
        waiting, cap = deque(rows), self.batch_size
        batch: _Batch | None = None
        while waiting or batch:
            admitted: list[_Row] = []
            live = batch.live if batch else []
            failure = None
            try:
                gap = (cap if waiting else len(batch.rows) if batch else 0) - len(live)
                stepped: list[_Row] = []
                # Leaving and joining copy the cache, so they wait until an eighth of the places is free.
                if not live or (self._rearranges and gap >= max(1, cap // 8)):
                    admitted = [waiting.popleft() for _ in range(min(len(waiting), cap - len(live)))]
                    batch, stepped = self._rearranged(batch, live, admitted)
                elif batch:
                    stepped = self._advance(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            if failure is not None:
                # Rows not yet yielded start again: their seeds make them draw the same tokens.
                again = [*([batch.rows[b] for b in live] if batch else []), *admitted]
                batch, cap = None, self._halved(min(cap, max(1, len(again))), failure)
                for row in again:
                    row.tokens.clear()
                    row.finish = None
                waiting = deque(sorted([*again, *waiting], key=lambda row: -len(row.item.prompt_ids)))
                continue
            yield [row for row in stepped if row.finish is not None], stepped

    def _halved(self, cap: int, reason: str) -> int:
        if cap == 1:
            raise TagsteerError(
                f"a single text does not fit into memory ({reason}): shorten the prompts or use another device"
            )
        log.warning("memory ran out with %d rows (%s): going on with %d", cap, reason, cap // 2)
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return cap // 2

    @torch.inference_mode()
    def _rearranged(
        self, batch: _Batch | None, live: list[int], admitted: list[_Row]
    ) -> tuple[_Batch | None, list[_Row]]:
        """The live rows of a batch with new ones below them, which get their first token."""
        if not live and not admitted:
            return None, []
        fresh = self._prefill(admitted) if admitted else None
        stepped = [*admitted]
        if batch is None or not live:
            return fresh, stepped
        rows = [batch.rows[b] for b in live]
        index = torch.tensor(live, device=batch.mask.device)
        mask = batch.mask[index]
        # Columns that are padding in every row that stays are dropped.
        start = int(mask.argmax(-1).min())
        mask = mask[:, start:]
        if self.use_cache:
            arrange(batch.cache, index, start, fresh.cache if fresh else None)
        if fresh:
            width = max(mask.shape[1], fresh.mask.shape[1])
            masks = [torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in (mask, fresh.mask)]
            mask, rows = torch.cat(masks), rows + fresh.rows
        return _Batch(rows, batch.cache, mask, self._edit(rows)), stepped

    def _edit(self, rows: Sequence[_Row]) -> BatchEdit:
        steps = max(row.item.max_new_tokens for row in rows)
        return BatchEdit(self._latents, [row.item.intervention for row in rows], steps)

    def _prefill(self, rows: list[_Row]) -> _Batch:
        """A batch of new rows, left-padded, with their first token drawn."""
        cache = new_cache(self.model.hf.config)[0] if self.use_cache else None
        batch = _Batch(rows, cache, self._mask(rows), self._edit(rows))
        self._forward(batch, [list(row.item.prompt_ids) for row in rows])
        return batch

    @torch.inference_mode()
    def _advance(self, batch: _Batch) -> list[_Row]:
        """One more token for every live row; rows that are done ride along until the next rearrangement."""
        live = [batch.rows[b] for b in batch.live]
        if self.use_cache:
            batch.mask = torch.nn.functional.pad(batch.mask, (0, 1), value=1)
            self._forward(
                batch, [[row.tokens[-1] if row.tokens else self.model.pad_id] for row in batch.rows]
            )
        else:
            batch.mask = self._mask(batch.rows)
            self._forward(batch, [[*row.item.prompt_ids, *row.tokens] for row in batch.rows])
        return live

    def _mask(self, rows: Sequence[_Row]) -> torch.Tensor:
        """Attention mask of left-padded rows: int64 [rows, longest]."""
        width = max(row.length for row in rows)
        return torch.tensor(
            [[0] * (width - row.length) + [1] * row.length for row in rows], device=self.model.device
        )

    def _forward(self, batch: _Batch, ids: list[list[int]]) -> None:
        """Run the newest columns `ids` of each row through the model and draw each live row's next token."""
        device = self.model.device
        width = max(len(row) for row in ids)
        input_ids = torch.tensor(
            [[self.model.pad_id] * (width - len(row)) + row for row in ids], device=device
        )
        positions = (batch.mask.cumsum(-1) - 1)[:, -width:]
        prompts = torch.tensor([len(row.item.prompt_ids) for row in batch.rows], device=device)[:, None]
        # t: −1 on padding, 0 in the prompt, j for the j-th generated token.
        t = torch.where(batch.mask[:, -width:] == 1, (positions - prompts + 1).clamp(min=0), -1)
        kwargs: dict[str, Any] = {"logits_to_keep": 1} if self._keep_logits else {}
        if self.use_cache:
            kwargs["past_key_values"] = batch.cache
        steered = contextlib.nullcontext()
        if not batch.edit.is_nothing:
            assert self.layer is not None
            edit = batch.edit
            # Only around the forward pass: between two yields the caller may use the model unsteered.
            steered = edit_residual(self.model, self.layer, lambda x: edit(x, t))  # type: ignore[assignment]
        with steered:
            logits = self.model.hf(
                input_ids=input_ids,
                attention_mask=batch.mask,
                # The upper bound concerns finished rows alone, which ride along past their end.
                position_ids=positions.clamp(0, None if self._room is None else self._room - 1),
                use_cache=self.use_cache,
                **kwargs,
            ).logits[:, -1]
        keys = step_keys([row.seed for row in batch.rows], [len(row.tokens) for row in batch.rows])
        drawn = draw(logits, [row.item.sampling for row in batch.rows], keys).tolist()
        for row, token in zip(batch.rows, drawn, strict=True):
            if row.finish is None:
                self._append(row, token)

    def _append(self, row: _Row, token: int) -> None:
        if token < 0:
            row.finish = "non_finite"
            log.warning(
                "the logits of %r became NaN or infinite after %d tokens: its text ends there",
                row.item.key,
                len(row.tokens),
            )
            return
        row.tokens.append(token)
        if token in self.model.eos_ids:
            row.finish = "eos"
        elif len(row.tokens) == row.item.max_new_tokens:
            row.finish = "length"

    def _generation(self, row: _Row) -> Generation:
        tokens = row.tokens[:-1] if row.finish == "eos" else row.tokens
        assert row.finish is not None
        return Generation(
            row.item.key, self.model.decode(tokens), tuple(tokens), row.finish, len(row.item.prompt_ids)
        )
