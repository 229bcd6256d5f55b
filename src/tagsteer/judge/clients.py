"""A judge behind any OpenAI-compatible server: bounded concurrency, a ceiling on cost, nothing paid twice.

The calls run in an event loop of a thread of their own, so `rate` is a plain iterator that works in notebooks
too. Ctrl-C, or leaving the iteration, sends nothing more, waits for the calls in flight and stores their
answers; a second Ctrl-C drops them. Must not know what a rating means.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tagsteer.errors import TagsteerError
from tagsteer.judge.calls import PATIENCE_S, Caller, Sleep, Stopped, Unanswered, Usage
from tagsteer.judge.retry import Backoff
from tagsteer.judge.settings import CostCeilingReached, JudgeSettings
from tagsteer.judge.sheet import Sheet
from tagsteer.judge.store import JudgementStore, Question
from tagsteer.judge.types import JudgeItem, Rating
from tagsteer.progress import track

log = logging.getLogger("tagsteer.judge")

POLL_S = 0.05
"""How often to look again for an answer that another process is getting, or for room below the ceiling."""

Event = tuple[str, float | None, str]
"""Key of a question, its rating, and why there is none."""


class OpenAIJudge:
    """Rates by asking a model behind an OpenAI-compatible API; its answers go through `store`."""

    def __init__(
        self,
        settings: JudgeSettings,
        store: JudgementStore,
        *,
        backoff: Backoff | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.settings, self.store = settings, store
        self.backoff, self.sleep = backoff or Backoff(), sleep
        self.usage = Usage()

    @property
    def name(self) -> str:
        return self.settings.model

    @property
    def version(self) -> str:
        return self.settings.rubric.version

    def describe(self) -> str:
        """Model, rubric and sampling, for tables."""
        return self.settings.describe()

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """Ratings as they arrive; what the store holds comes first, and alone needs neither network nor key.

        A call that keeps failing is a missing part with its reason; it is not stored: a later run asks again.
        Raises CostCeilingReached at the ceiling, and TagsteerError when no call can succeed (a refused key,
        an unknown model, a server that is gone), each after giving what was answered.
        """
        settings, usage = self.settings, self.usage
        sheet = Sheet(items, settings.rubric, settings.model, settings.parameters, self.describe())
        done = missing = 0
        with track("judging", total=len(items), unit="texts") as bar:

            def settle(key: str, rating: float | None, reason: str) -> Iterator[tuple[str, Rating]]:
                nonlocal done, missing
                for item, whole in sheet.settle(key, rating, reason):
                    done, missing = done + 1, missing + len(whole.reasons)
                    cost = settings.cost(usage.tokens_in, usage.tokens_out)
                    bar.advance()
                    bar.note(f"{missing} missing" + ("" if cost is None else f", cost {cost:.4g}"))
                    yield item, whole

            unsettled = []
            for key in sheet.open_keys():
                outcome = self.store.outcome(key, settings.asks)
                if outcome is None:
                    unsettled.append(key)
                else:
                    yield from settle(key, outcome.rating, outcome.reason)
            if not unsettled:
                return
            log.info(
                "%s: %d of %d texts rated from the store, %d to ask",
                self.name,
                done,
                len(items),
                len(unsettled),
            )
            run = _Run(self, sheet, unsettled, settings.api_key())
            try:
                for event in run.events():
                    yield from settle(*event)
            except CostCeilingReached as error:
                raise CostCeilingReached(
                    f"{error}; {done} of {len(items)} texts are rated, all is stored"
                ) from None
            finally:
                run.stop()


def asker(settings: JudgeSettings, sleep: Sleep = asyncio.sleep) -> Callable[[str], str]:
    """A function that sends one message to the server and returns its answer; a missing key is an error here.

    Calls are retried like a judge's. Raises TagsteerError when a message stays unanswered or its answer is cut.
    """
    api_key = settings.api_key()

    async def send(prompt: str) -> str:
        import openai

        async with openai.AsyncOpenAI(
            api_key=api_key, base_url=settings.base_url, max_retries=0, timeout=settings.timeout_s
        ) as client:
            caller = Caller(client, settings, Backoff(), sleep, Usage(), asyncio.Event())
            try:
                reply = await caller.ask(prompt)
            except Unanswered as reason:
                raise TagsteerError(
                    f"{settings.model} at {settings.base_url} gave no answer ({reason}): run again when it does"
                ) from None
        if reply.finish_reason == "length":
            raise TagsteerError(
                f"{settings.model} filled its {settings.max_tokens} tokens and its answer is cut: raise max_tokens"
            )
        return reply.text

    def ask(prompt: str) -> str:
        # In a thread of its own: a notebook's event loop may be running in this one.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(send(prompt))).result()

    return ask


class _Run:
    """The calls of one `rate`: workers in a thread take questions and put outcomes into a queue."""

    def __init__(self, judge: OpenAIJudge, sheet: Sheet, keys: list[str], api_key: str) -> None:
        self._judge, self._sheet, self._api_key = judge, sheet, api_key
        self._todo = deque(keys)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._owner = uuid.uuid4().hex
        self._error: BaseException | None = None
        self._in_flight = 0
        self._in_vain = 0
        self._stop_early = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._task: asyncio.Task | None = None
        self._thread = threading.Thread(target=self._thread_main, name="tagsteer-judge", daemon=True)
        self._thread.start()

    def events(self) -> Iterator[Event]:
        """Outcomes as they arrive; raises what ended the run early."""
        while True:
            try:
                # A time-out, because a blocking get cannot be interrupted on Windows.
                event = self._events.get(timeout=0.5)
            except queue.Empty:
                continue
            if event is None:
                break
            yield event
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Send nothing more, and wait until the calls in flight are answered and stored."""
        self._stop_early.set()
        self._in_loop(self._set_stop)
        try:
            if self._in_flight:
                log.warning("stopping: waiting for %d calls in flight (Ctrl-C drops them)", self._in_flight)
            while self._thread.is_alive():
                self._thread.join(timeout=0.5)
        except KeyboardInterrupt:
            self._in_loop(self._drop_calls)
            self._thread.join(timeout=5)
            raise

    def _in_loop(self, action: Callable[[], None]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(action)
            except RuntimeError:  # the loop has ended in the meantime, and with it all calls
                return

    def _set_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _drop_calls(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _thread_main(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._halt(error)
        finally:
            try:
                self._judge.store.release_all(self._owner)
            except BaseException as error:
                self._halt(error)
            self._events.put(None)

    async def _main(self) -> None:
        import openai

        self._stop = asyncio.Event()
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        if self._stop_early.is_set():
            self._stop.set()
        judge, settings = self._judge, self._judge.settings
        async with openai.AsyncOpenAI(
            api_key=self._api_key, base_url=settings.base_url, max_retries=0, timeout=settings.timeout_s
        ) as client:
            caller = Caller(client, settings, judge.backoff, judge.sleep, judge.usage, self._stop)
            await asyncio.gather(
                *(self._worker(caller) for _ in range(min(settings.concurrency, len(self._todo))))
            )

    def _halt(self, error: BaseException) -> None:
        """Stop because of an error; the first one is what the caller sees."""
        self._error = self._error or error
        self._set_stop()

    async def _worker(self, caller: Caller) -> None:
        assert self._stop is not None
        try:
            while self._todo and not self._stop.is_set():
                await self._settle(self._sheet.question(self._todo.popleft()), caller)
        except Stopped:
            return
        except Exception as error:
            self._halt(error)

    async def _settle(self, question: Question, caller: Caller) -> None:
        """Ask one question until it is settled, given up, or the run stops."""
        assert self._stop is not None
        store, settings = self._judge.store, self._judge.settings
        bound = settings.cost_bound(question.prompt)
        while not self._stop.is_set():
            claim = store.claim(
                question,
                self._owner,
                asks=settings.asks,
                lease_s=(settings.retries + 1) * (settings.timeout_s + PATIENCE_S),
                bound=bound,
                max_cost=settings.max_cost,
                cost=settings.cost,
            )
            if claim == "settled":
                outcome = store.outcome(question.key, settings.asks)
                assert outcome is not None
                self._events.put((question.key, outcome.rating, outcome.reason))
                return
            if claim == "ceiling":
                spent = settings.cost(*store.spent(settings.model)) or 0.0
                raise CostCeilingReached(
                    f"stopped below the ceiling max_cost = {settings.max_cost:g}: {spent:.4g} is spent, the "
                    f"next call may cost {bound:.2g}; raise max_cost and run again"
                )
            if claim == "busy":
                self._todo.append(question.key)
            if claim != "mine":
                await asyncio.sleep(POLL_S)
                if claim == "busy":
                    return
                continue
            self._in_flight += 1
            try:
                store.add(question, await caller.ask(question.prompt), self._owner)
                self._in_vain = 0
            except Unanswered as error:
                store.release(question.key, self._owner)
                self._events.put((question.key, None, str(error)))
                self._give_up_when_in_vain(str(error))
                return
            except BaseException:
                store.release(question.key, self._owner)
                raise
            finally:
                self._in_flight -= 1
        # Stopped between two answers: it is settled only if the last one could be read.
        if (outcome := store.outcome(question.key, settings.asks)) is not None:
            self._events.put((question.key, outcome.rating, outcome.reason))

    def _give_up_when_in_vain(self, reason: str) -> None:
        """End the run when nothing is answered any more, rather than fail through a long list."""
        self._in_vain += 1
        if self._in_vain >= max(20, 2 * self._judge.settings.concurrency):
            raise TagsteerError(
                f"{self._in_vain} questions in a row to {self._judge.settings.base_url} brought no answer "
                f"({reason}); run again when the server is up: all answers so far are stored"
            )
