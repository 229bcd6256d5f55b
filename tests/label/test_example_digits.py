"""The example without text runs, and its features are about what their labels say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits_sae.py"


def test_digits_find_their_features(capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("digits_sae", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", 400)
    module.main()
    out = capsys.readouterr().out
    lines = re.findall(
        r"^digit \d +\d+ +([\d.]+) +([\d.]+) \([\d.]+ to [\d.]+\) +([\d.]+)", out, re.MULTILINE
    )
    assert len(lines) == 10
    precision = [float(line[2]) for line in lines]
    assert sum(precision) / 10 > 0.6  # by chance a tenth
