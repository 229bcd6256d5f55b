"""Progress bars with rate and time left, shown by the command line and silent in the library.

Code that works for long calls `track(...)`; whether anything is drawn is decided by whoever started the
work (`with show_progress(console): ...`), so importing tagsteer never writes to a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Bar(Protocol):
    """What long-running code sees: amounts of work done, and a short note behind the bar."""

    def advance(self, amount: float = 1) -> None: ...

    def note(self, text: str) -> None: ...


_SHOWN: ContextVar[Progress | None] = ContextVar("tagsteer_progress", default=None)


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


@contextmanager
def show_progress(console: Console) -> Iterator[None]:
    """Draw the bars of everything that runs inside on `console`."""
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
        token = _SHOWN.set(progress)
        try:
            yield
        finally:
            _SHOWN.reset(token)


@contextmanager
def track(description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work, of which `done` were finished by an earlier run."""
    progress = _SHOWN.get()
    if progress is None:
        yield _Silent()
        return
    task = progress.add_task(description, total=total, completed=done, unit=unit, note="")
    try:
        yield _Rich(progress, task)
    finally:
        progress.stop_task(task)
