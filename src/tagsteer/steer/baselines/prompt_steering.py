"""Prompt steering as AxBench does it: a prompt per label, written once by an LLM, before the instruction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tagsteer.steer.baselines.methods import Method, Pair, Settings
from tagsteer.steer.instructions import Instruction
from tagsteer.steer.prompting import SteeringPrompt, SteeringPrompts


@dataclass(frozen=True, kw_only=True)
class PromptSteering(Method):
    """The steering prompt, a blank line, "Question: " and the instruction; no intervention."""

    prompts: dict[str, SteeringPrompt]

    def prompt(self, pair: Pair, instruction: Instruction) -> str:
        return self.prompts[pair.label].ask(instruction.text)


def prompt_steering(labels: Iterable[str], settings: Settings, prompts: SteeringPrompts) -> Method:
    """Prompt steering of each label; prompts are written (and stored) here, before anything is generated."""
    written = {label: prompts.of(label) for label in dict.fromkeys(labels)}
    authors = sorted({prompt.author for prompt in written.values()})
    return PromptSteering(
        name="prompt",
        provenance=f"steering prompts by {', '.join(authors)}",
        pairs=tuple(Pair(label) for label in written),
        settings=settings,
        has_strength=False,
        prompts=written,
    )
