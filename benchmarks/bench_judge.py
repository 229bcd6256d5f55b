"""Offline judges: texts judged a second. The shipped judge is trained by benchmarks/train_judge.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks import Row
from tagsteer.judge.learned import LearnedJudge
from tagsteer.judge.offline import RuleJudge
from tagsteer.judge.types import JudgeItem

SENTENCES = (
    "The garden needs water every morning before the sun is high.", "A pitcher throws the ball to the batter.",
    "Prices of houses rose again last year in most large cities.", "She opened the window and listened to the rain.",
    "Mix the flour with butter, then fold in the sugar and the eggs.", "The train to the coast leaves at noon.",
    "Several members of the council asked for a second vote.", "Old maps show a river where the road runs now.",
)  # fmt: skip


def run(quick: bool) -> list[Row]:
    """Texts of about 128 tokens, each new to the judge; concepts and instructions repeat as in a run."""
    import torch

    n = 64 if quick else 1024
    rng = np.random.default_rng(0)
    items = [
        JudgeItem(str(i), ("baseball", "gardening", "cooking")[i % 3], "Tell me about your day.",
                  " ".join(rng.choice(SENTENCES, 10)) + f" {i}")
        for i in range(n)
    ]  # fmt: skip
    judges: list[tuple[str, Any, int, str]] = [
        ("rules", RuleJudge(), n, ""),
        ("learned", LearnedJudge.load(), n, "≥ 50 texts/s on 2 cores"),
    ]
    rows = []
    for name, judge, some, target in judges:
        list(judge.rate(items[:8]))
        start, cpu = time.perf_counter(), time.process_time()
        list(judge.rate(items[-some:]))
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        rows.append(
            Row(
                f"judge {some:,} texts of 128 tokens, {name}",
                some / seconds,
                "texts/s",
                higher_is_better=True,
                target=target,
                note=f"{torch.get_num_threads()} threads; {some / used:.0f} texts a second of processor time",
            )
        )
    return rows
