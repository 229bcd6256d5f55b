"""Specifications: what is refused, what weights mean, and strengths in units of max activation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.steer.interventions import (
    KINDS,
    NOTHING,
    Intervention,
    Term,
    ablation,
    addition,
    clamp,
    first,
    intervention,
    min_clamp,
    ramp,
    resolve_strength,
)


def test_weights_over_generated_tokens():
    assert [first(2).weight(t) for t in range(4)] == [1, 1, 0, 0]
    assert [ramp(4).weight(t) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [ramp(2, 1, 0).weight(t) for t in range(4)] == [1, 0.5, 0, 0]
    assert [clamp({1: 2}, tokens="prompt").weight(t) for t in range(3)] == [1, 0, 0]
    assert [clamp({1: 2}, tokens="generation").weight(t) for t in range(3)] == [0, 1, 1]
    assert [clamp({1: 2}, tokens="generation", schedule=first(2)).weight(t) for t in range(3)] == [0, 1, 0]


def test_every_kind_survives_json_and_ablation_is_a_clamp_to_zero():
    for kind in KINDS:
        made = intervention(kind, {3: 0.0, 5: 0.0}, tokens="generation", schedule=ramp(3))
        assert Intervention.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert ablation([3]) == clamp({3: 0.0})
    assert clamp({3: 1}, only_if_active=True).terms[0].operation == "clamp_if_active"
    assert intervention("addition", {np.int64(3): np.float32(2)}) == addition({3: 2.0})
    assert NOTHING.features == () and min_clamp({1: 2.0}).features == (1,)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: intervention("clmp", {1: 2}), "clmp.*clamp"),
        (lambda: clamp({1: float("nan")}), "finite"),
        (lambda: clamp({1: 2}, tokens="answer"), "answer"),
        (
            lambda: Intervention((Term("clamp", 1, 2.0), Term("addition", 1, 2.0))),
            "feature 1 is steered twice",
        ),
        (lambda: Term("clamp", "mean:x", 2.0), "only addition"),
        (lambda: first(0), "n = 0"),
        (lambda: intervention("ablation", {4: 1.0}), "sets a feature to 0"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(TagsteerError, match=words):
        build()


def test_strength_in_max_activations_refuses_to_guess():
    assert resolve_strength(3, 1.5, "absolute") == 1.5
    assert resolve_strength(3, 1.5, "max_activation", {3: 4.0}) == 6.0
    assert resolve_strength(1, 2, "max_activation", np.array([1.0, 4.0], dtype=np.float32)) == 8.0
    assert resolve_strength("mean:x", 2, "max_activation", {"mean:x": 3.0}) == 6.0
    for table, words in [
        (None, "no table"),
        ({2: 4.0}, "missing from the table"),
        ([1.0, 2.0], "missing from the table"),
        ({3: 0.0}, "feature 3 is 0"),
        ({3: -1.0}, "feature 3 is -1"),
        ({3: float("nan")}, "feature 3 is nan"),
        ({3: None}, "missing"),
    ]:
        with pytest.raises(TagsteerError, match=words):
            resolve_strength(3, 1.5, "max_activation", table)
    with pytest.raises(TagsteerError, match="unit"):
        resolve_strength(3, 1.5, "maximum", {3: 4.0})
