"""The judge's prompts, in AxBench's structure, and the reading of its replies.

Three separate questions per text - concept, instruction, fluency -, each one user message with an explanation
asked for before "Rating: [[score]]". The texts lie in prompts/<version>/ and are ours: AxBench's structure,
scale and blocks, not its wording. Must not know who answers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tagsteer.errors import TagsteerError
from tagsteer.judge.types import PARTS, JudgeItem

FIELDS = {
    "concept": ("concept", "generation"),
    "instruction": ("instruction", "generation"),
    "fluency": ("generation",),
}
"""Which texts of an item each question shows."""

_MARK = re.compile(r"\[((?:Concept|Instruction|Sentence Fragment) (?:Start|End)|System)\]")


@dataclass(frozen=True)
class Rubric:
    """The three prompts of one version; `templates[part]` holds {examples} and the fields of FIELDS[part]."""

    version: str
    templates: Mapping[str, str]
    examples: Mapping[str, str]

    def prompt(self, part: str, item: JudgeItem) -> str:
        """The question on one part of an item, as one user message.

        All fields are filled in one pass, and a block mark like "[Concept End]" inside a text is written with
        round brackets: no text can pose as a part of the question.
        """
        texts = {name: _MARK.sub(r"(\1)", getattr(item, name)) for name in FIELDS[part]}
        texts["examples"] = self.examples.get(part, "")
        filled = re.sub(r"\{(\w+)\}", lambda found: texts[found.group(1)], self.templates[part])
        # Lone surrogates can be neither sent nor stored.
        return filled.encode("utf-8", "replace").decode("utf-8")


@cache
def load_rubric(few_shot: bool = False, version: str = "axbench-1") -> Rubric:
    """The shipped rubric; the few-shot variant shows a worked example per rating and has its own version."""
    folder = resources.files("tagsteer.judge") / "prompts" / version
    if not folder.is_dir():
        raise TagsteerError(f"no rubric {version!r} is shipped: use 'axbench-1'")
    templates = {part: (folder / f"{part}.txt").read_text("utf-8").rstrip("\n") for part in PARTS}
    if not few_shot:
        return Rubric(version, templates, {})
    shots = tomllib.loads((folder / "few_shot.toml").read_text("utf-8"))
    examples = {part: _examples(part, shots[part]) for part in PARTS}
    return Rubric(f"{version}-few-shot", templates, examples)


def _examples(part: str, shots: list[dict]) -> str:
    """The worked examples of one part as text, in the same blocks as the question."""
    lines = ["", "Here are worked examples."]
    for number, shot in enumerate(shots, start=1):
        lines.append(f"\nExample {number}:")
        for name in FIELDS[part]:
            title = "Sentence Fragment" if name == "generation" else name.capitalize()
            lines += [f"[{title} Start]", shot[name], f"[{title} End]"]
        lines.append(f"{shot['reply']}\nRating: [[{shot['rating']}]]")
    lines.append("\nNow judge the following.\n")
    return "\n".join(lines)


def question_key(model: str, rubric_version: str, parameters: Mapping[str, object], prompt: str) -> str:
    """SHA-256 of everything that changes an answer: model, rubric, parameters of sampling, and text.

    Who serves the model is not part of it: a node's name or a proxy changes no answer.
    """
    payload = json.dumps(
        [model, rubric_version, dict(parameters), prompt], sort_keys=True, ensure_ascii=False
    )
    return hashlib.sha256(payload.encode("utf-8")).hexdigest()


def parse_rating(text: str) -> float | None:
    """The rating in a judge's reply by AxBench's rules, or None where AxBench's parser gives 0 for a failure.

    The first line after the last "Rating:" (this spelling), without brackets, then without trailing full
    stops, double quotes, single quotes, asterisks and blanks, in this order, must be a number from 0 to 2.
    Fractions stay. Source: axbench/evaluators/lm_judge.py; tested against the stored ratings of real runs.
    """
    return read_reply(text)[0]


def axbench_rating(text: str) -> float:
    """The rating as AxBench stores it: 0 where the reply holds none. For reproducing its figures only."""
    rating = parse_rating(text)
    return 0.0 if rating is None else rating


def read_reply(text: str, finish_reason: str | None = None) -> tuple[float | None, str]:
    """(rating, "") or (None, why). A reply cut at the token limit has none: its end may say another one."""
    if finish_reason == "length":
        return None, "the reply was cut at the token limit"
    if finish_reason == "content_filter":
        return None, "the reply was stopped by the server's content filter"
    if not text.strip():
        return None, "the reply is empty"
    _, found, tail = text.rpartition("Rating:")
    if not found:
        return None, 'the reply holds no "Rating:"'
    line = tail.strip().split("\n")[0].strip().replace("[", "").replace("]", "")
    line = line.rstrip(".").strip('"').strip("'").strip("*").strip()
    try:
        rating = float(line)
    except ValueError:
        return None, 'no number follows "Rating:"'
    if math.isnan(rating) or not 0 <= rating <= 2:
        return None, "the rating is outside 0 to 2"
    # -0.0 equals 0 but prints otherwise.
    return rating + 0.0, ""
