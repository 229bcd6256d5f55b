"""The rule judge against texts whose ratings anyone would agree on, its rules at their corners, and real ratings."""

from __future__ import annotations

import numpy as np
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.judge import offline
from tagsteer.judge.offline import RuleJudge, as_rating, fluency_by_rules, piecewise
from tagsteer.judge.types import JudgeItem

ASKED = "How do I look after a houseplant?"
BASEBALL = (
    "The pitcher threw a fastball and the batter hit a home run into the stands. In the ninth inning the catcher "
    "dropped the ball at home plate, and the shortstop tagged the runner before he reached second base."
)
PLANT = (
    "Water your houseplant once a week and give it bright, indirect light. Wipe the leaves with a damp cloth, and "
    "move it to a larger pot with fresh soil when the roots fill the old one."
)
LOOP = "the the ball the the ball the the ball the the ball the the ball the the ball the the ball the the ball the"


@pytest.fixture(scope="module")
def judge() -> RuleJudge:
    return RuleJudge()


def rate(judge, concept: str, text: str, instruction: str = ASKED):
    ((key, rating),) = judge.rate([JudgeItem("k", concept, instruction, text)])
    assert key == "k"
    return rating


def test_rules_are_monotone_and_stay_in_range() -> None:
    for corners in (offline.CONCEPT_RULE, offline.INSTRUCTION_RULE):
        at, rating = np.array(corners).T
        assert (np.diff(at) > 0).all() and (np.diff(rating) >= 0).all()
        assert rating.min() >= 0 and rating.max() <= 2
    for corners in (*offline.FLUENCY_RULES.values(), offline.SURPRISE_RULE):
        at, rating = np.array(corners).T
        assert (np.diff(at) > 0).all() and (rating >= 0).all() and rating.max() == 2.0 and rating.min() == 0.0
    # By hand: halfway between two corners, and beyond both ends.
    assert piecewise(((0.0, 0.0), (1.0, 2.0)), np.array([-5.0, 0.5, 9.0])).tolist() == [0.0, 1.0, 2.0]


def test_fluency_falls_with_repetition_and_surprise() -> None:
    clean, loop, empty = fluency_by_rules([PLANT, LOOP, "  "])
    assert clean == offline.WHOLE and loop < 0.1 and empty == 0.0
    assert fluency_by_rules([PLANT[:-20]])[0] == offline.CUT
    known = fluency_by_rules([PLANT] * 4, [0.4, 1.3, 5.0, np.nan])
    assert known.tolist() == [offline.WHOLE, 0.4, 0.0, offline.WHOLE]


def test_surprise_comes_from_a_model_or_a_function(tiny_llama) -> None:
    assert "perplexity" in RuleJudge(tiny_llama).describe() and "perplexity" not in RuleJudge().describe()
    assert RuleJudge(tiny_llama)._surprise(["abc", ""])[0] == pytest.approx(
        np.log(262), rel=0.2
    )  # bytes, untrained
    assert np.isnan(RuleJudge(tiny_llama)._surprise([""])[0])
    with pytest.raises(TagsteerError, match="LanguageModel"):
        RuleJudge(3)  # type: ignore[arg-type]


def test_token_surprise_equals_one_text_at_a_time(tiny_llama) -> None:
    import torch

    from tagsteer.judge.perplexity import token_surprise

    texts = ["a cat", "a much longer text about cats", "é"]
    together = token_surprise(tiny_llama, texts, tokens_per_batch=64)
    for text, got in zip(texts, together, strict=True):
        ids = torch.tensor([tiny_llama.encode(text)])
        logp = tiny_llama.hf(input_ids=ids).logits.log_softmax(-1)
        want = [-float(logp[0, i, ids[0, i + 1]]) for i in range(ids.shape[1] - 1)]
        np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.model
@pytest.mark.parametrize(
    "tag", ["baseball", "sports-equipment", "the main thing this neuron does is find baseball terms"]
)
def test_a_text_about_the_concept_beats_one_that_is_not(judge, tag: str) -> None:
    assert rate(judge, tag, BASEBALL).concept > rate(judge, tag, PLANT).concept + 0.25


@pytest.mark.model
def test_short_tags_use_the_scale(judge) -> None:
    assert rate(judge, "baseball", BASEBALL + " Baseball is fun.").concept > 0.9
    assert rate(judge, "baseball", PLANT).concept < 0.2
    assert rate(judge, "gardening", PLANT).concept > 0.4
    assert (
        rate(judge, "baseball", PLANT).instruction > 1.5 > 0.6 > rate(judge, "baseball", BASEBALL).instruction
    )


@pytest.mark.model
def test_empty_text_and_batch_independence(judge) -> None:
    empty = rate(judge, "baseball", "")
    assert (empty.concept, empty.instruction, empty.fluency) == (0.0, 0.0, 0.0)
    items = [
        JudgeItem(str(i), "baseball", ASKED, t)
        for i, t in enumerate([BASEBALL, PLANT, LOOP, "Hi.", BASEBALL])
    ]
    together = dict(judge.rate(items))
    assert list(together) == [i.key for i in items] and together["0"] == together["4"]
    alone = rate(judge, "baseball", LOOP)
    assert together["2"].concept == pytest.approx(
        alone.concept, abs=0.02
    )  # bfloat16 sums depend on the batch a little
    with pytest.raises(TagsteerError, match="key"):
        list(judge.rate([items[0], items[0]]))


def test_a_rating_names_its_judge_and_can_be_whole() -> None:
    rating = as_rating([0.4, 1.6, np.nan], "x")
    assert (rating.concept, rating.instruction, rating.fluency, rating.judge) == (0.4, 1.6, None, "x")
    assert "fluency" in rating.reasons
    assert as_rating([0.4, 1.6, 2.7], "x", integers=True).instruction == 2.0
    assert "not gpt-4o-mini" in RuleJudge().describe()


@pytest.mark.shared
@pytest.mark.model
def test_agreement_with_real_ratings(shared, judge) -> None:
    """Spearman with gpt-4o-mini on 400 real generations; the rules' floor, not the learned judge's target."""
    import polars as pl
    from scipy.stats import spearmanr

    rows = pl.read_parquet(shared / "axbench" / "judged_generations.parquet").drop_nulls().sample(400, seed=1)
    items = [
        JudgeItem(str(i), r["concept"], r["instruction"], r["generation"])
        for i, r in enumerate(rows.to_dicts())
    ]
    got = [r for _, r in judge.rate(items)]
    for part, column, least in (
        ("concept", "relevance_concept", 0.6),
        ("instruction", "relevance_instruction", 0.45),
        ("fluency", "fluency", 0.3),
    ):
        values, real = np.array([getattr(r, part) for r in got]), rows[column].to_numpy()
        assert spearmanr(values, real)[0] > least, part
        assert abs(values.mean() - real.mean()) < 0.15, part
