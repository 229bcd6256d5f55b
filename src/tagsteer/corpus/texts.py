"""Strings by the million in little memory: `Texts` reads them from Arrow, `TextBuilder` collects them.

Knows Arrow and temporary files; must not know where the strings come from or what they mean.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

CHUNK_CHARS = 1 << 20
# Beyond this many characters the finished chunks lie in a memory-mapped temporary file, not in memory.
SPILL_CHARS = 64 << 20


class Texts(Sequence[str]):
    """Strings in an Arrow chunked array of large_string: `texts[i]` is a str, `len(texts)` their number."""

    def __init__(self, array: pa.ChunkedArray) -> None:
        import pyarrow as pa

        self.array = array if array.type == pa.large_string() else array.cast(pa.large_string())

    @classmethod
    def of(cls, strings: Iterable[str]) -> Texts:
        """Copy strings into Arrow, chunk by chunk."""
        builder = TextBuilder()
        for string in strings:
            builder.append(string)
        return builder.finish()

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return Texts(self.array[start:stop]) if step == 1 else self.take(range(start, stop, step))
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"text {position} of {len(self)}")
        return self.array[position % len(self)].as_py()

    def __iter__(self) -> Iterator[str]:
        # By slices: whole chunks of a memory-mapped file need not become Python strings at once.
        for chunk in self.array.chunks:
            for start in range(0, len(chunk), 1024):
                yield from chunk[start : start + 1024].to_pylist()

    def __repr__(self) -> str:
        return f"Texts({len(self):,} strings, {self.array.nbytes:,} bytes)"

    def take(self, indices: Sequence[int] | np.ndarray) -> Texts:
        """The strings at those positions, in that order."""
        import numpy as np
        import pyarrow as pa

        wanted = np.asarray(indices, dtype=np.int64)
        if not len(wanted):
            return self[:0]
        # Chunk by chunk: ChunkedArray.take would first copy all chunks into one array.
        ends = np.cumsum([len(chunk) for chunk in self.array.chunks])
        chunk_of = np.searchsorted(ends, wanted, side="right")
        order = np.argsort(chunk_of, kind="stable")
        picked = []
        for i in np.unique(chunk_of).tolist():
            chunk = self.array.chunk(i)
            picked.append(chunk.take(pa.array(wanted[chunk_of == i] - (ends[i] - len(chunk)))))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return Texts(pa.chunked_array([pa.concat_arrays(picked).take(pa.array(back))]))


class TextBuilder:
    """Collects strings in Arrow chunks; when they are much, in a temporary file instead of memory."""

    def __init__(self, spill_chars: int = SPILL_CHARS) -> None:
        self._held: list[str] = []
        self._held_chars = self._chars = self._count = 0
        self._chunks: list[pa.Array] = []
        self._spill_chars = spill_chars
        self._spill: _Spill | None = None

    def __len__(self) -> int:
        return self._count

    def append(self, text: str) -> None:
        """Add one string; it must be writable as UTF-8 (see `is_utf8`)."""
        self._held.append(text)
        self._held_chars += len(text)
        self._count += 1
        if self._held_chars >= CHUNK_CHARS or len(self._held) >= 65536:
            self._flush()

    def finish(self) -> Texts:
        """Everything appended so far, in order."""
        import pyarrow as pa

        self._flush()
        if self._spill is None:
            return Texts(pa.chunked_array(self._chunks, type=pa.large_string()))
        for chunk in self._chunks:
            self._spill.write(chunk)
        return self._spill.finish()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        self._chunks.append(pa.array(self._held, type=pa.large_string()))
        self._chars += self._held_chars
        self._held, self._held_chars = [], 0
        if self._chars > self._spill_chars:
            self._spill = self._spill or _Spill()
            for chunk in self._chunks:
                self._spill.write(chunk)
            self._chunks, self._chars = [], 0


class _Spill:
    """An Arrow IPC file in the temporary folder (TMPDIR), removed with the texts that are mapped from it."""

    def __init__(self) -> None:
        import pyarrow as pa

        handle, name = tempfile.mkstemp(prefix="tagsteer-texts-", suffix=".arrow")
        os.close(handle)
        self.path = Path(name)
        self._schema = pa.schema([("text", pa.large_string())])
        self._writer = pa.ipc.new_file(name, self._schema)
        self._remove = weakref.finalize(self, _unlink, name)

    def write(self, chunk: pa.Array) -> None:
        import pyarrow as pa

        self._writer.write_batch(pa.record_batch([chunk], schema=self._schema))

    def finish(self) -> Texts:
        import pyarrow as pa

        self._writer.close()
        texts = Texts(pa.ipc.open_file(pa.memory_map(str(self.path))).read_all().column(0))
        self._remove.detach()
        if os.name == "posix":
            self.path.unlink()  # the mapping keeps the bytes until the last text is gone
        else:
            weakref.finalize(texts, _unlink, str(self.path))
        return texts


def _unlink(name: str) -> None:
    Path(name).unlink(missing_ok=True)


def is_utf8(text: str) -> bool:
    """Whether the string can be written as UTF-8: JSON escapes may hold lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
