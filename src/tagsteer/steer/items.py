"""What the engine takes and gives: work items with their keys, generations, and fixed lists of items.

Plain data; must not know models or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tagsteer.errors import TagsteerError
from tagsteer.steer.interventions import NOTHING, Intervention
from tagsteer.steer.sampling import DEFAULT, Key, Sampling, item_seed

MAX_NEW_TOKENS = 128  # AxBench's


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One text to generate. Its seed comes from `key`, so keys name everything that should change the draw."""

    key: Key
    prompt_ids: tuple[int, ...]
    intervention: Intervention = NOTHING
    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Sampling = DEFAULT


@dataclass(frozen=True, slots=True)
class Generation:
    """What an item gave: the new text only, special tokens left out."""

    key: Key
    text: str
    token_ids: tuple[int, ...]
    """New tokens without the one that ended the text."""
    finish: str
    """"eos", "length", or "non_finite": the logits became NaN or infinite and the text stops there."""
    n_prompt_tokens: int


def work_units(items: Iterable[WorkItem], size: int = 256) -> list[tuple[WorkItem, ...]]:
    """The items of a whole run in fixed lists of `size`, by prompt length and key, whatever order they came in.

    A unit run as one `Engine.run` list has the same batches in every run and on every worker. So a run in
    bfloat16 is repeated exactly by working unit by unit and, after an interruption, doing an unfinished unit again
    whole, instead of passing its missing items alone.
    """
    if size < 1:
        raise TagsteerError(f"work units of {size} items: give 1 or more")
    ordered = sorted(
        items, key=lambda item: (-len(item.prompt_ids), -item.max_new_tokens, item_seed(item.key))
    )
    return [tuple(ordered[i : i + size]) for i in range(0, len(ordered), size)]
