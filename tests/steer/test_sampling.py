"""Draws have the right distribution, belong to (seed, step), and cuts equal transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.steer.sampling import GREEDY, Sampling, draw, exponentials, item_seed, step_keys


def many_keys(n: int, salt: str = "") -> torch.Tensor:
    return step_keys([item_seed((salt, i // 128)) for i in range(n)], [i % 128 for i in range(n)])


def test_exponentials_are_independent_exponentials():
    e = exponentials(many_keys(64), 5000).double()
    from scipy import stats

    assert e.min() > 0
    u = torch.exp(-e).numpy()

    # fixed seeds: these p-values are numbers, not luck
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(u.min(0), "beta", args=(1, 64)).pvalue > 1e-3  # the same token over steps
    between_steps = np.corrcoef(u)[np.triu_indices(64, 1)]
    assert np.abs(between_steps).max() < 5 / np.sqrt(5000)
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(u.size)


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -8.0])
    n = 40_000
    from scipy import stats

    for temperature in (1.0, 0.5, 3.0):
        ids = draw(logits.expand(n, -1), [Sampling(temperature)] * n, many_keys(n, str(temperature)))
        p = (logits.double() / temperature).softmax(-1).numpy()
        seen = np.bincount(ids.numpy(), minlength=5)
        assert stats.chisquare(seen, p * n).pvalue > 1e-3


def test_a_draw_depends_on_seed_and_step_alone():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    seeds, steps = [item_seed(("a", i)) for i in range(6)], [3, 1, 4, 1, 5, 9]
    together = draw(logits, [Sampling()] * 6, step_keys(seeds, steps))
    mixed = [Sampling(), GREEDY, Sampling(0.7), Sampling(top_k=3), Sampling(top_p=0.5), Sampling()]
    beside = draw(logits, mixed, step_keys(seeds, steps))
    for b in range(6):
        one = draw(logits[b : b + 1], [Sampling()], step_keys(seeds[b : b + 1], steps[b : b + 1]))
        assert one == together[b]
        alone = draw(logits[b : b + 1], [mixed[b]], step_keys(seeds[b : b + 1], steps[b : b + 1]))
        assert alone == beside[b]
    assert beside[1] == logits[1].argmax()


def test_keys_give_seeds_that_survive_a_table():
    assert (
        item_seed(("sae", 3, 1.0))
        == item_seed(("sae", 3.0, 1))
        == item_seed(("sae", np.int64(3), np.float64(1)))
    )
    different = [("sae", 3, 1.5), ("sae", 3, "1.0"), ("sae", None, 1.0), ("sae3", 1.0), ("sae", "3", 1.0)]
    assert len({item_seed(key) for key in [("sae", 3, 1.0), *different]}) == 6
    assert item_seed("a", 1) != item_seed("a", 0)
    # pinned: a change would silently redraw everybody's texts
    assert item_seed(("sae", 3, 1.0)).hex() == "db4c8505d74fe6c2aa5bb67e5cd9db49"
    assert exponentials(step_keys([item_seed("a")], [7]), 4).tolist()[0] == pytest.approx(
        [2.067919, 0.0839163, 0.7270085, 1.0420333], rel=1e-6
    )


def test_cuts_equal_those_of_transformers():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    from tagsteer.steer.sampling import _cut

    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(1)) * 3
    for sampling, warper in [
        (Sampling(top_k=7), TopKLogitsWarper(7)),
        (Sampling(top_p=0.8), TopPLogitsWarper(0.8)),
        (Sampling(top_p=0.05), TopPLogitsWarper(0.05)),
        (Sampling(top_k=1000), TopKLogitsWarper(1000)),
    ]:
        assert torch.equal(_cut(logits, [sampling] * 5), warper(None, logits.clone()))


def test_broken_logits_and_bad_settings_are_not_hidden():
    logits = torch.tensor([[0.0, float("nan")], [0.0, float("inf")], [0.0, -float("inf")]])
    assert draw(logits, [Sampling()] * 3, many_keys(3)).tolist() == [-1, -1, 0]
    for bad in (
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ):
        with pytest.raises(TagsteerError, match=str(next(iter(bad)))):
            Sampling(**bad)
