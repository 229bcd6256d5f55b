"""The learned offline judge: gradient-boosted trees over `inputs`, read from arrays and walked by numpy.

Knows how trained weights are stored and evaluated; must not know how they were trained (`training.py`), and
needs no scikit-learn. Weights are one safetensors file with a JSON header; nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsteer.errors import TagsteerError
from tagsteer.files import as_others_are
from tagsteer.judge.inputs import INPUTS, SLOW_INPUTS, Reader, judge_inputs
from tagsteer.judge.offline import CHUNK, NAME, as_rating
from tagsteer.judge.types import PARTS, JudgeItem, Rating, check_keys

if TYPE_CHECKING:
    from tagsteer.judge.similarity import Similarity

HEADS = (*PARTS, "overall")
"""What is predicted: the three ratings and, since the harmonic mean of expected values is not the expected
harmonic mean, the overall score by itself."""
FORMAT = "tagsteer-offline-judge-2"
READER, READER_DTYPE = "smollm2-135m-instruct", "bfloat16"
"""The language model that reads along, in one type everywhere: other roundings would be other ratings."""


@dataclass(frozen=True, eq=False)
class Trees:
    """A sum of regression trees, flat: node n goes left where x[feature[n]] <= threshold[n], else right.

    Leaves point to themselves (left = right = n), so that every row can take the same number of steps.
    """

    feature: np.ndarray
    """int16 [nodes]"""
    threshold: np.ndarray
    """float32 [nodes]: edges between the trained steps, so float32 inputs fall as in training."""
    left: np.ndarray
    """int32 [nodes]"""
    right: np.ndarray
    """int32 [nodes]"""
    missing_left: np.ndarray
    """uint8 [nodes]: where a NaN goes."""
    value: np.ndarray
    """float32 [nodes]: added at a leaf."""
    root: np.ndarray
    """int32 [trees]"""
    start: float
    depth: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Sums float64 [rows] for inputs float32 [rows, features]."""
        out = np.full(len(x), self.start)
        rows = np.arange(len(x))[:, None]
        # Trees in groups: the gathered matrices stay within the processor's caches.
        for at in range(0, len(self.root), 64):
            node = np.tile(self.root[at : at + 64], (len(x), 1))  # (rows, trees)
            for _ in range(self.depth):
                seen = x[rows, self.feature[node]]
                left = np.where(np.isnan(seen), self.missing_left[node] > 0, seen <= self.threshold[node])
                node = np.where(left, self.left[node], self.right[node])
            out += self.value[node].astype(float).sum(1)
        return out


@dataclass(frozen=True, eq=False)
class Weights:
    """A trained judge: trees and calibration for each head, the names of its inputs, and its card.

    A second set of trees, where there is one, corrects the first by what a language model reads: their inputs are
    `inputs`, SLOW_INPUTS, and the first trees' sums, side by side.
    """

    trees: dict[str, Trees]
    calibration: dict[str, np.ndarray]
    """float32 [2, knots] for each head: raw sums and the ratings that they stand for, linear between."""
    inputs: tuple[str, ...]
    card: dict[str, Any]
    slow_trees: dict[str, Trees] = field(default_factory=dict)
    slow_calibration: dict[str, np.ndarray] = field(default_factory=dict)

    def predict(self, x: np.ndarray, slow: np.ndarray | None = None) -> np.ndarray:
        """Expected ratings [rows, len(HEADS)] in [0, 2] from inputs [rows, :] and, if given, slow inputs [rows, :]."""
        if x.shape[1] != len(self.inputs):
            raise TagsteerError(f"the judge wants {len(self.inputs)} inputs for each text, got {x.shape[1]}")
        x = np.ascontiguousarray(x, np.float32)
        raw = np.stack([self.trees[h](x) for h in HEADS], axis=1)
        if slow is None:
            return np.stack([np.interp(raw[:, k], *self.calibration[h]) for k, h in enumerate(HEADS)], axis=1)
        both = second_inputs(x, slow, raw)
        return np.stack(
            [np.interp(self.slow_trees[h](both), *self.slow_calibration[h]) for h in HEADS], axis=1
        )

    def save(self, path: str | Path) -> Path:
        """Write one .safetensors file (arrays) whose header holds names and card."""
        from safetensors.numpy import save_file

        arrays: dict[str, np.ndarray] = {}
        numbers = {}
        for prefix, all_trees, knots in (
            ("", self.trees, self.calibration),
            (_SLOW, self.slow_trees, self.slow_calibration),
        ):
            for head, trees in all_trees.items():
                for name in _ARRAYS:
                    arrays[f"{prefix}{head}.{name}"] = np.ascontiguousarray(getattr(trees, name))
                arrays[f"{prefix}{head}.calibration"] = np.ascontiguousarray(knots[head])
                numbers[prefix + head] = {"start": trees.start, "depth": trees.depth}
        header = {
            "format": FORMAT,
            "inputs": json.dumps(self.inputs),
            "heads": json.dumps(numbers),
            "card": json.dumps(self.card),
        }
        save_file(arrays, str(path), metadata=header)
        return as_others_are(path)

    @classmethod
    def load(cls, path: str | Path) -> Weights:
        """Read what `save` wrote; a file of another kind or a damaged tree is an error."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise TagsteerError(
                f"cannot read judge weights {str(path)!r}: {error}; train them with `tagsteer train-judge`"
            ) from error
        if header.get("format") != FORMAT:
            raise TagsteerError(
                f"{str(path)!r} is not an offline judge of format {FORMAT} (found {header.get('format')!r}); "
                "train one with `tagsteer train-judge`"
            )
        inputs, numbers = tuple(json.loads(header["inputs"])), json.loads(header["heads"])
        found: list[dict[str, Any]] = []
        for prefix, width in (("", len(inputs)), (_SLOW, len(inputs) + len(SLOW_INPUTS) + len(HEADS))):
            heads = [h for h in HEADS if prefix + h in numbers]
            trees = {
                h: Trees(**{n: arrays[f"{prefix}{h}.{n}"] for n in _ARRAYS}, **numbers[prefix + h])
                for h in heads
            }
            for head, t in trees.items():
                n = len(t.value)
                inside = all((a >= 0).all() and (a < n).all() for a in (t.left, t.right, t.root))
                if not inside or (t.feature < 0).any() or (t.feature >= width).any():
                    raise TagsteerError(
                        f"{str(path)!r} holds a damaged tree (head {prefix}{head}): download or train it again"
                    )
            found += [trees, {h: arrays[f"{prefix}{h}.calibration"] for h in heads}]
        return cls(found[0], found[1], inputs, json.loads(header["card"]), found[2], found[3])


_ARRAYS = ("feature", "threshold", "left", "right", "missing_left", "value", "root")
_SLOW = "slow."


def second_inputs(x: np.ndarray, slow: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """What the second set of trees sees: float32 [rows, inputs + slow inputs + heads]."""
    return np.concatenate([x, slow, raw], axis=1).astype(np.float32)


def shipped_weights() -> Path:
    """Where the judge that comes with tagsteer lies."""
    return Path(str(resources.files("tagsteer.judge").joinpath("weights/offline_judge.safetensors")))


def load_reader(device: str = "cpu") -> Reader:
    """The language model that reads along: always the one the judge was trained with, whatever is steered."""
    from tagsteer.lm.model import load_model

    return Reader(load_model(READER, device, READER_DTYPE))


class LearnedJudge:
    """Rates by trained weights. Ratings are expected values in [0, 2]; `integers` rounds them to 0, 1, 2.

    `perplexity` lets SmolLM2-135M-Instruct read every text too, many times slower; the weights must have
    been trained so. An empty text is rated 0, 0, 0: so did the judge it was trained on.
    """

    name = NAME

    def __init__(
        self,
        weights: Weights,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        integers: bool = False,
        perplexity: bool = False,
    ) -> None:
        if weights.inputs != INPUTS:
            raise TagsteerError(
                "these judge weights were trained on other inputs than this version of tagsteer computes: "
                "train them again with `tagsteer train-judge`"
            )
        if perplexity and not weights.slow_trees:
            raise TagsteerError(
                "these judge weights were trained without perplexities: set judge.perplexity = false, or train "
                "them again with `tagsteer train-judge --perplexity`"
            )
        self.weights, self._integers, self._perplexity = weights, integers, perplexity
        self._device, self._dtype = device, dtype

    @classmethod
    def load(cls, path: str | Path | None = None, **options: Any) -> LearnedJudge:
        """The shipped judge, or the one at `path`; options as for the class."""
        return cls(Weights.load(path or shipped_weights()), **options)

    @property
    def version(self) -> str:
        """Name of the trained weights, and whether a language model reads along: its ratings are others."""
        name = str(self.weights.card.get("version", "unnamed"))
        return f"{name}+perplexity" if self._perplexity else name

    @property
    def card(self) -> dict[str, Any]:
        """What it was trained on and how far it agrees with that on concepts that it had not seen."""
        return self.weights.card

    def describe(self) -> str:
        key = "held_out_with_perplexity" if self._perplexity else "held_out_concepts"
        rho = self.card.get(key, {}).get("spearman", {})
        agreement = ", ".join(f"{h} {rho[h]:.2f}" for h in HEADS if rho.get(h) is not None)
        said = (
            f"; Spearman with {self.card.get('judge', 'its teacher')} on unseen concepts: {agreement}"
            if agreement
            else ""
        )
        return f"{self.name} ({self.version}{said})"

    @cached_property
    def _similarity(self) -> Similarity:
        from tagsteer.judge.embedder import load_embedder
        from tagsteer.judge.similarity import Similarity

        return Similarity.of(load_embedder(self._device, self._dtype))

    @cached_property
    def _reader(self) -> Reader:
        return load_reader(self._device)

    def predict(self, items: Sequence[JudgeItem]) -> np.ndarray:
        """Expected concept, instruction, fluency and overall score [items, 4]; 0 for empty texts."""
        out = np.zeros((len(items), len(HEADS)))
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            texts = [i.generation for i in chunk]
            concepts, instructions = [i.concept for i in chunk], [i.instruction for i in chunk]
            x = judge_inputs(self._similarity, concepts, instructions, texts)
            slow = self._reader(concepts, instructions, texts) if self._perplexity else None
            empty = np.array([not t.strip() for t in texts])
            out[start : start + len(chunk)] = np.where(empty[:, None], 0.0, self.weights.predict(x, slow))
        return out

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """(key, rating) in the order of the items, by chunks."""
        check_keys(items)
        described = self.describe()
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            for item, values in zip(chunk, self.predict(chunk), strict=True):
                yield item.key, as_rating(values[: len(PARTS)], described, self._integers)
