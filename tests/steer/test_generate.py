"""The engine against a plain loop: cache, padding, batches, order, interruption and memory change no text."""

from __future__ import annotations

import random

import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.lm.hooks import edit_residual
from tagsteer.steer import generate as generate_module
from tagsteer.steer.generate import Engine, WorkItem, work_units
from tagsteer.steer.interventions import NOTHING, addition, clamp, first, min_clamp, ramp
from tagsteer.steer.sampling import GREEDY, Sampling, draw, item_seed, step_keys
from tests.steer.helpers import LAYER, Recorder, precise_model, small_sae, texts

FAMILIES = ["llama", "gemma2", "gpt2", "qwen2", "gpt_neox", "mistral"]
STEERINGS = [
    NOTHING, clamp({4: 9.0}), clamp({7: -3.0, 2: 6.0}), addition({4: 5.0}), min_clamp({3: 4.0}),
    clamp({4: 9.0}, tokens="generation"), clamp({4: 9.0}, tokens="prompt"), clamp({4: 9.0}, schedule=first(3)),
    addition({5: 6.0}, schedule=ramp(5)), clamp({9: 4.0}, only_if_active=True),
]  # fmt: skip


@pytest.fixture(params=FAMILIES)
def model(request):
    return precise_model(request.param)


def some_items(model, n: int = 20) -> list[WorkItem]:
    return [
        WorkItem(
            ("case", i),
            tuple(model.encode("steered " * (1 + i % 4))),
            STEERINGS[i % len(STEERINGS)],
            4 + i % 9,
            [Sampling(), GREEDY, Sampling(0.7, top_k=40), Sampling(1.3, top_p=0.9)][i % 4],
        )
        for i in range(n)
    ]


def plain_loop(model, sae, item: WorkItem, seed: int = 0) -> list[int]:
    """One text without batch, cache or padding, its clamp through the whole SAE: the slow definition."""
    ids = list(item.prompt_ids)
    start = len(ids)
    while len(ids) - start < item.max_new_tokens:
        weight = torch.tensor([item.intervention.weight(max(0, p - start + 1)) for p in range(len(ids))])[
            :, None
        ]

        def edit(x, weight=weight):
            a = sae.encode(x)
            changed, extra = a.clone(), torch.zeros_like(x)
            for term in item.intervention.terms:
                i, c = term.feature, term.value
                if term.operation == "addition":
                    extra = extra + c * sae.W_dec[i]
                elif term.operation == "min_clamp":
                    changed[..., i] = a[..., i].clamp(min=c)
                elif term.operation == "clamp_if_active":
                    changed[..., i] = torch.where(a[..., i] > 0, c, 0.0)
                else:
                    changed[..., i] = c
            return x + weight * (sae.decode(changed) - sae.decode(a) + extra)

        with edit_residual(model, LAYER, edit), torch.inference_mode():
            logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        keys = step_keys([item_seed(item.key, seed)], [len(ids) - start])
        ids.append(int(draw(logits, [item.sampling], keys)))
        if ids[-1] in model.eos_ids:
            return ids[start:-1]
    return ids[start:]


def test_a_mixed_batch_equals_rows_run_one_by_one_without_cache_or_padding(model):
    sae, items = small_sae(dtype=model.dtype), some_items(model)
    found = texts(Engine(model, sae, batch_size=6), items)
    assert {key: list(g.token_ids) for key, g in found.items()} == {
        i.key: plain_loop(model, sae, i) for i in items
    }
    assert {g.finish for g in found.values()} <= {"eos", "length"}
    assert all(g.n_prompt_tokens == len(i.prompt_ids) for i in items for g in [found[i.key]])


@pytest.mark.parametrize("kind", ["relu", "topk", "gated"])
def test_other_kinds_of_sae_agree_with_the_plain_loop(kind):
    model = precise_model("llama")
    sae, items = small_sae(kind, torch.float64), some_items(model, 10)
    found = texts(Engine(model, sae, batch_size=4), items)
    assert {key: list(g.token_ids) for key, g in found.items()} == {
        i.key: plain_loop(model, sae, i) for i in items
    }


@pytest.mark.parametrize(
    "change", ["batch of 1", "batch of 64", "no cache", "shuffled", "halves", "reversed units"]
)
def test_texts_do_not_depend_on_batch_cache_order_or_interruption(change, tiny_llama):
    sae, items = small_sae(), some_items(tiny_llama, 40)
    wanted = texts(Engine(tiny_llama, sae, batch_size=6), items)
    if change == "halves":
        done = texts(Engine(tiny_llama, sae, batch_size=6), items[:13])
        found = done | texts(Engine(tiny_llama, sae, batch_size=6), [i for i in items if i.key not in done])
    elif change == "reversed units":
        units = work_units(items, 7)
        found = {
            k: g for unit in reversed(units) for k, g in texts(Engine(tiny_llama, sae), list(unit)).items()
        }
    else:
        size = {"batch of 1": 1, "batch of 64": 64}.get(change, 6)
        engine = Engine(tiny_llama, sae, batch_size=size, use_cache=change != "no cache")
        shuffled = random.Random(1).sample(items, len(items)) if change == "shuffled" else items
        found = texts(engine, shuffled)
    assert found == wanted and len(wanted) == 40


def test_left_padding_changes_nothing(model):
    """A short prompt beside a long one: the edited residuals and the text are those of the short one alone."""
    sae = small_sae(dtype=model.dtype)
    short = WorkItem("short", tuple(model.encode("hi")), clamp({4: 9.0}), 6)
    long = WorkItem("long", tuple(model.encode("a much longer prompt than the other")), clamp({4: 2.0}), 6)
    with Recorder(model) as alone:
        wanted = texts(Engine(model, sae), [short])["short"]
    with Recorder(model) as beside:
        found = texts(Engine(model, sae), [short, long])["short"]
    n = len(short.prompt_ids)
    assert found == wanted
    torch.testing.assert_close(beside.seen[0][1, -n:], alone.seen[0][0], rtol=0, atol=1e-5)


def test_every_decoded_token_is_steered_with_the_cache_on(tiny_llama):
    """The clamped latent reads its target at every prompt token, BOS included, and at every generated one."""
    sae, model = small_sae("relu"), tiny_llama
    # A latent that always fires and whose decoder row moves exactly itself: after the edit it reads the target.
    sae.b_enc[4] = 5.0
    sae.W_dec[4] = sae.W_enc[:, 4] / sae.W_enc[:, 4].square().sum()
    item = WorkItem("a", tuple(model.encode("steer")), clamp({4: 9.0}), 7, Sampling(top_k=200))
    with Recorder(model) as recorder:
        found = texts(Engine(model, sae), [item])["a"]
    positions = [x.shape[1] for x in recorder.seen]
    assert positions == [len(item.prompt_ids)] + [1] * (len(found.token_ids) - (found.finish == "length"))
    seen = torch.cat([sae.encode(x)[0, :, 4] for x in recorder.seen])
    torch.testing.assert_close(seen, torch.full_like(seen, 9.0), rtol=1e-4, atol=0)


def test_empty_interventions_and_zero_additions_equal_the_unsteered_text(model):
    sae = small_sae(dtype=model.dtype)
    ids = tuple(model.encode("plain"))
    wanted = texts(Engine(model), [WorkItem("k", ids, NOTHING, 8)])
    for steering in (NOTHING, addition({4: 0.0}), clamp({4: 9.0}, schedule=ramp(50, 0, 0))):
        assert texts(Engine(model, sae), [WorkItem("k", ids, steering, 8)]) == wanted
    assert texts(Engine(model, sae), [WorkItem("k", ids, addition({4: 40.0}), 8)]) != wanted


def test_no_hook_is_left_between_results(tiny_llama):
    run = Engine(tiny_llama, small_sae(), batch_size=2).run(some_items(tiny_llama, 6))
    next(run)
    assert not tiny_llama.layers[LAYER]._forward_hooks
    run.close()


def test_running_out_of_memory_halves_the_batch_and_changes_no_text(tiny_llama, monkeypatch, caplog):
    sae, items = small_sae(), some_items(tiny_llama, 20)
    wanted = texts(Engine(tiny_llama, sae, batch_size=16), items)
    forward = Engine._forward
    sizes = []

    def limited(self, batch, ids):
        sizes.append(len(ids))
        decoding = all(len(row) == 1 for row in ids)
        if len(ids) > (4 if decoding else 12):  # fails both in prefill and, later, while decoding
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        forward(self, batch, ids)

    monkeypatch.setattr(generate_module.Engine, "_forward", limited)
    assert texts(Engine(tiny_llama, sae, batch_size=16), items) == wanted
    assert max(sizes) == 16 and caplog.text.count("memory ran out") == 2

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(generate_module.Engine, "_forward", never)
    with pytest.raises(TagsteerError, match="single text does not fit"):
        texts(Engine(tiny_llama, sae, batch_size=2), items)


def test_other_runtime_errors_pass_through(tiny_llama, monkeypatch):
    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(generate_module.Engine, "_forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        texts(Engine(tiny_llama), some_items(tiny_llama, 1)[:1])


def test_rows_leave_and_join_so_that_few_places_stay_empty(tiny_llama, monkeypatch):
    widths = []
    forward = Engine._forward

    def counted(self, batch, ids):
        if all(len(row) == 1 for row in ids):
            widths.append((len(batch.live), len(ids)))
        forward(self, batch, ids)

    monkeypatch.setattr(generate_module.Engine, "_forward", counted)
    items = [
        WorkItem(("x", i), tuple(tiny_llama.encode("x" * (i % 5 + 1))), NOTHING, 3 + i % 30)
        for i in range(64)
    ]
    texts(Engine(tiny_llama, batch_size=8), items)
    busy = [live / width for live, width in widths]
    assert sum(busy) / len(busy) > 0.95
    assert sum(width == 8 for _, width in widths) > 0.75 * len(widths)


def test_broken_logits_end_the_text_and_are_reported(tiny_llama, caplog):
    broken = clamp({4: 3e38})
    items = [
        WorkItem("bad", tuple(tiny_llama.encode("a")), broken, 5),
        WorkItem("good", tuple(tiny_llama.encode("b")), NOTHING, 5),
    ]
    found = texts(Engine(tiny_llama, small_sae()), items)
    assert found["bad"].finish == "non_finite" and found["bad"].token_ids == ()
    assert found["good"] == texts(Engine(tiny_llama), items[1:])["good"]
    assert "'bad' became NaN" in caplog.text


def test_a_stream_gives_the_tokens_of_a_run(tiny_llama):
    engine = Engine(tiny_llama, small_sae())
    for item in some_items(tiny_llama, 8):
        assert tuple(engine.stream(item)) == texts(engine, [item])[item.key].token_ids


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_ids": ()}, "prompt of .* is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": 600}, "room for 512"),
        ({"intervention": clamp({24: 1.0})}, "feature 24 is out of range"),
    ],
)
def test_bad_items_are_refused_before_anything_runs(change, words, tiny_llama, monkeypatch):
    monkeypatch.setattr(generate_module.Engine, "_forward", None)
    good = {"key": "k", "prompt_ids": (1, 2), "intervention": NOTHING, "max_new_tokens": 3}
    with pytest.raises(TagsteerError, match=words):
        texts(Engine(tiny_llama, small_sae()), [WorkItem("first", (1,)), WorkItem(**{**good, **change})])
    with pytest.raises(TagsteerError, match="two work items have the key"):
        texts(Engine(tiny_llama), [WorkItem(("k", 1), (1,)), WorkItem(("k", 1.0), (2,))])


def test_parts_that_do_not_fit_together_are_refused(tiny_llama):
    import dataclasses

    sae = small_sae()
    with pytest.raises(TagsteerError, match="which layer"):
        Engine(tiny_llama, dataclasses.replace(sae, layer=None))
    with pytest.raises(TagsteerError, match="layer 9 is out of range"):
        Engine(tiny_llama, sae, layer=9)
    with pytest.raises(TagsteerError, match="d_model 32, wide has 64"):
        Engine(type("Wide", (), {"d_model": 64, "name": "wide"})(), sae)
    with pytest.raises(TagsteerError, match="vector 'v' has shape"):
        Engine(tiny_llama, sae, vectors={"v": torch.ones(3)})


def test_models_whose_rows_cannot_leave_run_each_batch_to_its_end(tiny_llama, monkeypatch):
    from transformers import DynamicCache

    sae, items = small_sae(), some_items(tiny_llama, 20)
    wanted = texts(Engine(tiny_llama, sae, batch_size=6), items)
    monkeypatch.setattr(generate_module, "new_cache", lambda config: (DynamicCache(config=config), False))
    assert texts(Engine(tiny_llama, sae, batch_size=6), items) == wanted
