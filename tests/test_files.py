"""Files that tagsteer writes can be read by whoever may read their neighbours."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tagsteer.files import as_others_are


def test_tensors_get_the_permissions_of_a_plain_file(tmp_path: Path) -> None:
    plain, tensors = tmp_path / "plain.txt", tmp_path / "t.safetensors"
    plain.write_text("x", "utf-8")
    save_file({"x": torch.zeros(1)}, tensors)
    assert as_others_are(tensors).stat().st_mode == plain.stat().st_mode
