"""Settings: prices, keys that go only where they belong, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tagsteer.errors import TagsteerError
from tagsteer.judge.retry import Backoff, failure_of_status, retry_after
from tagsteer.judge.settings import JudgeSettings, estimate
from tests.judge.conftest import make_items


def test_cost_by_hand():
    settings = JudgeSettings(price_in_per_million=0.15, price_out_per_million=0.6)
    assert settings.cost(400, 130) == pytest.approx((400 * 0.15 + 130 * 0.6) / 1e6)
    assert JudgeSettings().cost(1, 1) is None


def test_estimate_of_an_axbench_site():
    """Reference section 5: a site's 210,000 calls of 400 + 130 tokens are about 29 dollars at .15/.60."""
    settings = JudgeSettings(price_in_per_million=0.15, price_out_per_million=0.6)
    assert settings.cost(210_000 * 400, 210_000 * 130) == pytest.approx(29, abs=0.1)
    guess = estimate(make_items(10), settings)
    assert guess.calls == 30 and guess.tokens_out == 30 * 130
    assert guess.cost == settings.cost(guess.tokens_in, guess.tokens_out) < guess.cost_bound
    assert "cost unknown" in str(estimate(make_items(1), JudgeSettings()))


def test_keys_go_only_where_they_belong():
    keys = {"OPENAI_API_KEY": "sk-a", "OTHER": "sk-b", "BLANK": " "}
    assert JudgeSettings().api_key(keys) == "sk-a"
    for here in ("http://localhost:8000/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1"):
        assert JudgeSettings(base_url=here).api_key(keys) == "no-key"
    elsewhere = "https://router.example/v1"
    with pytest.raises(TagsteerError, match=r"which key is for router\.example"):
        JudgeSettings(base_url=elsewhere).api_key(keys)
    assert JudgeSettings(base_url=elsewhere, api_key_env="OTHER").api_key(keys) == "sk-b"
    assert JudgeSettings(base_url=elsewhere, api_key_env="").api_key(keys) == "no-key"
    for name in ("ABSENT", "BLANK"):
        with pytest.raises(TagsteerError, match=f"{name} is not set"):
            JudgeSettings(api_key_env=name).api_key(keys)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_cost": 1.0}, "price_in_per_million"), ({"base_url": "api.openai.com"}, "base_url"),
        ({"base_url": "https://u:p@host/v1"}, "user name"), ({"temperature": 3}, "temperature"),
        ({"unknown": 1}, "unknown"), ({"extra_body": {"stream": True}}, "stream"),
        ({"concurrency": 0}, "concurrency"),
        ({"extra_body": {"x": object()}}, "JSON"), ({"asks": 0}, "asks"), ({"max_cost": -1}, "max_cost"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        JudgeSettings(**wrong)


def test_what_is_sent_is_part_of_the_key():
    base = JudgeSettings()
    others = [
        JudgeSettings(model="x"), JudgeSettings(temperature=0), JudgeSettings(temperature="none"),
        JudgeSettings(max_tokens=9), JudgeSettings(token_limit_name="max_completion_tokens"),
        JudgeSettings(extra_body={"reasoning_effort": "low"}), JudgeSettings(few_shot=True),
    ]  # fmt: skip
    assert len({settings.key_of("text") for settings in [base, *others]}) == 8
    same = JudgeSettings(base_url="http://localhost/v1", concurrency=1, retries=0, timeout_s=1, asks=1)
    assert same.key_of("text") == base.key_of("text")
    assert "temperature" not in others[2].parameters
    assert others[5].describe() == "gpt-4o-mini, rubric axbench-1, temperature 0.7, reasoning_effort low"
    assert others[6].describe() == "gpt-4o-mini, rubric axbench-1-few-shot, temperature 0.7"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "3"}, 3), ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25), ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60), ({"retry-after": "nan"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0), ({"retry-after": "-1"}, None),
    ],
)  # fmt: skip
def test_retry_after(headers, seconds):
    assert retry_after(headers, now=40.0) == seconds


def test_backoff_doubles_up_to_its_cap_and_never_undercuts_the_server():
    backoff = Backoff(base=1.0, cap=8.0)
    for tries, most in enumerate((1, 2, 4, 8, 8, 8), start=1):
        waits = [backoff.wait(tries) for _ in range(50)]
        assert all(most / 2 <= wait <= most for wait in waits) and len(set(waits)) > 1
        assert all(30 <= backoff.wait(tries, 30.0) <= 31 for _ in range(50))


@pytest.mark.parametrize(
    ("status", "code", "then"),
    [
        (429, "", "retry"), (500, "", "retry"), (529, "", "retry"), (408, "", "retry"),
        (429, "insufficient_quota", "stop"),
        (401, "", "stop"), (403, "", "stop"), (404, "", "stop"), (402, "", "stop"), (400, "", "doubt"),
        (422, "", "doubt"),
        (400, "content_filter", "leave out"), (413, "", "leave out"),
    ],
)  # fmt: skip
def test_what_a_status_means(status, code, then):
    assert failure_of_status(status, code, "", {}).then == then


def test_a_context_length_error_of_vllm_leaves_out_one_text():
    message = "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens"
    assert failure_of_status(400, "400", message, {}).then == "leave out"
