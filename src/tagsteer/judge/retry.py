"""What a failed call means - send again, leave out, or stop - and how long to wait before the next try.

The only place that decides on retries: the openai client's own are switched off. Must not know questions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal

# Errors of one text, not of the settings: the others may still be answered.
_OF_ONE_TEXT = {
    "context_length_exceeded", "content_filter", "content_policy_violation", "invalid_prompt",
}  # fmt: skip


@dataclass(frozen=True)
class Backoff:
    """Exponential waits with jitter: base·2^n seconds up to `cap`, times a random factor from 1/2 to 1."""

    base: float = 1.0
    cap: float = 60.0
    random: random.Random = field(default_factory=random.Random)

    def wait(self, tries: int, asked_for: float | None = None) -> float:
        """Seconds to wait after `tries` failures; never less than a server asked for."""
        wait = min(self.cap, self.base * 2.0 ** (tries - 1)) * self.random.uniform(0.5, 1.0)
        if asked_for is None:
            return wait
        # Jitter on top: all who were told the same time would come back at once.
        return asked_for + self.random.uniform(0.0, min(self.base, wait))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a server asks to wait: retry-after-ms, or retry-after in seconds or as a date; or None."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        when = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError, TypeError):
        return None
    return max(0.0, when.timestamp() - (time.time() if now is None else now))


@dataclass(frozen=True)
class Failure:
    """A call that brought no answer: why, what to do, and what wait the server asks for."""

    reason: str
    then: Literal["retry", "leave out", "doubt", "stop"]
    """doubt: a fault of the settings if it is the first thing the server says, else of one text."""
    wait: float | None = None


def failure_of_status(status: int, code: str, message: str, headers: Mapping[str, str]) -> Failure:
    """What an HTTP status means; `code` and `message` are those of the server's error body."""
    reason = f"HTTP {status}" + (f" ({code})" if code else "")
    if status in (401, 403):
        # Servers repeat parts of the key in this message: it is not shown.
        return Failure(f"{reason}: the key was refused", "stop")
    if code in ("insufficient_quota", "billing_hard_limit_reached") or status == 402:
        return Failure(f"{reason}: the account has no money left", "stop")
    if status in (408, 409, 425, 429) or status >= 500:
        return Failure(reason, "retry", retry_after(headers))
    if code in _OF_ONE_TEXT or status == 413 or "context length" in message.lower():
        return Failure(reason, "leave out")
    return Failure(f"{reason}: {message}" if message else reason, "doubt" if status in (400, 422) else "stop")
