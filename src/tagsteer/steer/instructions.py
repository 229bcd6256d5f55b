"""Instructions to steer on: the package's own 100 neutral ones, or a user's file such as AlpacaEval's 805.

Knows text files only. AlpacaEval (CC BY-NC 4.0) is not shipped; its alpaca_eval.json is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tagsteer.errors import TagsteerError


@dataclass(frozen=True, slots=True)
class Instruction:
    """One request, and its row in the list that it comes from."""

    id: int
    text: str


@dataclass(frozen=True)
class InstructionSet:
    """A list of instructions in file order, what it was read from, and a digest of its texts."""

    instructions: tuple[Instruction, ...]
    source: str
    digest: str

    def __len__(self) -> int:
        return len(self.instructions)

    def __getitem__(self, row: int) -> Instruction:
        return self.instructions[row]

    def sample(self, n: int, seed: int = 0) -> list[Instruction]:
        """n different instructions in drawn order; a larger n only appends. The same for every pair of a run."""
        import numpy as np

        if not 1 <= n <= len(self):
            raise TagsteerError(f"{n} instructions were asked for: {self.source} has {len(self)}")
        rows = np.random.RandomState(seed).permutation(len(self))[:n]
        return [self.instructions[row] for row in rows]


ALPACA_EVAL = "alpaca_eval"


def load_instructions(path: str | Path | None = None) -> InstructionSet:
    """The package's own 100 instructions, or those of a file.

    Files: .json, a list of texts or of objects with "instruction" (AlpacaEval's alpaca_eval.json); .jsonl, one
    of those a line; anything else, one instruction a line. The name "alpaca_eval" stands for AlpacaEval's 805
    (CC BY-NC 4.0), fetched from the hub. Raises TagsteerError naming the first bad entry.
    """
    if path is None:
        text = resources.files("tagsteer.steer").joinpath("instructions.txt").read_text(encoding="utf-8")
        return _set(text.splitlines(), "tagsteer's own list")
    path = _from_hub() if str(path) == ALPACA_EVAL else Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TagsteerError(f"cannot read the instructions {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TagsteerError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    try:
        if path.suffix == ".json":
            entries = json.loads(text)
        elif path.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            entries = [line for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise TagsteerError(f"{path} is not valid {path.suffix}: {error}") from error
    if not isinstance(entries, list):
        raise TagsteerError(
            f'{path} holds a {type(entries).__name__}: wanted a list of texts or of objects with "instruction"'
        )
    return _set(entries, str(path))


def _from_hub() -> Path:
    """AlpacaEval's file in the hub's cache, downloaded at the first call."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("tatsu-lab/alpaca_eval", "alpaca_eval.json", repo_type="dataset"))
    except Exception as error:  # the hub's client has some ten kinds of failure
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TagsteerError(
            f"cannot fetch AlpacaEval from the hub ({reason}): download alpaca_eval.json and give its path"
        ) from error


def _set(entries: list[Any], source: str) -> InstructionSet:
    texts = []
    for row, entry in enumerate(entries):
        text = entry.get("instruction") if isinstance(entry, dict) else entry
        if not isinstance(text, str) or not text.strip():
            raise TagsteerError(
                f'instruction {row} of {source} is {str(entry)[:60]!r}: wanted a text, or an object with "instruction"'
            )
        texts.append(text)
    if not texts:
        raise TagsteerError(f"{source} holds no instruction: give at least one")
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    return InstructionSet(tuple(Instruction(i, text) for i, text in enumerate(texts)), source, digest)
