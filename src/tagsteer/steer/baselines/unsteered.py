"""The floor: the model without any steering, one text per instruction that all labels share."""

from __future__ import annotations

from collections.abc import Iterable

from tagsteer.steer.baselines.methods import Method, Pair, Settings
from tagsteer.steer.instructions import Instruction
from tagsteer.steer.sampling import Key


class Unsteered(Method):
    """Its texts do not depend on the label, so each is generated once and judged for every label."""

    def key(self, pair: Pair, strength: float | None, instruction: Instruction) -> Key:
        del pair, strength
        return (self.name, instruction.id)


def unsteered(labels: Iterable[str], settings: Settings) -> Method:
    """The unsteered model on each label."""
    return Unsteered(
        name="unsteered",
        provenance="no intervention",
        pairs=tuple(Pair(label) for label in dict.fromkeys(labels)),
        settings=settings,
        has_strength=False,
    )
