"""The five-line front: a model, an SAE and {feature: strength} in, text out.

Knows the engine and prompts; must not know labels or judges.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack, overload

from tagsteer.errors import TagsteerError
from tagsteer.steer.generate import MAX_NEW_TOKENS, Engine, WorkItem
from tagsteer.steer.interventions import CONSTANT, Schedule, intervention, resolve_strength
from tagsteer.steer.prompting import Message, prompt_ids
from tagsteer.steer.sampling import Sampling

if TYPE_CHECKING:
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.steer")


class Options(TypedDict, total=False):
    """What `generate` and `stream` take by name; see `Steerer.generate`."""

    unit: str
    kind: str
    tokens: str
    schedule: Schedule
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    chat: bool
    system: str | None


class Steerer:
    """Steers `model` with features of `sae` at the SAE's layer (or `layer`).

    max_activations: a table by feature id (mapping or array [d_sae]) for strengths in unit="max_activation",
    for example `extract_frequencies(...).robust_max`.

    Example:
        steerer = Steerer(model, sae)
        text = steerer.generate("Write a poem.", {1234: 8.0})  # clamp feature 1234 to 8.0
    """

    def __init__(
        self,
        model: LanguageModel,
        sae: SAE,
        max_activations: Mapping[int, float] | Sequence[float] | None = None,
        *,
        layer: int | str | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model, self.sae, self.max_activations = model, sae, max_activations
        self.engine = Engine(model, sae, layer=layer, batch_size=batch_size)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str, features: Mapping[int, float] | None = None, **options: Unpack[Options]
    ) -> str: ...

    @overload
    def generate(
        self, prompt: Sequence[str], features: Mapping[int, float] | None = None, **options: Unpack[Options]
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        features: Mapping[int, float] | None = None,
        **options: Unpack[Options],
    ) -> str | list[str]:
        """The model's answer to `prompt` with `features` {id: strength} steered; a list of prompts gives a list.

        Options: unit "absolute" or "max_activation"; kind "clamp" (default), "clamp_if_active", "min_clamp",
        "addition" or "ablation"; tokens "all", "prompt" or "generation"; schedule; max_new_tokens 128;
        temperature 1.0 (0 is greedy), top_k, top_p; seed 0; chat=True for the chat template; system message.

        A prompt's text depends on itself, the steering and the seed, not on the other prompts of the list (up to
        rounding, see `Engine`); a prompt given twice is drawn twice. Raises TagsteerError for a bad feature id,
        an empty prompt, or a strength without a max activation.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise TagsteerError("the list of prompts is empty: give at least one")
        seen: Counter[str] = Counter()
        items = []
        for text in prompts:
            items.append(self.item(text, features, occurrence=seen[text], **options))
            seen[text] += 1
        texts = {found.key: found.text for found in self.engine.run(items)}
        answers = [texts[item.key] for item in items]
        return answers[0] if isinstance(prompt, str) else answers

    def stream(
        self,
        prompt: str | Sequence[Message],
        features: Mapping[int, float] | None = None,
        **options: Unpack[Options],
    ) -> Iterator[str]:
        """Pieces of the answer as they are drawn, joined equal to `generate`'s; also for a conversation
        [(role, text), ...]. Takes the options of `generate`."""
        item = self.item(prompt, features, **options)
        ids: list[int] = []
        shown = ""
        for token in self.engine.stream(item):
            ids.append(token)
            text = self.model.decode(ids)
            # A character whose bytes are not all there yet decodes to a replacement mark: wait for the rest.
            if not text.endswith("\ufffd") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        text = self.model.decode(ids)
        if len(text) > len(shown):
            yield text[len(shown) :]

    def item(
        self,
        prompt: str | Sequence[Message],
        features: Mapping[int, float] | None = None,
        *,
        unit: str = "absolute",
        kind: str = "clamp",
        tokens: str = "all",
        schedule: Schedule = CONSTANT,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        chat: bool = True,
        system: str | None = None,
        occurrence: int = 0,
    ) -> WorkItem:
        """The engine's work item for one prompt; `occurrence` tells repeated prompts apart."""
        values = {
            feature: resolve_strength(int(feature), value, unit, self.max_activations)
            for feature, value in (features or {}).items()
        }
        ids = prompt_ids(self.model, prompt, chat=chat, system=system)
        # The seed comes from the prompt, not from the features: strengths are compared on the same draws.
        text = prompt if isinstance(prompt, str) else "\n".join(f"{role}: {said}" for role, said in prompt)
        return WorkItem(
            ("steerer", seed, text, system, occurrence),
            ids,
            intervention(kind, values, tokens=tokens, schedule=schedule),
            max_new_tokens,
            Sampling(temperature, top_k, top_p),
        )
