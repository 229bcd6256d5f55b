"""Progress: silent in the library, lines in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tagsteer import progress
from tagsteer.progress import show_progress, track


def test_the_library_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with track("work", 3) as bar:
        bar.advance()
        bar.note("x")
    assert capsys.readouterr() == ("", "")


def test_a_log_file_gets_lines_with_rate_time_left_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with (
        show_progress(Console(file=log, force_terminal=False)),
        track("Training", 2_000, "steps", done=500) as bar,
    ):
        bar.note("EV 0.81")
        for _ in range(12):
            now[0] += 6
            bar.advance(100)
        now[0] += 12
        bar.advance(300)  # too soon for a line of its own: the end writes it
    assert log.getvalue().splitlines() == [
        "Training: 1,000 of 2,000 steps, 17 steps/s, 0:01:00 left, EV 0.81",
        "Training: 1,500 of 2,000 steps, 17 steps/s, 0:00:30 left, EV 0.81",
        "Training: 2,000 of 2,000 steps, 18 steps/s, took 0:01:24, EV 0.81",
    ]


def test_short_work_leaves_no_line() -> None:
    log = io.StringIO()
    with show_progress(Console(file=log, force_terminal=False)), track("quick", 2) as bar:
        bar.advance(2)
    assert log.getvalue() == ""
