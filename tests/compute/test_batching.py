"""Batches stay within the budget, shrink when memory runs out, and grow back; no unit is lost or done
twice."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagsteer.compute.batching import Batcher, is_out_of_memory, length_buckets
from tagsteer.errors import TagsteerError


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 120))
def test_buckets_hold_every_unit_once_within_the_budget(sizes, budget):
    batches = length_buckets(sizes, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    largest = [max(sizes[i] for i in batch) for batch in batches]
    assert largest == sorted(largest, reverse=True)
    for batch, size in zip(batches, largest, strict=True):
        assert len(batch) == 1 or len(batch) * size <= budget or size == 0


def test_short_units_do_not_fill_up_a_batch_of_long_ones():
    batches = length_buckets([100] * 3 + [10] * 50, 1000)
    assert [len(batch) for batch in batches] == [3, 50]
    waste = [100, 90, 80, 70, 60, 51, 49, 40]
    assert [len(batch) for batch in length_buckets(waste, 10_000)] == [8]


def memory_of(limit, done):
    """Work that fails above `limit` (count × largest size), like a device of that size."""

    def work(sizes):
        def run(batch):
            if len(batch) * max(sizes[i] for i in batch) > limit["now"]:
                raise MemoryError(f"wanted more than {limit['now']}")
            done.extend(batch)
            return sum(sizes[i] for i in batch)

        return run

    return work


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(30, 100))
def test_results_do_not_depend_on_where_memory_ends(sizes, limit):
    done: list[int] = []
    work = memory_of({"now": limit}, done)(sizes)
    results = list(Batcher(400, raise_after=3).run(sizes, work))
    assert sorted(done) == list(range(len(sizes)))
    assert sum(result for _, result in results) == sum(sizes)
    assert [sum(sizes[i] for i in batch) for batch, _ in results] == [result for _, result in results]


def test_budget_is_halved_with_a_warning_and_raised_when_it_fits_again(caplog):
    sizes, limit, done = [1] * 400, {"now": 40}, []
    work = memory_of(limit, done)(sizes)
    batcher = Batcher(64, raise_after=4)
    budgets = []
    with caplog.at_level(logging.INFO, "tagsteer.compute"):
        for batch, _ in batcher.run(sizes, work):
            budgets.append(len(batch))
            if len(budgets) == 3:
                limit["now"] = 1000
    assert budgets[:4] == [32] * 4 and budgets[4] == 64
    assert "memory ran out at 64 tokens" in caplog.text and "trying 64 tokens" in caplog.text


def test_a_budget_that_failed_twice_is_not_tried_again():
    tried: list[int] = []

    def work(batch):
        tried.append(len(batch))
        if len(batch) > 32:
            raise MemoryError

    list(Batcher(64, raise_after=2).run([1] * 1000, work))
    assert tried.count(64) == 2


def test_one_unit_that_does_not_fit_is_an_error_that_says_so():
    def work(batch):
        raise MemoryError(f"no room for {batch}")

    with pytest.raises(TagsteerError, match=r"one unit of 7 tokens .*no room"):
        list(Batcher(100).run([7, 3], work))


def test_other_errors_pass_through_and_are_not_retried():
    calls = []

    def work(batch):
        calls.append(batch)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Batcher(10).run([1, 1], work))
    assert len(calls) == 1


def test_what_counts_as_out_of_memory():
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    assert not is_out_of_memory(RuntimeError("index out of range"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value)


def test_a_budget_of_nothing_is_an_error():
    with pytest.raises(TagsteerError, match="0 rows"):
        Batcher(0, "rows")
