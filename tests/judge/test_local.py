"""The local judge: replies independent of the batch, sampling from the right distribution, resuming."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.judge.local import LocalJudge
from tagsteer.judge.store import JudgementStore, Question
from tagsteer.judge.types import Judge
from tests.judge.conftest import make_items


def replies(model, batch_size: int, temperature: float, seed: int = 0, n: int = 2) -> dict[str, str]:
    """Reply by prompt of all questions on n items."""
    judge = LocalJudge(
        model,
        temperature=temperature,
        max_new_tokens=6,
        batch_size=batch_size,
        seed=seed,
        few_shot=False,
        asks=1,
    )
    list(judge.rate(make_items(n)))
    return dict(judge.store._db.execute("SELECT prompt, reply FROM questions JOIN answers USING(key)"))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_replies_do_not_depend_on_the_batch(tiny_llama, temperature):
    alone = replies(tiny_llama, 1, temperature)
    assert len(alone) == 6 and alone == replies(tiny_llama, 4, temperature) == replies(
        tiny_llama, 3, temperature, n=2
    )


def test_seed_changes_samples_alone(tiny_llama):
    assert replies(tiny_llama, 3, 0.7, seed=0) != replies(tiny_llama, 3, 0.7, seed=1)
    assert replies(tiny_llama, 3, 0.0, seed=0) == replies(tiny_llama, 3, 0.0, seed=1)


def test_noise_samples_from_the_softmax(tiny_llama):
    """4,000 draws against softmax(logits/T): chi-square of 3 degrees of freedom, 99.9 % quantile 16.3."""
    logits, temperature, n = torch.tensor([1.0, 0.0, -1.0, 0.5]), 0.7, 4000
    judge = LocalJudge(tiny_llama, temperature=temperature)
    batch = [Question(f"q{i}", "fluency", "m", "r", "{}", "") for i in range(n)]
    drawn = judge._noise(batch)(torch.empty(0), logits.expand(n, 4)).argmax(dim=1)
    seen = Counter(drawn.tolist())
    expected = n * torch.softmax(logits / temperature, dim=0).numpy()
    counts = np.array([seen[i] for i in range(4)])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


class Scripted:
    """Stands for a model that answers "Rating: 1" to all, and runs out of memory on more than two rows."""

    def __init__(self, model, text: str = "Rating: 1") -> None:
        self.model, self.text, self.rows = model, text, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    @property
    def hf(self):
        return self

    def generate(self, input_ids, attention_mask, **_):
        assert input_ids.shape == attention_mask.shape
        self.rows.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no")
        end = sorted(self.model.eos_ids)
        new = self.model.tokenizer(self.text, add_special_tokens=False)["input_ids"] + end
        return torch.cat([input_ids, torch.tensor([new] * len(input_ids))], dim=1)


def test_ratings_memory_and_resuming(tiny_llama, tmp_path):
    model = Scripted(tiny_llama)
    with JudgementStore(tmp_path / "s") as store:
        judge = LocalJudge(model, store, batch_size=8)
        assert isinstance(judge, Judge) and judge.describe() == "tiny-llama (local), rubric axbench-1, greedy"
        ratings = dict(judge.rate(make_items(3)))
        assert [(r.concept, r.instruction, r.fluency) for r in ratings.values()] == [(1, 1, 1)] * 3
        assert model.rows[0] == 8 and sum(rows for rows in model.rows if rows <= 2) == 9
        calls = len(model.rows)
        assert dict(LocalJudge(model, store).rate(make_items(3))) == ratings and len(model.rows) == calls


def test_unreadable_replies_are_missing(tiny_llama):
    model = Scripted(tiny_llama, "I will not say.")
    (rating,) = dict(LocalJudge(model, batch_size=2).rate(make_items(1))).values()
    assert set(rating.reasons.values()) == {'the reply holds no "Rating:"'} and sum(model.rows) == 3
    model = Scripted(tiny_llama, "I will not say.")
    (rating,) = dict(LocalJudge(model, batch_size=2, temperature=1.0, asks=3).rate(make_items(1))).values()
    assert (
        set(rating.reasons.values()) == {'the reply holds no "Rating:" (asked 3 times)'}
        and sum(model.rows) == 9
    )


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"max_new_tokens": 0}, {"asks": 0}, {"temperature": -1}]
)
def test_wrong_settings_are_refused(tiny_llama, wrong):
    with pytest.raises(TagsteerError, match=next(iter(wrong))):
        LocalJudge(tiny_llama, **wrong)


@pytest.mark.model
def test_the_embedded_model_runs(embedded_model):
    judge = LocalJudge(embedded_model, max_new_tokens=8, batch_size=3)
    (rating,) = dict(judge.rate(make_items(1))).values()
    given = [value for value in (rating.concept, rating.instruction, rating.fluency) if value is not None]
    assert len(given) + len(rating.reasons) == 3 and all(0 <= value <= 2 for value in given)
