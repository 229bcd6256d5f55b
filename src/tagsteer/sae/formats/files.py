"""Open an SAE's files lazily: tensors by name without reading them, and the JSON beside them.

safetensors and .pt are memory-mapped by torch, npz members are memory-mapped when they are stored
uncompressed; picking a few rows or columns then reads little more than those. Nothing is unpickled. Knows no
format's meaning.
"""

from __future__ import annotations

import json
import logging
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagsteer.errors import TagsteerError

log = logging.getLogger("tagsteer.sae")

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
# Where the known formats keep their weights; anything else is taken only when it is the one file there.
_USUAL = (
    *("sae.safetensors", "sae_weights.safetensors", "params.safetensors", "params.npz", "ae.pt"),
    *(
        "sae_weights.pt",
        "checkpoints/pruned.safetensors",
        "checkpoints/final.safetensors",
        "checkpoints/final.pt",
    ),
)
_CONFIGS = ("card.json", "cfg.json", "config.json", "hyperparams.json", "activation_scaler.json")

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Files:
    """One SAE's weights and the JSON files beside them, unread as far as possible."""

    name: str
    """What the user asked for; errors and `SAE.source` name it."""
    weights: Path
    arrays: Mapping[str, Array]
    configs: Mapping[str, dict[str, Any]]

    def need(self, name: str) -> Array:
        """The tensor of that name, or an error that says which there are."""
        if name not in self.arrays:
            raise TagsteerError(
                f"{self.weights} lacks the tensor {name!r}; it holds {', '.join(sorted(self.arrays)[:12])}"
            )
        return self.arrays[name]

    def config_with(self, *keys: str) -> dict[str, Any] | None:
        """The first JSON object that has all these keys."""
        return next((c for c in self.configs.values() if all(k in c for k in keys)), None)


def open_files(path: Path, name: str | None = None) -> Files:
    """Open the SAE at a folder or weight file; an error says what is missing or ambiguous."""
    weights = _find_weights(path) if path.is_dir() else path
    folders = [weights.parent] + ([weights.parent.parent] if weights.parent.name == "checkpoints" else [])
    configs = {f"{f.name}/{c}": _read_json(f / c) for f in folders for c in _CONFIGS if (f / c).is_file()}
    return Files(name or str(path), weights, open_arrays(weights), configs)


def open_arrays(path: Path) -> Mapping[str, Array]:
    """Tensors by name; the file's suffix says which container it is."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt", device="cpu") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if path.suffix == ".npz":
            return _Npz(path)
        if path.suffix in (".pt", ".pth"):
            return _read_pt(path)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise TagsteerError(
            f"cannot read {path}: {str(error).splitlines()[0]}; fetch the file again"
        ) from error
    except Exception as error:  # safetensors raises its own type, which is no subclass of the above
        if type(error).__name__ != "SafetensorError":
            raise
        raise TagsteerError(f"cannot read {path}: {error}; fetch the file again") from error
    raise TagsteerError(f"{path} is no weight file: wanted {', '.join(SUFFIXES)} or a folder that holds one")


def pick(array: Array, axis: int, ids: np.ndarray | None) -> torch.Tensor:
    """A fresh CPU tensor of the rows (axis 0) or columns (axis 1) `ids`, or of everything."""
    if isinstance(array, torch.Tensor):
        return array.clone() if ids is None else array.index_select(axis, torch.from_numpy(ids))
    # Members of an archive lie at odd offsets. np.take would first copy such an array whole, and a plain copy of
    # it is made number by number: bytes have no alignment.
    if ids is not None:
        return torch.from_numpy(np.array(array[ids] if axis == 0 else array[:, ids]))
    order: Any = "C" if array.flags.c_contiguous else "F"
    raw = np.array(array.reshape(-1, order=order).view(np.uint8))
    return torch.from_numpy(raw.view(array.dtype).reshape(array.shape, order=order))


def _read_pt(path: Path) -> dict[str, Array]:
    mapped = zipfile.is_zipfile(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(state, dict) and isinstance(state.get("sae"), dict):
        state = state["sae"]
    if not isinstance(state, dict):
        raise TagsteerError(f"{path} holds a {type(state).__name__}: wanted the state dict of an SAE")
    return {str(k): v.detach() for k, v in state.items() if isinstance(v, torch.Tensor)}


class _Npz(Mapping[str, Array]):
    """Arrays of an npz file, mapped where they are stored uncompressed, else read at each access."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._members = {
                i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")
            }

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # Mapping's own would read the array

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        if member.compress_type == zipfile.ZIP_STORED:
            mapped = self._map(member)
            if mapped is not None:
                return mapped
        log.debug("%s: %s is not stored plainly, so all of it is read", self._path.name, name)
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                return archive[name]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise TagsteerError(
                f"cannot read {name} of {self._path}: {error}; fetch the file again"
            ) from error

    def _map(self, member: zipfile.ZipInfo) -> np.ndarray | None:
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            # The local header repeats name and extra field with lengths of its own (APPNOTE 4.3.7).
            n_name, n_extra = struct.unpack("<26xHH", file.read(30))
            file.seek(member.header_offset + 30 + n_name + n_extra)
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject or not all(shape):
                return None  # np.load refuses objects and handles emptiness
            order = "F" if fortran else "C"
            where: Any = (self._path, dtype, "r", file.tell(), shape or (1,), order)
            return np.memmap(*where).reshape(shape)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TagsteerError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _find_weights(folder: Path) -> Path:
    for usual in _USUAL:
        if (folder / usual).is_file():
            return folder / usual
    there = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)
    if len(there) == 1:
        return there[0]
    if there:
        raise TagsteerError(
            f"{folder} holds {len(there)} weight files: name one of {', '.join(p.name for p in there[:8])}"
        )
    found = [
        p for depth in ("*", "*/*", "*/*/*") for usual in _USUAL for p in folder.glob(f"{depth}/{usual}")
    ]
    below = sorted({p.relative_to(folder).parent.as_posix().removesuffix("/checkpoints") for p in found})
    hint = (
        f"; there may be SAEs in {', '.join(below[:8])}: name one of them"
        if below
        else f" ({', '.join(SUFFIXES)})"
    )
    raise TagsteerError(f"{folder} holds no weight file{hint}")
