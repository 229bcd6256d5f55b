"""An extraction that was killed, damaged or repeated gives, byte for byte, what an undisturbed one gives."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.label import shards as files
from tagsteer.label.frequencies import Frequencies, extract_frequencies
from tests.label.saes import random_sae
from tests.tiny import tiny_model

TEXTS = [f"document {i} " + "about many things " * (i % 7) for i in range(23)]
OPTIONS = {"documents_per_shard": 5, "tokens_per_batch": 300}


def extract(folder, texts=TEXTS, **options):
    return extract_frequencies(tiny_model(), random_sae(), texts, folder=folder, **{**OPTIONS, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the one that tells seconds."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "complete.json"
    }


def same(a: Frequencies, b: Frequencies) -> None:
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(a.matrix, part), getattr(b.matrix, part))
    for name in (
        "token_counts",
        "max_activation",
        "robust_max",
        "mean_active",
        "n_tokens_active",
        "n_docs_active",
    ):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert {k: v for k, v in a.meta.items() if k not in ("seconds", "shards")} == {
        k: v for k, v in b.meta.items() if k not in ("seconds", "shards")
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "whole"
    extract(folder)
    return folder


@pytest.fixture
def copy(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_in_a_folder_in_memory_and_saved_are_the_same(done, tmp_path):
    in_memory = extract(None)
    on_disk = Frequencies.load(done)
    same(in_memory, on_disk)
    same(in_memory, Frequencies.load(in_memory.save(tmp_path / "saved")))
    base = on_disk.matrix.data
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert len(list((done / "shards").glob("*.npz"))) == 5


def test_counts_are_stored_as_small_integers(tmp_path):
    extract(tmp_path / "long", max_tokens=300)
    extract(tmp_path / "short", max_tokens=255)
    for folder, dtype in ((tmp_path / "long", np.uint16), (tmp_path / "short", np.uint8)):
        with np.load(folder / "shards" / "00000.npz", allow_pickle=False) as arrays:
            assert arrays["counts"].dtype == dtype and arrays["counts"].min() >= 1


def test_a_second_call_runs_no_model(done, monkeypatch):
    from tagsteer.lm import hooks

    monkeypatch.setattr(hooks, "residuals_at", lambda *_: pytest.fail("the model ran"))
    before = contents(done)
    same(extract(done), Frequencies.load(done))
    assert contents(done) == before


KILLED = """
import sys
from tests.label.test_shards import extract
from tagsteer.label.shards import ShardFolder
import os, signal
write, at = ShardFolder.write, int(sys.argv[2])
def dying(self, number, *rest):
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, *rest)
ShardFolder.write = dying
extract(sys.argv[1])
"""


def test_a_killed_run_resumes_to_the_same_bytes(done, tmp_path):
    folder = tmp_path / "killed"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), "3"], env=env, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert [p.name for p in sorted((folder / "shards").glob("*.json"))] == [f"{i:05d}.json" for i in range(3)]
    with pytest.raises(TagsteerError, match="no complete extraction"):
        Frequencies.load(folder)
    same(extract(folder), Frequencies.load(done))
    assert contents(folder) == contents(done)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit": lambda shards: flip(shards / "00002.npz"),
    "cut short": lambda shards: (shards / "00002.npz").write_bytes((shards / "00002.npz").read_bytes()[:100]),
    "gone": lambda shards: (shards / "00002.npz").unlink(),
    "no side file": lambda shards: (shards / "00002.json").unlink(),
    "half a side file": lambda shards: (shards / "00002.json").write_text('{"documents": [10'),
    "another shard's": lambda shards: shutil.copy(shards / "00001.npz", shards / "00002.npz"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_found_and_only_that_one_made_again(copy, done, damage, caplog, monkeypatch):
    DAMAGE[damage](copy / "shards")
    made = []
    write = files.ShardFolder.write

    def counting(self, number, *rest):
        made.append(number)
        write(self, number, *rest)

    monkeypatch.setattr(files.ShardFolder, "write", counting)
    with caplog.at_level(logging.WARNING):
        same(extract(copy), Frequencies.load(done))
    assert made == [2]
    assert contents(copy) == contents(done)
    if "side file" not in damage:
        assert "00002.npz is damaged or missing" in caplog.text


def test_other_settings_in_the_same_folder_are_refused(copy):
    with pytest.raises(TagsteerError, match=r"max_tokens 256 \(now 100\)"):
        extract(copy, max_tokens=100)
    with pytest.raises(TagsteerError, match="other settings: texts"):
        extract(copy, [*TEXTS[:7], "another text", *TEXTS[8:]])
    with pytest.raises(TagsteerError, match="other settings: sae"):
        extract_frequencies(tiny_model(), random_sae(seed=1), TEXTS, folder=copy, **OPTIONS)
    with pytest.raises(TagsteerError, match=r"other settings: model"):
        extract_frequencies(tiny_model("gemma2"), random_sae(), TEXTS, folder=copy, **OPTIONS)


def test_shards_without_their_settings_are_not_trusted(copy, tmp_path):
    (copy / "settings.json").unlink()
    same(extract(copy, max_tokens=20), extract(tmp_path / "fresh", max_tokens=20))


def test_another_quantile_needs_no_model(copy, done, monkeypatch):
    from tagsteer.lm import hooks

    monkeypatch.setattr(hooks, "residuals_at", lambda *_: pytest.fail("the model ran"))
    lower = extract(copy, robust_quantile=0.5)
    assert (lower.robust_max < Frequencies.load(done).robust_max).any()
    np.testing.assert_array_equal(lower.max_activation, Frequencies.load(done).max_activation)


def test_a_damaged_matrix_is_an_error(copy):
    (copy / "matrix" / "data.npy").unlink()
    with pytest.raises(TagsteerError, match=r"data\.npy is missing"):
        Frequencies.load(copy)
    np.save(copy / "matrix" / "data.npy", np.zeros(3, np.float32))
    with pytest.raises(TagsteerError, match="do not fit together"):
        Frequencies.load(copy)


def test_text_borders_count_in_the_digest():
    assert files.texts_digest(["ab", "c"]) != files.texts_digest(["a", "bc"])
    assert files.texts_digest(["\ud800"]) != files.texts_digest([""])


class Repeated(Sequence[str]):
    """A corpus of any length that holds no texts."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return f"document {i} about things"


def test_host_memory_does_not_grow_with_the_number_of_documents(tmp_path):
    model, sae = tiny_model(), random_sae()

    def peak(n: int) -> int:
        tracemalloc.start()
        extract_frequencies(model, sae, Repeated(n), documents_per_shard=64, folder=tmp_path / str(n))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(64)  # imports
    small, large = peak(128), peak(1280)
    per_document = (large - small) / (1280 - 128)
    # What stays of a document is its token count, and a share of its shard's side file; its row would be
    # larger.
    about = json.loads((tmp_path / "1280" / "shards" / "00000.json").read_text())
    row = 8 * about["non_zeros"] / 64
    assert per_document < 0.3 * row, (small, large, row)
