"""Fixtures of the judges' tests: a store, items, and a judge whose waits take no time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tagsteer.judge.clients import OpenAIJudge
from tagsteer.judge.retry import Backoff
from tagsteer.judge.settings import JudgeSettings
from tagsteer.judge.store import JudgementStore
from tagsteer.judge.types import JudgeItem


def make_items(n: int) -> list[JudgeItem]:
    """Items of different texts and instructions."""
    return [JudgeItem(f"k{i}", f"concept {i}", f"Do {i}.", f"text number {i}") for i in range(n)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    with JudgementStore(tmp_path / "judge.sqlite") as opened:
        yield opened


@pytest.fixture
def waits() -> list[float]:
    """Seconds that a judge would have slept."""
    return []


@pytest.fixture
def make_judge(store, waits) -> Callable[..., OpenAIJudge]:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def make(url: str, into: JudgementStore | None = None, **settings) -> OpenAIJudge:
        settings = {"base_url": url, "concurrency": 4, "timeout_s": 30, "retries": 3, **settings}
        return OpenAIJudge(
            JudgeSettings(**settings), into or store, backoff=Backoff(random=random.Random(0)), sleep=sleep
        )

    return make
