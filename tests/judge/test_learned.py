"""The learned judge: numpy trees against scikit-learn's own, a planted rating found again, splits by concept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.judge.inputs import INPUTS, SLOW_INPUTS, SURPRISE_INPUTS, Reader, surprise_inputs
from tagsteer.judge.learned import HEADS, LearnedJudge, Trees, Weights, shipped_weights
from tagsteer.judge.learner import Bins, Learner, calibration_knots, export
from tagsteer.judge.training import (
    RATINGS,
    balance,
    calibrate_by_fold,
    prepare,
    split_concepts,
    train_judge,
)
from tagsteer.judge.types import JudgeItem

QUICK = Learner(iterations=25, leaves=6, least_in_leaf=5, inputs_per_split=1.0, learning_rate=0.2)


def planted(n: int = 600, n_concepts: int = 12, seed: int = 0) -> tuple[pl.DataFrame, object]:
    """A table whose ratings follow from three numbers written in the text, and the inputs that read them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        c, s, f = rng.random(3)
        rows.append(
            {
                "concept": f"concept {i % n_concepts}", "instruction": f"do {i % 5}", "generation": f"{c} {s} {f} {i}",
                "method": "ab"[i % 2], "factor": float(i // 12 % 3),
                "relevance_concept": float(np.floor(3 * c)), "relevance_instruction": float(np.floor(3 * s)),
                "fluency": float(np.floor(3 * f)),
            }
        )  # fmt: skip

    def inputs(concepts, instructions, texts):
        del instructions
        x = np.zeros((len(texts), len(INPUTS)), np.float32)
        x[:, :3] = [[float(v) for v in t.split()[:3]] for t in texts]
        x[:, 3] = [c.startswith("tag") for c in concepts]
        return x

    return pl.DataFrame(rows), inputs


def test_trees_equal_scikit_learn_with_missing_values_and_ties() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 6)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:, 2] = np.round(x[:, 2])  # ties lie on thresholds
    y = np.nan_to_num(x[:, 0]) * 2 + (np.nan_to_num(x[:, 2]) > 0) + np.isnan(x[:, 1])
    learner = Learner(
        iterations=70, leaves=9, least_in_leaf=20, l2=0.0, learning_rate=0.1, inputs_per_split=1.0
    )
    model = learner.fit(x, y, np.ones(len(x)))
    trees = export(model)
    # With fewer rows than steps each value has a step of its own, so the fit is scikit-learn's own.
    few = x[:250]
    own = HistGradientBoostingRegressor(max_iter=70, max_leaf_nodes=9, min_samples_leaf=12, random_state=0)
    np.testing.assert_allclose(
        learner.fit(few, y[:250], np.ones(250)).predict(few), own.fit(few, y[:250]).predict(few), atol=1e-6
    )
    fresh = np.concatenate(
        [x, rng.normal(size=(200, 6)).astype(np.float32), np.full((1, 6), np.nan, np.float32)]
    )
    np.testing.assert_allclose(trees(fresh), model.predict(fresh), atol=2e-6)
    # And on the thresholds themselves, one step below and one above.
    inner = trees.left != np.arange(len(trees.left))
    for t, f in zip(trees.threshold[inner][:40], trees.feature[inner][:40], strict=True):
        for value in (t, np.nextafter(t, np.float32(-np.inf)), np.nextafter(t, np.float32(np.inf))):
            row = x[:1].copy()
            row[0, f] = value
            assert trees(row)[0] == pytest.approx(model.predict(row)[0], abs=2e-6)


def test_steps_of_constant_and_unknown_inputs() -> None:
    x = np.array([[1, np.nan, 5], [1, np.nan, 7], [1, np.nan, np.nan]], np.float32)
    bins = Bins.of(x)
    np.testing.assert_array_equal(
        bins(x), np.array([[0, np.nan, 0], [0, np.nan, 1], [0, np.nan, np.nan]], np.float32)
    )
    assert bins(np.array([[2, 3, 6]], np.float32)).tolist() == [[1, 0, 1]]
    assert bins.threshold(np.array([2, 2, 1]), np.array([0.5, 1.5, 0.0]))[0] == 5
    assert np.isposinf(bins.threshold(np.array([1]), np.array([0.0]))).all()


def test_a_stump_by_hand() -> None:
    stump = Trees(
        feature=np.array([1, 0, 0], np.int16), threshold=np.array([0.5, 0, 0], np.float32),
        left=np.array([1, 1, 2], np.int32), right=np.array([2, 1, 2], np.int32),
        missing_left=np.array([0, 0, 0], np.uint8), value=np.array([9.0, -1.0, 1.0], np.float32),
        root=np.array([0], np.int32), start=10.0, depth=1,
    )  # fmt: skip
    x = np.array([[0, 0.5], [0, 0.6], [0, np.nan]], np.float32)
    assert stump(x).tolist() == [9.0, 11.0, 11.0]


def test_training_finds_a_planted_rating_and_its_card_says_so(tmp_path: Path) -> None:
    table, inputs = planted()
    weights = train_judge(table, version="planted", judge="a formula", inputs=inputs, learner=QUICK, folds=4)
    card = weights.card
    assert card["texts"] == 600 and card["concepts"] == 12 and card["judge"] == "a formula"
    assert min(card["held_out_concepts"]["spearman"].values()) > 0.9
    assert all(abs(v) < 0.05 for v in card["held_out_concepts"]["bias"].values())
    assert card["floor_constant"]["spearman"]["concept"] is None  # a constant ranks nothing
    assert (
        card["floor_constant"]["mean_absolute_error"]["concept"]
        > 5 * card["held_out_concepts"]["mean_absolute_error"]["concept"]
    )
    assert set(card["method_means"]["difference"]) == {"a", "b"} and card["factor_choice"]["choices"] > 0
    json.dumps(card)

    again = Weights.load(weights.save(tmp_path / "j.safetensors"))
    x = inputs(["c"] * 3, ["i"] * 3, ["0.1 0.5 0.9", "0.9 0.9 0.1", "0.5 0.1 0.5"])
    np.testing.assert_array_equal(again.predict(x), weights.predict(x))
    assert again.card == card and again.inputs == INPUTS
    assert np.abs(again.predict(x)[:, :3] - [[0, 1, 2], [2, 2, 0], [1, 0, 1]]).max() < 0.3
    assert (
        train_judge(table, version="planted", judge="a formula", inputs=inputs, learner=QUICK, folds=4).card
        == card
    )


def test_short_tags_and_missing_ratings() -> None:
    table, inputs = planted()
    table = table.with_columns(
        pl.when(pl.int_range(pl.len()) % 4 == 0).then(None).otherwise(pl.col("fluency")).alias("fluency")
    )
    tags = {f"concept {i}": f"tag {i}" for i in range(6)}
    examples = prepare(table, short_tags=tags, inputs=inputs)
    assert (
        np.isnan(examples.y[:, 2]).mean() == 0.25
        and (np.isnan(examples.y[:, 3]) == np.isnan(examples.y[:, 2])).all()
    )
    assert examples.short is not None and (~np.isnan(examples.short).all(1)).sum() == 300
    card = train_judge(table, version="v", short_tags=tags, inputs=inputs, learner=QUICK, folds=3).card
    assert card["held_out_short_tags"]["n"] == 300
    assert card["held_out_short_tags"]["spearman"]["fluency"] > 0.85


def test_a_second_set_of_trees_reads_what_the_first_cannot_see(tmp_path: Path) -> None:
    table, inputs = planted()

    def blind(concepts, instructions, texts):
        x = inputs(concepts, instructions, texts)
        x[:, 2] = 0  # fluency cannot be seen in the fast inputs
        return x

    def slow(concepts, instructions, texts):
        del concepts, instructions
        z = np.zeros((len(texts), len(SLOW_INPUTS)), np.float32)
        z[:, 0] = [float(t.split()[2]) for t in texts]
        return z

    weights = train_judge(table, version="v", inputs=blind, slow=slow, learner=QUICK, folds=4)
    card = weights.card
    assert card["texts_read"] == 600
    without, with_it = card["held_out_same_texts_without"], card["held_out_with_perplexity"]
    assert without["spearman"]["fluency"] < 0.3 and with_it["spearman"]["fluency"] > 0.9
    assert with_it["spearman"]["concept"] > 0.9  # the first trees' sums are passed on
    again = Weights.load(weights.save(tmp_path / "j.safetensors"))
    three = (["c"] * 2, ["i"] * 2, ["0.1 0.5 0.1", "0.1 0.5 0.9"])
    x, z = blind(*three), slow(*three)
    np.testing.assert_array_equal(again.predict(x, z), weights.predict(x, z))
    assert again.predict(x)[0, 2] == again.predict(x)[1, 2]
    assert again.predict(x, z)[1, 2] - again.predict(x, z)[0, 2] > 1.5
    assert LearnedJudge(again, perplexity=True).version == "v+perplexity"
    plain = train_judge(table, version="v", inputs=blind, learner=QUICK, folds=4)
    with pytest.raises(TagsteerError, match="without perplexities"):
        LearnedJudge(plain, perplexity=True)


def test_reading_equals_one_text_at_a_time(tiny_llama) -> None:
    """The topic's and the request's surprise after each text, by the plain definition."""
    import torch

    from tagsteer.judge.perplexity import ABOUT, ASKED, read_for

    texts, topics, requests = ["a cat sat", "", "dogs and more dogs"], ["cats", "bread", "dogs"], ["Why?"] * 3
    found = read_for(tiny_llama, texts, topics, requests, tokens_per_batch=128)
    for parts, got in zip(zip(texts, topics, requests, strict=True), found, strict=True):
        text, topic, request = parts
        # A byte tokenizer: the whole text's tokens are those of its parts.
        ids = torch.tensor([tiny_llama.encode(text + ABOUT + topic + ASKED + request)])
        logp = tiny_llama.hf(input_ids=ids).logits.log_softmax(-1)
        want = [-float(logp[0, i, ids[0, i + 1]]) for i in range(ids.shape[1] - 1)]
        a, b = len(text) + len(ABOUT), len(text) + len(ABOUT) + len(topic) + len(ASKED)
        for part, wanted in zip(
            got, (want[: len(text)], want[a : a + len(topic)], want[b : b + len(request)]), strict=True
        ):
            np.testing.assert_allclose(part, wanted, rtol=1e-4)


def test_a_reader_says_how_much_less_a_topic_surprises_after_its_text(tiny_llama) -> None:
    reader = Reader(tiny_llama)
    got = reader(["bread", "bread"], ["Why?", "Why?"], ["of bread", ""])
    column = {name: got[:, k] for k, name in enumerate(SLOW_INPUTS)}
    assert column["topic_gain_sum"][1] == pytest.approx(0, abs=1e-3)  # nothing was read before it
    assert column["topic_gain_sum"][0] != 0
    assert column["topic_mean"][0] + column["topic_gain_mean"][0] == pytest.approx(
        column["topic_mean"][1], abs=1e-4
    )
    assert np.isnan(column["surprise_mean"][1]) and not np.isnan(column["request_mean"]).any()


def test_repeated_texts_are_one_row_with_their_mean() -> None:
    table, inputs = planted(120)
    twice = pl.concat([table, table.head(10).with_columns(relevance_concept=2 - pl.col("relevance_concept"))])
    examples = prepare(twice, inputs=inputs)
    assert len(examples.x) == 120 and examples.dropped["repeated texts merged"] == 10
    assert (examples.y[:10, 0] == 1.0).all()


def test_no_concept_lies_in_two_parts_and_weights_are_by_square_root() -> None:
    concepts = np.array(["a"] * 100 + ["b"] * 25 + ["c"] * 4 + ["d"] * 9, dtype=object)
    fold = split_concepts(concepts, 3, seed=0)
    assert all(len(set(fold[concepts == c])) == 1 for c in "abcd") and set(fold) == {0, 1, 2}
    weight = balance(concepts)
    assert weight.mean() == pytest.approx(1)
    assert weight[concepts == "a"].sum() / weight[concepts == "c"].sum() == pytest.approx(5)  # sqrt(100 / 4)


def test_calibration_is_monotone_unbiased_and_read_off_other_folds() -> None:
    rng = np.random.default_rng(0)
    raw = rng.random(4000)
    real = (rng.random(4000) < raw**2) * 2.0  # true expectation 2 raw²
    knots = calibration_knots(raw, real)
    assert (np.diff(knots[0]) > 0).all() and (np.diff(knots[1]) >= 0).all()
    got = np.interp(raw, *knots)
    assert abs(got.mean() - real.mean()) < 0.02 and np.abs(got - 2 * raw**2).mean() < 0.06
    fold = np.repeat([0, 1], 2000)
    other = real.copy()
    other[:2000] = rng.permutation(other[:2000])
    one, two = (calibrate_by_fold(raw[:, None], r[:, None], fold) for r in (real, other))
    np.testing.assert_array_equal(one[:2000], two[:2000])  # a fold's own ratings do not touch its calibration


def test_mistakes_are_named(tmp_path: Path) -> None:
    table, inputs = planted(120)
    with pytest.raises(TagsteerError, match="lacks fluency"):
        prepare(table.drop("fluency"), inputs=inputs)
    with pytest.raises(TagsteerError, match="rating 7 is out of range"):
        prepare(table.with_columns(fluency=pl.lit(7.0)), inputs=inputs)
    with pytest.raises(TagsteerError, match="too few"):
        train_judge(table.filter(pl.col("concept") == "concept 0"), version="v", inputs=inputs)
    with pytest.raises(TagsteerError, match="train-judge"):
        Weights.load(tmp_path / "absent.safetensors")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(TagsteerError, match="not an offline judge"):
        Weights.load(tmp_path / "other.safetensors")
    weights = train_judge(table, version="v", inputs=inputs, learner=QUICK, folds=2)
    weights.trees["fluency"].left[0] = 10**6
    with pytest.raises(TagsteerError, match="damaged"):
        Weights.load(weights.save(tmp_path / "damaged.safetensors"))
    with pytest.raises(TagsteerError, match="other inputs"):
        LearnedJudge(Weights(weights.trees, weights.calibration, INPUTS[1:], {}))
    with pytest.raises(TagsteerError, match="wants"):
        weights.predict(np.zeros((2, 3), np.float32))


def test_surprise_inputs_by_hand() -> None:
    one = np.full(32, 2.0, np.float32)
    one[16:] = 8.0
    got = dict(zip(SURPRISE_INPUTS, surprise_inputs([one, np.zeros(0)], ["x" * 80, ""])[0], strict=True))
    assert got["surprise_per_char"] == pytest.approx((16 * 2 + 16 * 8) / 80)
    assert got["surprise_worst_window"] == 8 and got["surprise_best_window"] == 2
    assert got["surprise_high_share"] == 0.5 and np.isnan(surprise_inputs([np.zeros(0)], [""])).all()


@pytest.mark.skipif(
    not shipped_weights().is_file(),
    reason="THE SHIPPED JUDGE IS ABSENT: run python -m benchmarks.train_judge",
)
class TestShipped:
    def test_size_card_and_name(self) -> None:
        assert shipped_weights().stat().st_size <= 5_000_000
        judge = LearnedJudge.load()
        assert "not gpt-4o-mini" in judge.describe() and judge.version in judge.describe()
        assert set(judge.card["held_out_concepts"]["spearman"]) == set(HEADS)
        said = (shipped_weights().parent / "card.json").read_text("utf-8")
        assert json.loads(said)["version"] == judge.version

    @pytest.mark.model
    def test_long_concepts_and_short_tags(self) -> None:
        from tests.judge.test_offline import ASKED, BASEBALL, LOOP, PLANT

        judge = LearnedJudge.load()
        long = (
            "the main thing this neuron does is find references to baseball, and then outputs terms of games."
        )
        texts = {"about": BASEBALL + " Baseball is fun.", "other": PLANT, "loop": LOOP, "empty": "  "}
        for concept in ("baseball", long):
            got = dict(judge.rate([JudgeItem(k, concept, ASKED, t) for k, t in texts.items()]))
            assert got["about"].concept > got["other"].concept + 0.3
            assert got["other"].instruction > got["about"].instruction + 0.3
            assert got["other"].fluency > got["loop"].fluency + 0.5
            assert (got["empty"].concept, got["empty"].instruction, got["empty"].fluency) == (0, 0, 0)
        whole = LearnedJudge.load(integers=True)
        assert {r.concept for _, r in whole.rate([JudgeItem("k", "baseball", ASKED, PLANT)])} <= {
            0.0,
            1.0,
            2.0,
        }

    @pytest.mark.model
    @pytest.mark.shared
    def test_agreement_on_real_ratings(self, shared) -> None:
        """Seen concepts: at least as good as the card's figure for unseen ones, less a margin for 300 texts."""
        from scipy.stats import spearmanr

        rows = (
            pl.read_parquet(shared / "axbench" / "judged_generations.parquet")
            .drop_nulls()
            .sample(300, seed=2)
        )
        judge = LearnedJudge.load()
        got = judge.predict(
            [
                JudgeItem(str(i), r["concept"], r["instruction"], r["generation"])
                for i, r in enumerate(rows.to_dicts())
            ]
        )
        for k, column in enumerate(RATINGS):
            least = judge.card["held_out_concepts"]["spearman"][HEADS[k]] - 0.08
            assert spearmanr(got[:, k], rows[column].to_numpy())[0] > least
            assert abs(got[:, k].mean() - rows[column].mean()) < 0.12
