"""The OpenAI-compatible judge against a real server on loopback that misbehaves as it is told."""

from __future__ import annotations

import threading

import pytest

from tagsteer.errors import TagsteerError
from tagsteer.judge import clients
from tagsteer.judge.replies import StoredJudge
from tagsteer.judge.settings import CostCeilingReached, estimate
from tagsteer.judge.types import Judge, JudgeItem
from tests.judge.conftest import make_items
from tests.judge.server import Drop, Fail, Hang, Raw, Say, serve

PRICES = {"price_in_per_million": 1.0, "price_out_per_million": 2.0}


def first(act, then=None):
    """A script: `act` at the first call for a prompt, then a good answer."""
    return lambda _, n: act if n == 1 else then or Say()


def test_rates_all_items_and_asks_each_question_once(make_judge, store):
    with serve(lambda prompt, _: Say(f"Rating: {1 if 'Concept Start' in prompt else 2}")) as server:
        judge = make_judge(server.url)
        assert isinstance(judge, Judge)
        ratings = dict(judge.rate(make_items(5)))
        assert set(ratings) == {f"k{i}" for i in range(5)}
        for rating in ratings.values():
            assert (rating.concept, rating.instruction, rating.fluency, rating.reasons) == (1, 2, 2, {})
            assert rating.judge == judge.describe() == "gpt-4o-mini, rubric axbench-1, temperature 0.7"
        assert set(server.counts.values()) == {1} and len(server.prompts) == 15
        assert server.bodies[0]["temperature"] == 0.7 and server.bodies[0]["max_tokens"] == 512
        assert [message["role"] for message in server.bodies[0]["messages"]] == ["user"]
        again = dict(judge.rate(make_items(5)))
        assert again == ratings and len(server.prompts) == 15
    assert judge.usage.calls == 15 and store.spent("gpt-4o-mini") == (15 * 300, 15 * 20)


def test_texts_that_ask_the_same_share_an_answer(make_judge):
    items = [JudgeItem(f"k{i}", "sailing", "Write.", "Same text.") for i in range(6)]
    with serve(lambda *_: Say()) as server:
        assert len(dict(make_judge(server.url).rate(items))) == 6
        assert len(server.prompts) == 3
    with pytest.raises(TagsteerError, match="k0"):
        list(make_judge("http://127.0.0.1:1/v1").rate([items[0], items[0]]))


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (Fail(429), "HTTP 429"),
        (Fail(500), "HTTP 500"),
        (Fail(503, body="<html>bad gateway"), "HTTP 503"),
        (Fail(408), "HTTP 408"),
        (Drop(), "the connection failed"),
        (Raw("{ this is no JSON"), "the body is no JSON"),
        (Raw("<html>hello</html>", "text/html"), "the body is no JSON"),
        (Raw('{"choices": []}'), "no choices"),
        (Raw("[1]"), "no choices"),
        (Raw('{"error": {"code": "upstream_down", "message": "x"}}'), "an error in the body (upstream_down)"),
    ],
    ids=lambda value: getattr(value, "body", None) or str(getattr(value, "status", value))[:30],
)
def test_failed_calls_are_sent_again_with_backoff(make_judge, waits, act, reason):
    with serve(first(act)) as server:
        judge = make_judge(server.url, concurrency=1)
        (rating,) = dict(judge.rate(make_items(1))).values()
        assert rating.complete and set(server.counts.values()) == {2}
    assert len(waits) == 3 and all(0.5 <= wait <= 1.0 for wait in waits)
    ((seen, count),) = judge.usage.failed.items()
    assert reason in seen and count == 3


def test_backoff_grows_and_ends_with_a_missing_part_that_is_asked_again_later(make_judge, waits):
    def script(prompt, _):
        return Fail(500) if "Concept Start" in prompt else Say()

    with serve(script) as server:
        judge = make_judge(server.url, concurrency=1, retries=3)
        (rating,) = dict(judge.rate(make_items(1))).values()
        assert rating.concept is None and rating.instruction == rating.fluency == 2
        assert rating.reasons == {"concept": "no answer in 4 tries, the last: HTTP 500"}
        assert [low <= wait <= 2 * low for low, wait in zip((0.5, 1, 2), waits, strict=True)] == [True] * 3
        server.script = lambda *_: Say()
        (rating,) = dict(judge.rate(make_items(1))).values()
        assert rating.complete and len(server.prompts) == 4 + 2 + 1


@pytest.mark.parametrize(("name", "value"), [("retry-after", "7"), ("retry-after-ms", "7000")])
def test_retry_after_is_honoured(make_judge, waits, name, value):
    with serve(first(Fail(429, {name: value}))) as server:
        list(make_judge(server.url, concurrency=1).rate(make_items(1)))
    # Never earlier than asked; the pause that all calls share comes from the same answers.
    assert waits and all(6.5 <= wait <= 8.0 for wait in waits)
    assert sum(7.0 <= wait <= 8.0 for wait in waits) >= 3


def test_a_wait_of_hours_ends_the_run(make_judge):
    with (
        serve(lambda *_: Fail(429, {"retry-after": "7200"})) as server,
        pytest.raises(TagsteerError, match="7200 s"),
    ):
        list(make_judge(server.url).rate(make_items(1)))


def test_slow_server_times_out(make_judge):
    with serve(first(Hang())) as server:
        judge = make_judge(server.url, timeout_s=0.3)
        (rating,) = dict(judge.rate(make_items(1))).values()
        assert rating.complete and judge.usage.failed == {"no answer within 0.3 s": 3}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (Say("Rating: 2", finish="length"), "the reply was cut at the token limit"),
        (Say("Half a sent", finish="length"), "the reply was cut at the token limit"),
        (Say(""), "the reply is empty"),
        (Say(None), "the reply is empty"),
        (Say("It is very good."), 'the reply holds no "Rating:"'),
        (Say("Rating: 2/2"), 'no number follows "Rating:"'),
        (Say("Rating: 9"), "the rating is outside 0 to 2"),
    ],
)
def test_unreadable_answers_are_asked_again_a_few_times(make_judge, store, act, reason):
    with serve(first(act)) as server:
        assert dict(make_judge(server.url).rate(make_items(1)))["k0"].complete
        assert set(server.counts.values()) == {2}
    with serve(lambda *_: act) as server:
        judge = make_judge(server.url, model="other", asks=3)
        rating = dict(judge.rate(make_items(1)))["k0"]
        assert (rating.concept, rating.instruction, rating.fluency) == (None, None, None)
        assert set(rating.reasons.values()) == {f"{reason} (asked 3 times)"}
        assert set(server.counts.values()) == {3}
        # Paid for and unreadable: not asked a fourth time by a later run, but rated anew with its reason.
        assert dict(judge.rate(make_items(1)))["k0"] == rating and len(server.prompts) == 9
        assert dict(StoredJudge(judge.settings, store).rate(make_items(1)))["k0"] == rating


def test_wrong_key_ends_at_once_and_is_never_shown(make_judge, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    body = '{"error": {"message": "Incorrect API key: sk-secret-123", "code": "invalid_api_key"}}'
    with (
        serve(lambda *_: Fail(401, body=body)) as server,
        pytest.raises(TagsteerError, match="HTTP 401") as error,
    ):
        list(make_judge(server.url, api_key_env="MY_KEY", concurrency=1).rate(make_items(3)))
    assert len(server.prompts) == 1 and server.keys == {"Bearer sk-secret-123"}
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (
            Fail(404, body='{"error": {"message": "no model x", "code": "model_not_found"}}'),
            "model_not_found",
        ),
        (Fail(429, body='{"error": {"message": "m", "code": "insufficient_quota"}}'), "no money"),
        (Fail(402), "no money"),
        (Fail(400, body='{"error": {"message": "use max_completion_tokens", "code": null}}'), "use max_comp"),
    ],
)
def test_what_cannot_succeed_ends_the_run(make_judge, act, words):
    with serve(lambda *_: act) as server, pytest.raises(TagsteerError, match=words):
        list(make_judge(server.url, concurrency=1).rate(make_items(3)))
    assert len(server.prompts) == 1


def test_a_fault_of_one_text_leaves_out_that_text_alone(make_judge):
    too_long = Fail(400, body='{"error": {"message": "m", "code": "context_length_exceeded"}}')
    odd = Fail(400, body='{"error": {"message": "strange text", "code": null}}')

    def script(prompt, _):
        return too_long if "number 0\n" in prompt else odd if "number 2\n" in prompt else Say()

    with serve(script) as server:
        ratings = dict(make_judge(server.url, concurrency=1).rate(make_items(3)))
    assert ratings["k1"].complete and len(server.prompts) == 9
    assert set(ratings["k0"].reasons.values()) == {"HTTP 400 (context_length_exceeded)"}
    assert set(ratings["k2"].reasons.values()) == {"HTTP 400: strange text"}


def test_a_server_that_is_gone_ends_the_run(make_judge):
    judge = make_judge("http://127.0.0.1:9/v1", retries=0)
    given = []
    with pytest.raises(TagsteerError, match="20 questions in a row"):
        given.extend(judge.rate(make_items(100)))
    assert len(given) <= 20 and not any(rating.complete for _, rating in given)


def test_concurrency_is_reached_and_never_exceeded(make_judge):
    """A barrier lets calls through only four at a time: fewer in flight would never finish."""
    barrier = threading.Barrier(4)

    def script(*_):
        barrier.wait(20)
        return Say()

    with serve(script) as server:
        ratings = dict(make_judge(server.url, concurrency=4).rate(make_items(8)))
        assert all(rating.complete for rating in ratings.values())
        assert server.most == 4


def test_the_ceiling_is_never_exceeded_and_can_be_raised(make_judge, store):
    items = make_items(20)
    with serve(lambda *_: Say(tokens=(800, 100))) as server:
        price = (800 * 1.0 + 100 * 2.0) / 1e6
        judge = make_judge(server.url, max_cost=20.5 * price, max_tokens=100, **PRICES)
        given = []
        with pytest.raises(CostCeilingReached, match=r"max_cost = 0.0205.*of 20 texts are rated"):
            given.extend(judge.rate(items))
        calls = len(server.prompts)
        spent = judge.settings.cost(*store.spent("gpt-4o-mini"))
        assert spent == pytest.approx(calls * price) and spent <= 20.5 * price
        # A call's bound is below 2 prices here, so less than that stays unused.
        assert calls >= 18 and 4 <= len(given) <= 6 and all(rating.complete for _, rating in given)
        # The ceiling is the store's: a second run under it sends nothing.
        with pytest.raises(CostCeilingReached):
            list(judge.rate(items))
        assert len(server.prompts) == calls
        more = make_judge(server.url, max_cost=1.0, max_tokens=100, **PRICES)
        assert len(dict(more.rate(items))) == 20
        assert len(server.prompts) == 60 and set(server.counts.values()) == {1}


def test_tokens_are_estimated_only_when_the_server_does_not_count(make_judge, store):
    with serve(lambda *_: Say("Rating: 1" + "." * 31, tokens=None)) as server:
        judge = make_judge(server.url)
        list(judge.rate(make_items(1)))
        (reply,) = store.answers(judge.settings.key_of(server.prompts[0]))
    assert reply.tokens_from == "estimate" and reply.tokens_out == 10
    assert reply.tokens_in == round(len(server.prompts[0]) / 4)
    assert reply.served_by.endswith("gpt-4o-mini-2024")


def test_leaving_the_iteration_stores_what_is_in_flight(make_judge, store):
    """After one item the consumer leaves: calls in flight are answered, stored, and not sent again."""
    with serve(lambda *_: Say()) as server:
        judge = make_judge(server.url, concurrency=3)
        for _ in judge.rate(make_items(20)):
            break
        sent = len(server.prompts)
        assert sent >= 3 and all(store.answers(judge.settings.key_of(prompt)) for prompt in server.prompts)
        assert len(dict(judge.rate(make_items(20)))) == 20
        assert set(server.counts.values()) == {1} and len(server.prompts) == 60


def test_ctrl_c_waits_for_calls_in_flight(make_judge, store, monkeypatch):
    """KeyboardInterrupt in the caller while two calls hang in the server: both are stored first."""
    released = threading.Event()
    reached = threading.Barrier(3)

    def script(*_):
        if not released.is_set():
            reached.wait(20)
            released.wait(20)
        return Say()

    events = clients._Run.events

    def interrupted(run):
        reached.wait(20)
        threading.Timer(0.2, released.set).start()
        raise KeyboardInterrupt
        yield from events(run)

    with serve(script) as server:
        judge = make_judge(server.url, concurrency=2)
        with monkeypatch.context() as patch:
            patch.setattr(clients._Run, "events", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(judge.rate(make_items(10)))
        assert len(server.prompts) == 2
        assert all(store.answers(judge.settings.key_of(prompt)) for prompt in server.prompts)
        assert len(dict(judge.rate(make_items(10)))) == 10
        assert set(server.counts.values()) == {1}


def test_estimate_counts_what_is_left_to_pay(make_judge, store):
    items = make_items(10)
    with serve(lambda prompt, _: Say(tokens=(len(prompt) // 4, 120))) as server:
        judge = make_judge(server.url, **PRICES)
        before = estimate(items, judge.settings, store)
        list(judge.rate(items[:4]))
        rest = estimate(items, judge.settings, store)
        list(judge.rate(items))
    spent = judge.settings.cost(*store.spent("gpt-4o-mini"))
    assert (before.calls, before.stored, rest.calls, rest.stored) == (30, 0, 18, 12)
    assert before.cost == pytest.approx(spent, rel=0.15) and spent <= before.cost_bound
    assert estimate(items, judge.settings, store).calls == 0
    assert "30 calls" in str(before) and "18 calls" in str(rest)
