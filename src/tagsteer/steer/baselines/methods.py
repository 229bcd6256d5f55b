"""The one interface of everything that is generated and judged: our pairs and every baseline are a `Method`.

Knows work items, prompts and strengths; must not know judges or how a label was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError
from tagsteer.steer.generate import MAX_NEW_TOKENS, WorkItem
from tagsteer.steer.instructions import Instruction
from tagsteer.steer.interventions import CONSTANT, NOTHING, Schedule, intervention, resolve_strength
from tagsteer.steer.prompting import prompt_ids
from tagsteer.steer.sampling import DEFAULT, Key, Sampling

if TYPE_CHECKING:
    import torch

    from tagsteer.lm.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Pair:
    """A label and what is steered for it: a feature, a named vector, or nothing (prompts, unsteered)."""

    label: str
    feature: int | str | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One text of one method: pair × strength × instruction. Cells with one item key share the text."""

    method: str
    pair: Pair
    strength: float | None
    """In the run's unit; None for methods without a strength."""
    instruction: Instruction
    item: WorkItem


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods of a run share."""

    model: LanguageModel
    kind: str = "clamp"
    unit: str = "max_activation"
    max_activations: Mapping[Any, float] | Sequence[float] | None = None
    tokens: str = "all"
    schedule: Schedule = CONSTANT
    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Sampling = DEFAULT
    chat: bool = True
    system: str | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """Pairs steered by their features; the baselines without features override `prompt` or `key`."""

    name: str
    provenance: str
    """Where the pairs come from, in words for a table."""
    pairs: tuple[Pair, ...]
    settings: Settings
    has_strength: bool = True
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Named vectors that an engine for this method needs: Engine(..., vectors=method.vectors)."""

    def key(self, pair: Pair, strength: float | None, instruction: Instruction) -> Key:
        """What the text's seed depends on."""
        return (self.name, pair.label, pair.feature, strength, instruction.id)

    def prompt(self, pair: Pair, instruction: Instruction) -> str:
        """The user's message."""
        del pair
        return instruction.text

    def item(self, pair: Pair, strength: float | None, instruction: Instruction) -> WorkItem:
        """The work item of one cell; TagsteerError where the strength cannot be resolved."""
        s = self.settings
        if self.has_strength != (strength is not None):
            raise TagsteerError(
                f"method {self.name!r} {'needs a' if self.has_strength else 'takes no'} strength, got {strength}"
            )
        steering = NOTHING
        if strength is not None:
            if pair.feature is None:
                raise TagsteerError(
                    f"method {self.name!r} has no feature for label {pair.label!r}: leave the label out"
                )
            # ablation has one strength, and no need of a max activation
            value = (
                0.0
                if s.kind == "ablation"
                else resolve_strength(pair.feature, strength, s.unit, s.max_activations)
            )
            steering = intervention(s.kind, {pair.feature: value}, tokens=s.tokens, schedule=s.schedule)
        ids = prompt_ids(s.model, self.prompt(pair, instruction), chat=s.chat, system=s.system)
        return WorkItem(self.key(pair, strength, instruction), ids, steering, s.max_new_tokens, s.sampling)

    def cells(
        self,
        strengths: Sequence[float],
        instructions: Sequence[Instruction] | Callable[[Pair], Sequence[Instruction]],
    ) -> Iterator[Cell]:
        """Every pair × instruction × strength; methods without a strength give one cell per instruction.

        `instructions`: the same list for all pairs, or a function of the pair (AxBench draws by concept).
        """
        for pair in self.pairs:
            for instruction in instructions(pair) if callable(instructions) else instructions:
                for strength in strengths if self.has_strength else (None,):
                    yield Cell(self.name, pair, strength, instruction, self.item(pair, strength, instruction))


def unique_items(cells: Iterable[Cell], done: Iterable[Key] = ()) -> list[WorkItem]:
    """The work items of cells, each key once, without those that are `done`."""
    known = set(done)
    found: dict[Key, WorkItem] = {}
    for cell in cells:
        if cell.item.key not in known:
            found.setdefault(cell.item.key, cell.item)
    return list(found.values())


def feature_pairs(name: str, pairs: Iterable[Pair], settings: Settings, provenance: str) -> Method:
    """Steering by given (label, feature) pairs: our own method, and every baseline that only chooses others."""
    return Method(name=name, provenance=provenance, pairs=tuple(pairs), settings=settings)
