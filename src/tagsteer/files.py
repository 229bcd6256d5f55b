"""Permissions of written files."""

from __future__ import annotations

import os
from pathlib import Path


def as_others_are(path: str | Path) -> Path:
    """Give a file the permissions that `open` would: safetensors 0.7 lets only the owner read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    Path(path).chmod(0o666 & ~mask)
    return Path(path)
