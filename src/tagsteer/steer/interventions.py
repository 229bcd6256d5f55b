"""What is done to the residual stream x: frozen specifications, each with its formula. Numbers and names only.

Must not know tensors (edits.py applies these), models, labels or judges. a_i(x) is the activation of latent i of
the SAE on the unedited x, W_dec[i] its decoder row; all edits of one intervention are computed from the same x:

    x' = x + w(t) · Σ_k c_k(x) · W_dec[i_k]

with c_k given by the term's operation and w(t) by which tokens are steered and by the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagsteer.errors import TagsteerError, one_of

OPERATIONS = ("clamp", "clamp_if_active", "min_clamp", "addition")
KINDS = (*OPERATIONS, "ablation")
TOKENS = ("all", "prompt", "generation")
UNITS = ("absolute", "max_activation")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A weight w(t) on the whole edit, t = number of tokens generated so far (0 for all prompt tokens).

    constant: w = 1. first: w = 1 while t < n, then 0, so that the first n generated tokens are drawn from the steered
    model. ramp: w = start + (end − start) · min(1, t / n). The weight scales the edit, so 0 leaves x as it is
    and a clamp under w moves a_i the share w of the way to its target.
    """

    kind: str = "constant"
    n: int = 0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "ramp", "first"):
            raise one_of(self.kind, ["constant", "ramp", "first"], "strength schedule")
        if self.kind != "constant" and self.n < 1:
            raise TagsteerError(f"a {self.kind} schedule over n = {self.n} tokens: give n of 1 or more")
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise TagsteerError(f"a ramp from {self.start} to {self.end}: give finite weights")

    def weight(self, t: int) -> float:
        """w(t)."""
        if self.kind == "first":
            return float(t < self.n)
        if self.kind == "ramp":
            return self.start + (self.end - self.start) * min(1.0, t / self.n)
        return 1.0


CONSTANT = Schedule()


def ramp(n: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """The edit's weight goes from `start` to `end` over the first n generated tokens."""
    return Schedule("ramp", n, start, end)


def first(n: int) -> Schedule:
    """Steer while the first n tokens are generated, then leave the model alone."""
    return Schedule("first", n)


@dataclass(frozen=True, slots=True)
class Term:
    """One operation on one latent (an int) or along one of the engine's named vectors (a str, addition only).

    clamp            c = value − a_i(x)             so that a_i becomes value, whatever it was
    clamp_if_active  c = value − a_i(x) if a_i(x) > 0, else 0
    min_clamp        c = max(0, value − a_i(x))     so that a_i becomes max(a_i, value)
    addition         c = value
    """

    operation: str
    feature: int | str
    value: float

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise one_of(self.operation, list(OPERATIONS), "steering operation")
        if not math.isfinite(self.value):
            raise TagsteerError(f"strength {self.value} for feature {self.feature!r}: give a finite number")
        if isinstance(self.feature, str) and self.operation != "addition":
            raise TagsteerError(
                f"{self.operation} of the vector {self.feature!r}: only addition works on a vector, "
                "a clamp needs a feature number"
            )


@dataclass(frozen=True, slots=True)
class Intervention:
    """Terms on distinct latents, the tokens they reach, and a schedule; without terms the model runs unsteered.

    tokens: "all" (every prompt token with BOS, and every generated one), "prompt", or "generation" (only tokens
    the model generated itself, so that its first token is still drawn from the unsteered model).
    """

    terms: tuple[Term, ...] = ()
    tokens: str = "all"
    schedule: Schedule = CONSTANT

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise one_of(self.tokens, list(TOKENS), "choice of steered tokens")
        names = [term.feature for term in self.terms]
        for name in names:
            if names.count(name) > 1:
                raise TagsteerError(
                    f"feature {name!r} is steered twice in one intervention: give it one operation and value"
                )

    @property
    def features(self) -> tuple[int | str, ...]:
        return tuple(term.feature for term in self.terms)

    @property
    def always(self) -> bool:
        """Whether w(t) is 1 on every token."""
        return self.tokens == "all" and self.schedule.kind == "constant"

    def weight(self, t: int) -> float:
        """w(t): the schedule's weight where the token is one of `tokens`, else 0."""
        reached = self.tokens == "all" or (self.tokens == "prompt") == (t == 0)
        return self.schedule.weight(t) if reached else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        s = self.schedule
        return {
            "terms": [[term.operation, term.feature, term.value] for term in self.terms],
            "tokens": self.tokens,
            "schedule": [s.kind, s.n, s.start, s.end],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Intervention:
        return cls(tuple(Term(*term) for term in data["terms"]), data["tokens"], Schedule(*data["schedule"]))


NOTHING = Intervention()


def clamp(
    values: Mapping[int, float],
    *,
    only_if_active: bool = False,
    tokens: str = "all",
    schedule: Schedule = CONSTANT,
) -> Intervention:
    """Set a_i to c: x' = x − Dec(a) + Dec(a with a_i := c) = x + Σ_i (c_i − a_i(x)) · W_dec[i] (Templeton et al. 2024).

    With `only_if_active` only where a_i(x) > 0.
    """
    return intervention(
        "clamp_if_active" if only_if_active else "clamp", values, tokens=tokens, schedule=schedule
    )


def min_clamp(
    values: Mapping[int, float], *, tokens: str = "all", schedule: Schedule = CONSTANT
) -> Intervention:
    """Raise a_i to at least s: x' = x + Σ_i max(0, s_i − a_i(x)) · W_dec[i]."""
    return intervention("min_clamp", values, tokens=tokens, schedule=schedule)


def addition(
    values: Mapping[int | str, float], *, tokens: str = "all", schedule: Schedule = CONSTANT
) -> Intervention:
    """Add decoder rows or named vectors: x' = x + Σ_i s_i · W_dec[i]; s = 0 is the unsteered model."""
    return intervention("addition", values, tokens=tokens, schedule=schedule)


def ablation(features: Iterable[int], *, tokens: str = "all", schedule: Schedule = CONSTANT) -> Intervention:
    """Take features out: the clamp to 0, x' = x − Σ_i a_i(x) · W_dec[i]."""
    return intervention("ablation", dict.fromkeys(features, 0.0), tokens=tokens, schedule=schedule)


def intervention(
    kind: str, values: Mapping[Any, float], *, tokens: str = "all", schedule: Schedule = CONSTANT
) -> Intervention:
    """An intervention by the name of its kind (one of KINDS), from {feature: absolute value}."""
    if kind not in KINDS:
        raise one_of(kind, list(KINDS), "kind of intervention")
    if kind == "ablation":
        for name, value in values.items():
            if value != 0:
                raise TagsteerError(
                    f"ablation sets a feature to 0, got {value} for feature {name!r}: use clamp for another value"
                )
    operation = "clamp" if kind == "ablation" else kind
    terms = tuple(
        Term(operation, name if isinstance(name, str) else int(name), float(value))
        for name, value in values.items()
    )
    return Intervention(terms, tokens, schedule)


def resolve_strength(
    feature: int | str,
    factor: float,
    unit: str = "max_activation",
    max_activations: Mapping[Any, float] | Sequence[float] | None = None,
) -> float:
    """Absolute value of a strength: `factor` itself, or that many times the feature's max activation.

    `max_activations` is a table by feature id or vector name (a mapping, or anything indexed 0 .. d_sae − 1). A
    feature without a positive, finite max activation is an error, never a guess.
    """
    if unit not in UNITS:
        raise one_of(unit, list(UNITS), "unit of strength")
    if unit == "absolute":
        return float(factor)
    if max_activations is None:
        raise TagsteerError(
            f'strength {factor} of feature {feature} is in units of "max_activation" but no table of max activations '
            'was given: pass max_activations=..., or unit="absolute"'
        )
    if isinstance(max_activations, Mapping):
        found = max_activations.get(feature)
    else:
        inside = isinstance(feature, int) and 0 <= feature < len(max_activations)
        found = max_activations[feature] if inside else None  # type: ignore[index]
    top = float("nan") if found is None else float(found)
    if not (math.isfinite(top) and top > 0):
        what = "is missing from the table" if found is None else f"is {top:g}"
        raise TagsteerError(
            f"the max activation of feature {feature} {what}, so {factor} times it means nothing: choose a feature "
            'that fires in your documents, or give an absolute value with unit="absolute"'
        )
    return float(factor) * top
