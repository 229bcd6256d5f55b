"""Progress bars with rate and time left, shown by the command line and silent in the library.

Code that works for long calls `track(...)`; whether anything is drawn is decided by whoever started the
work (`with show_progress(console): ...`), so importing tagsteer never writes to a terminal. Where there is no
terminal (a cluster's log file), a line is written now and then instead of a bar.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SECONDS_PER_LINE = 30.0
"""How often a log file hears of work that goes on."""


class Bar(Protocol):
    """What long-running code sees: amounts of work done, and a short note behind the bar."""

    def advance(self, amount: float = 1) -> None: ...

    def note(self, text: str) -> None: ...


Opener = Callable[[str, int, str, int], AbstractContextManager[Bar]]
"""(description, total, unit, done) -> a bar."""
_SHOWN: ContextVar[Opener | None] = ContextVar("tagsteer_progress", default=None)


class _Silent:
    def advance(self, amount: float = 1) -> None:
        del amount

    def note(self, text: str) -> None:
        del text


class _Rich:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


class _Lines:
    """A line at the first advance after every SECONDS_PER_LINE, and one at the end if there was one before."""

    def __init__(self, console: Console, description: str, total: int, unit: str, done: int) -> None:
        self._console, self._description, self._total, self._unit = console, description, total, unit
        self._first = self._done = self._written = float(done)
        self._note = ""
        self._start = self._last = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        if time.monotonic() - self._last >= SECONDS_PER_LINE:
            self.write()

    def note(self, text: str) -> None:
        self._note = text

    def finish(self) -> None:
        if self._last > self._start and self._done > self._written:
            self.write()

    def write(self) -> None:
        self._last, self._written = time.monotonic(), self._done
        seconds = self._last - self._start
        rate = (self._done - self._first) / max(seconds, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        when = f"{_clock(left)} left" if left > 0 else f"took {_clock(seconds)}"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
        parts = f"{self._done:,.0f} of {self._total:,} {self._unit}, {speed} {self._unit}/s, {when}"
        self._console.print(
            f"{self._description}: {parts}{', ' * bool(self._note)}{self._note}", markup=False, soft_wrap=True
        )


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


@contextmanager
def show_progress(console: Console) -> Iterator[None]:
    """Draw the bars of everything that runs inside on `console`, or write lines where it is no terminal."""
    with _bars(console) if console.is_terminal else _lines(console) as opener:
        token = _SHOWN.set(opener)
        try:
            yield
        finally:
            _SHOWN.reset(token)


@contextmanager
def _lines(console: Console) -> Iterator[Opener]:
    @contextmanager
    def opener(description: str, total: int, unit: str, done: int) -> Iterator[Bar]:
        lines = _Lines(console, description, total, unit, done)
        yield lines
        lines.finish()

    yield opener


@contextmanager
def _bars(console: Console) -> Iterator[Opener]:
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            unit = task.fields.get("unit", "")
            return Text(
                "" if not speed else f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s"
            )

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    # Rates are averaged over two minutes: batches sorted by length differ in cost.
    with Progress(*columns, console=console, speed_estimate_period=120) as progress:

        @contextmanager
        def opener(description: str, total: int, unit: str, done: int) -> Iterator[Bar]:
            task = progress.add_task(description, total=total, completed=done, unit=unit, note="")
            try:
                yield _Rich(progress, task)
            finally:
                progress.stop_task(task)

        yield opener


@contextmanager
def track(description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work, of which `done` were finished by an earlier run."""
    opener = _SHOWN.get()
    if opener is None:
        yield _Silent()
        return
    with opener(description, total, unit, done) as bar:
        yield bar
