"""Parity with the real peer libraries, in a virtual environment of its own: `make test-peers`.

    python tests/peers/run.py              # make .venv-peers if needed, install the peers, run the tests
    python tests/peers/run.py -k sparsify  # further arguments go to pytest

A peer that cannot be installed is named loudly, its tests are skipped, and the exit status is 1: a parity
that was not checked is not a parity.
"""

# ruff: noqa: T201 - a script that talks to whoever runs it
from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-peers"
TORCH = "torch==2.13.0"  # pinned and first, so that no peer drags in a build for CUDA
PEERS = {
    "sae_lens": "sae-lens>=6.54,<7",
    "sparsify": "eai-sparsify",
    "dictionary_learning": "dictionary-learning",
}


def main() -> int:
    python = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print(f"making {VENV.name} (about 2 GB, several minutes)", flush=True)
        venv.create(VENV, with_pip=True)
    if not _installs(python, "torch", TORCH) or not _installs(python, "pytest", "pytest"):
        return _fail("torch or pytest could not be installed, so nothing was checked")
    missing = [name for name, wanted in PEERS.items() if not _installs(python, name, wanted)]
    _drop_foreign_torchvision(python)
    tests = [
        str(python),
        "-m",
        "pytest",
        "-m",
        "peers",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "tests/peers",
    ]
    # tagsteer is not installed there: only its SAE room runs, which needs torch, numpy, safetensors.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "HF_HUB_OFFLINE": "1",
    }
    status = subprocess.run([*tests, *sys.argv[1:]], cwd=ROOT, env=environment).returncode
    if missing:
        return _fail(f"COULD NOT INSTALL {', '.join(missing)}: parity with them was NOT checked")
    return status


def _installs(python: Path, module: str, requirement: str) -> bool:
    """Whether the module can be found there, after installing it if it could not."""
    find = [str(python), "-c", f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"]
    if subprocess.run(find).returncode == 0:
        return True
    print(f"installing {requirement} into {VENV.name}", flush=True)
    # torch is named again in every call: pip then keeps the one that is there.
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement, TORCH])
    return subprocess.run(find).returncode == 0


def _drop_foreign_torchvision(python: Path) -> None:
    """A peer may bring torchvision for another build of torch, and transformers then fails to import."""
    if subprocess.run([str(python), "-c", "import torchvision"], capture_output=True).returncode:
        subprocess.run(
            [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], capture_output=True
        )


def _fail(message: str) -> int:
    print(f"\n!! {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
