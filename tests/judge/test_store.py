"""The store: settled or open, claims among processes, the ceiling, merging, and runs that are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tagsteer.errors import TagsteerError
from tagsteer.judge.store import JudgementStore, Question, Reply
from tests.judge.conftest import make_items
from tests.judge.server import Say, serve

ROOT = Path(__file__).resolve().parents[2]


def question(key: str = "q", model: str = "m") -> Question:
    return Question(key, "fluency", model, "axbench-1", "{}", f"prompt of {key}")


def reply(text: str = "Rating: 1", finish: str = "stop", tokens: tuple[int, int] = (10, 5)) -> Reply:
    return Reply(text, finish, *tokens)


def claim(store: JudgementStore, q: Question, owner: str = "a", **more):
    return store.claim(q, owner, **{"asks": 2, "lease_s": 100.0, **more})


def test_the_first_readable_answer_counts_and_unreadable_ones_settle_after_enough_asks(store):
    q = question()
    assert store.outcome(q.key, asks=2) is None
    store.add(q, reply("?"))
    assert store.outcome(q.key, asks=2) is None and not store.is_settled(q.key, 2)
    assert store.outcome(q.key, asks=1).reason == 'the reply holds no "Rating:"'
    store.add(q, reply("Rating: 1", "length"))
    assert store.outcome(q.key, asks=2).reason == "the reply was cut at the token limit (asked 2 times)"
    store.add(q, reply("Rating: 0"))
    store.add(q, reply("Rating: 2"))
    assert store.outcome(q.key, asks=2).rating == 0
    assert store.spent("m") == (40, 20) and store.spent("other") == (0, 0)


def test_replies_are_kept_as_they_came(store, tmp_path):
    store.add(question(), reply("naïve\0 \ud83d text\nRating: 2"))
    assert store.answers("q")[0].text == "naïve\0 ? text\nRating: 2"
    with JudgementStore(tmp_path / "judge.sqlite") as again:
        assert again.outcome("q", 1).rating == 2


def test_claims_exclude_others_until_answered_released_or_lapsed(tmp_path):
    now = [1000.0]
    with JudgementStore(tmp_path / "s", clock=lambda: now[0]) as one, JudgementStore(tmp_path / "s") as two:
        two._clock = lambda: now[0]
        q = question()
        assert claim(one, q, "a") == "mine"
        assert claim(two, q, "b") == "busy" and claim(two, question("r"), "b") == "mine"
        one.release(q.key, "b")
        assert claim(two, q, "b") == "busy"
        one.release(q.key, "a")
        assert claim(two, q, "b") == "mine"
        now[0] += 101
        assert claim(one, q, "a") == "mine"
        one.add(q, reply(), "a")
        assert claim(two, q, "b") == "settled"
        assert claim(two, question("r"), "b") == "mine"
        two.release_all("b")
        assert claim(one, question("r"), "a") == "mine"


@pytest.mark.skipif(os.name != "posix", reason="claims of dead processes lapse by time alone there")
def test_claims_of_a_dead_process_are_void(tmp_path):
    path = tmp_path / "s"
    code = (
        "from tests.judge.test_store import *; import os; "
        f"store = JudgementStore({str(path)!r}); print(claim(store, question(), lease_s=1e9), flush=True); "
        "os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "mine\n", done.stderr
    with JudgementStore(path) as store:
        assert claim(store, question()) == "mine"


def test_the_ceiling_counts_what_is_spent_and_what_is_in_flight(store):
    budget = {"max_cost": 10.0, "cost": lambda sent, got: sent + got, "bound": 4.0}
    assert claim(store, question("1"), **budget) == claim(store, question("2"), **budget) == "mine"
    assert claim(store, question("3"), **budget) == "wait"
    store.add(question("1"), reply(tokens=(1, 0)), "a")
    assert claim(store, question("3"), **budget) == "mine"
    store.add(question("2"), reply(tokens=(4, 0)), "a")
    store.add(question("3"), reply(tokens=(2, 0)), "a")
    assert claim(store, question("4"), **budget) == "ceiling"
    assert claim(store, question("4", model="another"), **budget) == "mine"


def test_merging_is_complete_repeatable_and_the_same_either_way(tmp_path):
    times = iter(range(100))
    paths = [tmp_path / name for name in ("a", "b")]
    for number, path in enumerate(paths):
        with JudgementStore(path, clock=lambda: float(next(times))) as store:
            store.add(question("both"), reply(f"Rating: {number}"))
            store.add(question(f"only {number}"), reply("Rating: 2"))
    with JudgementStore(paths[0]) as a, JudgementStore(tmp_path / "c") as c:
        merged = a.merge(paths[1])
        assert (merged.answers, merged.already) == (2, 0)
        assert (a.merge(paths[1]).answers, a.merge(paths[0]).answers) == (0, 0)
        assert c.merge(paths[1]).answers == 2 and c.merge(paths[0]).already == 2
        for store in (a, c):
            assert [store.outcome(key, 1).rating for key in ("both", "only 0", "only 1")] == [0, 2, 2]
            assert len(store.answers("both")) == 2
        # What others paid for does not count against a ceiling here.
        assert a.spent("m") == (20, 10) and c.spent("m") == (0, 0)


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path):
    foreign, text = tmp_path / "foreign.db", tmp_path / "text.db"
    db = sqlite3.connect(foreign)
    db.execute("CREATE TABLE mine(x)")
    db.commit()
    db.close()
    text.write_text("hello " * 100)
    before = foreign.read_bytes()
    for path in (foreign, text, tmp_path):
        with pytest.raises(TagsteerError, match="judgements"):
            JudgementStore(path)
        with JudgementStore(tmp_path / "s") as store, pytest.raises(TagsteerError, match="judgements"):
            store.merge(path)
    assert foreign.read_bytes() == before
    with JudgementStore(tmp_path / "s") as store, pytest.raises(TagsteerError, match="no store"):
        store.merge(tmp_path / "absent")


RUN = """
import sys
from tagsteer.judge.clients import OpenAIJudge
from tagsteer.judge.settings import JudgeSettings
from tagsteer.judge.store import JudgementStore
from tests.judge.conftest import make_items
url, path, count = sys.argv[1:]
with JudgementStore(path) as store:
    judge = OpenAIJudge(JudgeSettings(base_url=url, concurrency=3), store)
    print(sum(rating.complete for _, rating in judge.rate(make_items(int(count)))))
"""


def start(url: str, path: Path, count: int) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    command = [sys.executable, "-W", "error", "-c", RUN, url, str(path), str(count)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_and_pays_for_nothing_twice(tmp_path, store, make_judge, how):
    """The server answers 7 calls and holds the next three; the run is killed there, and started again."""
    go_on, sent = threading.Event(), threading.Semaphore(7)

    def script(*_):
        if not go_on.is_set() and not sent.acquire(blocking=False):
            go_on.wait(60)
        return Say()

    with serve(script) as server:
        run = start(server.url, tmp_path / "judge.sqlite", 6)
        wait_until(lambda: len(server.prompts) == 10)
        judge = make_judge(server.url)
        wait_until(lambda: sum(bool(store.answers(judge.settings.key_of(p))) for p in server.prompts) == 7)
        stored = [prompt for prompt in server.prompts if store.answers(judge.settings.key_of(prompt))]
        run.send_signal(how)
        if how == signal.SIGINT:
            assert run.stderr.readline() == "stopping: waiting for 3 calls in flight (Ctrl-C drops them)\n"
        else:
            run.wait(30)
        go_on.set()
        _, errors = run.communicate(timeout=60)
        assert run.returncode != 0
        assert all(rating.complete for rating in dict(judge.rate(make_items(6))).values())
        counts = server.counts
        assert len(counts) == 18 and all(counts[prompt] == 1 for prompt in stored)
        if how == signal.SIGINT:
            # An interrupt loses not even the calls that were in flight.
            assert "KeyboardInterrupt" in errors and set(counts.values()) == {1}
        else:
            assert len(server.prompts) <= 18 + 3


def test_processes_share_a_store_without_asking_anything_twice(tmp_path):
    with serve(lambda *_: Say()) as server:
        runs = [start(server.url, tmp_path / "shared.sqlite", 6) for _ in range(3)]
        outputs = [run.communicate(timeout=120) for run in runs]
        assert [out for out, _ in outputs] == ["6\n"] * 3, outputs
        assert len(server.counts) == 18 and set(server.counts.values()) == {1}
