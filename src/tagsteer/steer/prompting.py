"""From instructions to prompt ids, and the steering prompts of the prompt-steering baseline.

Knows a model's chat template; must not know SAEs, interventions or judges.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from tagsteer.lm.model import LanguageModel

log = logging.getLogger("tagsteer.steer")

Message = tuple[str, str]
"""(role, text)."""

OFFLINE_AUTHOR = "fixed template (no LLM asked)"

# Our own wording of the request that AxBench makes (a prompt that guides a model to include the concept even
# where it does not belong; examples optional; only the prompt comes back).
REQUEST = """Write a prompt that guides a language model towards a concept.

Concept: {label}

Whatever question the model is then asked, its answer should contain content related to this concept, even when \
that does not answer the question or seems out of context. You may include examples of such answers in the \
prompt. Return the final prompt alone, without explanations."""

TEMPLATE = (
    "Answer the question below. Your answer must contain content related to the concept '{label}', "
    "even if it is unrelated to the question or makes little sense there."
)


def prompt_ids(
    model: LanguageModel, prompt: str | Sequence[Message], *, chat: bool = True, system: str | None = None
) -> tuple[int, ...]:
    """Token ids of an instruction or a conversation [(role, text), ...], ready for the model's answer.

    With `chat` in the model's chat template, which brings its own BOS if it wants one; without, the text as it
    is after the tokenizer's BOS. Marks of the template inside the texts stay plain text. Raises TagsteerError
    for an empty prompt.
    """
    messages = (
        [("user", prompt)] if isinstance(prompt, str) else [(str(role), str(text)) for role, text in prompt]
    )
    if not messages or not messages[-1][1].strip():
        raise TagsteerError("the prompt is empty: give at least one word")
    if not chat:
        if system or not isinstance(prompt, str):
            raise TagsteerError(
                "chat=False takes one plain text: leave out system=... and roles, or use chat=True"
            )
        return tuple(model.encode(prompt))
    return tuple(model.chat_ids([("system", system), *messages] if system else messages))


@dataclass(frozen=True, slots=True)
class SteeringPrompt:
    """A prompt that asks for a label's content, and who wrote it."""

    label: str
    text: str
    author: str

    def ask(self, instruction: str) -> str:
        """AxBench's user message: the steering prompt, a blank line, and the instruction as a question."""
        return f"{self.text}\n\nQuestion: {instruction}"


class SteeringPrompts:
    """One steering prompt per label, kept in a JSON file so that no rerun draws or pays for another.

    `ask(text) -> text` sends one message to an LLM called `author`; without it a fixed template is used, and its
    author says so. An empty answer of the LLM gives the template too (AxBench does the same), logged and marked.
    """

    def __init__(
        self, path: Path | None = None, ask: Callable[[str], str] | None = None, author: str = "LLM"
    ) -> None:
        self._path, self._ask, self._author = path, ask, author
        self._known: dict[tuple[str, str], SteeringPrompt] = {}
        if path is not None and path.exists():
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                known = [SteeringPrompt(row["label"], row["text"], row["author"]) for row in rows]
            except (ValueError, KeyError, TypeError) as error:
                raise TagsteerError(
                    f"{path} is not a file of steering prompts ({error}): move it away to write new ones"
                ) from error
            self._known = {(p.label, p.author): p for p in known}

    def of(self, label: str) -> SteeringPrompt:
        """The stored prompt of a label, or a new one, stored before it is returned."""
        authors = (OFFLINE_AUTHOR,) if self._ask is None else (self._author, self._stand_in)
        for author in authors:
            if (label, author) in self._known:
                return self._known[label, author]
        written = self._write(label)
        self._known[label, written.author] = written
        self._save()
        return written

    @property
    def _stand_in(self) -> str:
        return f"fixed template ({self._author} answered nothing)"

    def _write(self, label: str) -> SteeringPrompt:
        if self._ask is None:
            return SteeringPrompt(label, TEMPLATE.format(label=label), OFFLINE_AUTHOR)
        text = self._ask(REQUEST.format(label=label)).strip()
        if text:
            return SteeringPrompt(label, text, self._author)
        log.warning("%s gave an empty steering prompt for %r: using the fixed template", self._author, label)
        return SteeringPrompt(label, TEMPLATE.format(label=label), self._stand_in)

    def _save(self) -> None:
        if self._path is None:
            return
        rows = [{"label": p.label, "text": p.text, "author": p.author} for p in self._known.values()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        fresh.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(fresh, self._path)
