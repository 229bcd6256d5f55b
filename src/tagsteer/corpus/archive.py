"""Named members of a .7z archive, streamed to files of ours. Knows the archive format, nothing of the
contents.

Members are written to names that we choose, so no path inside the archive is ever used as a path; sizes are
checked against the free disk space and against what the archive announced.
"""

from __future__ import annotations

import logging
import lzma
import shutil
import struct
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from tagsteer.errors import TagsteerError
from tagsteer.progress import track

log = logging.getLogger("tagsteer.corpus")

# What py7zr lets through when headers or streams are cut or flipped (each seen when fuzzing, or next to it).
_LET_THROUGH = (
    *(lzma.LZMAError, zlib.error, struct.error, EOFError, OSError, ArithmeticError, AssertionError),
    *(AttributeError, LookupError, MemoryError, NotImplementedError, TypeError, ValueError),
)


def extract_7z(archive: Path, wanted: Iterable[str], folder: Path) -> dict[str, Path]:
    """Extract the members called `wanted` (in any folder of the archive); returns the path of each one found.

    A damaged, encrypted or lying archive, one with two members of a wanted name, and a full disk are
    TagsteerErrors.
    """
    import py7zr

    broken = (py7zr.exceptions.ArchiveError, py7zr.exceptions.AbsolutePathError, *_LET_THROUGH)
    found: dict[str, Path] = {}
    try:
        # An open file instead of a path keeps py7zr from starting threads that each hold a block.
        with archive.open("rb") as stream, py7zr.SevenZipFile(stream) as opened:
            if opened.needs_password():
                raise TagsteerError(f"{archive} is encrypted: unpack it and name the folder")
            members = _members(archive, opened, set(wanted))
            size = sum(item.uncompressed for item in members.values())
            _check_disk(archive, folder, size)
            found = {name: folder / name for name in members}
            targets = [item.filename for item in members.values()]
            with ExitStack() as files, track(f"unpack {archive.name}", size, "B") as bar:
                opened.extract(targets=targets, factory=_writer_factory(found, size, bar.advance, files))
    except TagsteerError:
        raise
    except py7zr.exceptions.PasswordRequired as error:
        raise TagsteerError(f"{archive} is encrypted: unpack it and name the folder") from error
    except broken as error:
        if isinstance(error, OSError) and error.errno:
            raise TagsteerError(f"cannot unpack {archive} to {folder}: {error.strerror}") from error
        what = f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0]
        raise TagsteerError(
            f"{archive} is not a whole .7z archive ({what}): "
            "download it again, or unpack it and name the folder"
        ) from error
    for name, path in found.items():
        if not path.exists():  # an empty member has no stream, and py7zr may not call for its file
            path.touch()
        log.info("unpacked %s (%s bytes) of %s", name, f"{path.stat().st_size:,}", archive)
    return found


def _members(archive: Path, opened: Any, wanted: set[str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for item in opened.list():
        name = _last_part(item.filename)
        if name in wanted and not item.is_directory:
            if name in members:
                raise TagsteerError(
                    f"{archive} holds both {members[name].filename} and {item.filename}: "
                    "unpack it and name the folder of the one site you want"
                )
            members[name] = item
    return members


def _check_disk(archive: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise TagsteerError(
            f"{archive} unpacks to {size / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free: "
            "point TMPDIR to a larger disk"
        )


def _writer_factory(paths: dict[str, Path], limit: int, advance: Any, files: ExitStack) -> Any:
    from py7zr.io import Py7zIO, WriterFactory

    class Writer(Py7zIO):
        def __init__(self, path: Path) -> None:
            self._name, self._file = path.name, files.enter_context(path.open("wb"))
            self._size = 0

        def write(self, s: bytes | bytearray) -> int:
            self._size += len(s)
            if self._size > limit:
                raise TagsteerError(
                    f"{self._name} unpacks to more than the {limit:,} bytes that the archive announced"
                )
            advance(len(s))
            return self._file.write(s)

        def read(self, size: int | None = None) -> bytes:
            del size
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            del whence
            return offset

        def flush(self) -> None:
            self._file.flush()

        def size(self) -> int:
            return self._size

        def close(self) -> None:
            self._file.close()

    class Factory(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            # py7zr hands over a path made from the member's name; only its last part chooses among ours.
            return Writer(paths[_last_part(filename)])

    return Factory()


def _last_part(member: str) -> str:
    return PurePosixPath(str(member).replace("\\", "/")).name
