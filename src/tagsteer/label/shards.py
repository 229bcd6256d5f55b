"""The files of an extraction: checksummed shards written as they are made, then one matrix opened by memory
map.

A shard holds the sparse counts of a run of documents (small integers, token counts beside them) and the
totals of its latents. It exists only if its side file has its checksum, the texts' checksum and the range;
anything else is made again. Knows neither models nor SAEs nor what the numbers mean beyond counts of
tokens.

    settings.json                     what all shards were made with; other settings are refused
    shards/00000.npz, 00000.json      documents 0 to 1023, and so on
    matrix/{indptr,indices,data}.npy  all of them as CSR: share of a document's tokens that fire a latent
    matrix/token_counts.npy, latents.npz, complete.json
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger("tagsteer.label")


@dataclass(frozen=True, eq=False)
class Shard:
    """Counts of consecutive documents: CSR rows, and what each latent summed up to on them."""

    indptr: np.ndarray  # (n + 1,) int64
    indices: np.ndarray  # (nnz,) int32, sorted in each row
    counts: np.ndarray  # (nnz,) uint8 or uint16, at least 1
    token_counts: np.ndarray  # (n,) int32
    maximum: np.ndarray  # (d_sae,) float32
    total: np.ndarray  # (d_sae,) float64
    tokens: np.ndarray  # (d_sae,) int64
    histogram_cells: np.ndarray  # (m,) int64: latent × bins + bin, sorted
    histogram_counts: np.ndarray  # (m,) int32
    tally: np.ndarray  # (2,) int64: attention sinks left out, documents cut at the length limit

    @classmethod
    def fields(cls) -> list[str]:
        return list(cls.__dataclass_fields__)


def texts_digest(texts: Iterable[str]) -> str:
    """SHA-256 of a run of texts; differs if any text or a border between two differs."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class ShardFolder:
    """The shards of one extraction, in one folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Open or begin an extraction with `settings`; what `measure()` finds is stored with them at the
        beginning and taken from there (`extra`) afterwards.

        TagsteerError when the folder holds an extraction with other settings.
        """
        self.folder = Path(folder)
        path = self.folder / "settings.json"
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        if stored := read_json(path):
            old = stored["settings"]
            changed = [k for k in settings if old.get(k) != settings[k]] + [
                k for k in old if k not in settings
            ]
            if changed:
                what = ", ".join(f"{k} {old.get(k)!r} (now {settings.get(k)!r})" for k in changed[:3])
                raise TagsteerError(
                    f"{self.folder} has other settings: {what}; give another folder, or delete it"
                )
            self.extra: dict[str, Any] = stored["extra"]
        else:
            self.extra = measure()
            write_atomically(path, json.dumps({"settings": settings, "extra": self.extra}, indent=1).encode())
        made_with = json.dumps([settings, self.extra], sort_keys=True)
        # Also in every shard, in case settings.json is lost and written anew.
        self._made_with = hashlib.sha256(made_with.encode()).hexdigest()

    def path(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:05d}.npz"

    def write(self, number: int, shard: Shard, documents: range) -> None:
        """Write a shard, then its side file; what was written under that number before counts no more."""
        side = self.path(number).with_suffix(".json")
        side.unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(shard, name) for name in Shard.fields()})
        data = buffer.getvalue()
        write_atomically(self.path(number), data)
        about = {
            "documents": [documents.start, documents.stop],
            "made_with": self._made_with,
            "sha256": hashlib.sha256(data).hexdigest(),
            "non_zeros": len(shard.indices),
        }
        write_atomically(side, json.dumps(about).encode())

    def about(self, number: int) -> dict[str, Any] | None:
        return read_json(self.path(number).with_suffix(".json"))

    def is_done(self, number: int, documents: range) -> bool:
        """Whether the shard is there, undamaged and made with these settings; says why when it is not."""
        about = self.about(number)
        if about is None:
            return False
        wanted = ([documents.start, documents.stop], self._made_with)
        if (about.get("documents"), about.get("made_with")) != wanted:
            log.warning("%s is of other settings: making it again", self.path(number))
            return False
        if self._read(number, about) is None:
            log.warning("%s is damaged or missing: making it again", self.path(number))
            return False
        return True

    def read(self, number: int) -> Shard:
        """A finished shard; TagsteerError if it is damaged."""
        about = self.about(number)
        data = self._read(number, about) if about else None
        if data is None:
            raise TagsteerError(
                f"{self.path(number)} is damaged or missing: run the extraction again, it makes what lacks"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Shard(**{name: arrays[name] for name in Shard.fields()})

    def _read(self, number: int, about: dict[str, Any]) -> bytes | None:
        try:
            data = self.path(number).read_bytes()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == about.get("sha256") else None


def shares(counts: np.ndarray, token_counts: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """float32 [nnz]: each count by the tokens of its document."""
    tokens = np.repeat(token_counts, np.diff(indptr))
    return counts.astype(np.float32) / tokens.astype(np.float32)


def write_matrix(
    folder: Path, shards: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], non_zeros: int
) -> None:
    """Write CSR files from (row lengths, indices, data) of consecutive rows, holding one part at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    # scipy wants both index arrays in one type, and copies them otherwise.
    index = np.dtype(np.int32 if non_zeros < 2**31 else np.int64)
    with (
        _ArrayFile(folder / "indices.npy", index) as columns,
        _ArrayFile(folder / "data.npy", np.float32) as values,
        _ArrayFile(folder / "indptr.npy", index) as rows,
    ):
        rows.append(np.zeros(1))
        end = 0
        for lengths, indices, data in shards:
            ends = end + np.cumsum(lengths, dtype=np.int64)
            end = int(ends[-1]) if len(ends) else end
            rows.append(ends)
            columns.append(indices)
            values.append(data)


def open_matrix(folder: Path, n_columns: int) -> csr_matrix:
    """The matrix written by `write_matrix`, by memory map: pages are read when they are used."""
    from scipy.sparse import csr_matrix

    data, indices, indptr = (_open_array(folder / f"{name}.npy") for name in ("data", "indices", "indptr"))
    if len(data) != len(indices) or not len(indptr) or indptr[-1] != len(data):
        raise TagsteerError(f"{folder} is damaged: its arrays do not fit together; run the extraction again")
    return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_columns), copy=False)


def shard_ranges(n_documents: int, per_shard: int) -> list[range]:
    """Document numbers of each shard."""
    return [range(i, min(i + per_shard, n_documents)) for i in range(0, n_documents, per_shard)]


def digest_of(abouts: Sequence[dict[str, Any]]) -> str:
    """One checksum over those of all shards."""
    return hashlib.sha256("".join(about["sha256"] for about in abouts).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None when the file is missing or not a whole JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_atomically(path: Path, data: bytes) -> None:
    """Write and rename, so that a kill leaves the old file, the new one, or none, and never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)


class _ArrayFile:
    """A one-dimensional .npy file that grows; its header is written when its length is known."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0

    def __enter__(self) -> _ArrayFile:
        self.file: BinaryIO = self.path.open("wb")
        self._header()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.seek(0)
        self._header()
        self.file.close()

    def _header(self) -> None:
        # numpy pads headers so that a longer shape can be written over a shorter one.
        about = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self.file, about)

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)


def _open_array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        # An empty array cannot be mapped.
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise TagsteerError(f"{path} is missing: run the extraction again") from None
    return np.asarray(found)
