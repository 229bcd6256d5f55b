"""Each test names the peer library it needs; without it the test is skipped, loudly."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture
def peer(request) -> str:
    """The library under test, from the test module's PEER."""
    name = request.module.PEER
    if importlib.util.find_spec(name) is None:
        pytest.skip(
            f"PEER ABSENT: {name} is not installed here; `make test-peers` installs it in its own environment"
        )
    return name


@pytest.fixture
def x():
    """Residuals [3, 64, D_MODEL], float32."""
    import torch

    from tests.sae.layouts import residuals

    return torch.from_numpy(residuals(192)).float().reshape(3, 64, -1)
