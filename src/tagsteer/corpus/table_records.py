"""Records of CSV, JSONL and Parquet files, one by one: cells by column name, with the place each came from.

Only the wanted columns are handed on. Knows the three formats; must not know what the columns mean.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from tagsteer.corpus.labels import SkipLog
from tagsteer.errors import TagsteerError
from tagsteer.progress import Bar, track

log = logging.getLogger("tagsteer.corpus")

MAX_CELL_CHARS = 16 << 20
_DELIMITERS = (",", ";", "\t", "|")
_BATCH_ROWS = 1024


class Record(NamedTuple):
    """One row: its number from 0 (malformed rows count too), "file:line", and its cells by column."""

    number: int
    where: str
    cells: dict[str, Any]


def open_records(
    path: Path, wanted: Sequence[str], skip: SkipLog, *, delimiter: str | None = None, encoding: str = "utf-8"
) -> Iterator[Record]:
    """Records with the wanted columns, in the format of the name's ending; malformed ones are logged."""
    if not path.exists():
        raise TagsteerError(f"no such file: {path}; name a .csv, .tsv, .jsonl or .parquet file")
    if path.is_dir():
        raise TagsteerError(f"{path} is a folder: name one .csv, .tsv, .jsonl or .parquet file in it")
    if not path.stat().st_size:
        raise TagsteerError(f"{path} is empty: no usable document")
    kind = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    if kind in (".parquet", ".pq"):
        return _parquet(path, wanted, skip)
    if kind in (".csv", ".tsv"):
        return _csv(path, wanted, skip, delimiter or ("\t" if kind == ".tsv" else None), encoding)
    if kind in (".jsonl", ".ndjson", ".json"):
        return _jsonl(path, wanted, skip, encoding)
    raise TagsteerError(
        f"{path} ends in {path.suffix or 'nothing'!r}: wanted .csv, .tsv, .jsonl, .ndjson or .parquet"
    )


def unknown_column(path: Path, column: str, there: Sequence[str]) -> TagsteerError:
    """The error for a column that is not there, with the nearest one and all that are."""
    near = difflib.get_close_matches(column, there, n=1, cutoff=0.5)
    lower = {name.lower(): name for name in there}
    if not near and column.lower() in lower:
        near = [lower[column.lower()]]
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(there) - 30} more" if len(there) > 30 else ""
    return TagsteerError(
        f"{path} has no column {column!r}: {hint}it has {', '.join(map(repr, there[:30]))}{more}"
    )


def _csv(
    path: Path, wanted: Sequence[str], skip: SkipLog, delimiter: str | None, encoding: str
) -> Iterator[Record]:
    with (
        _open_text(path, encoding) as (stream, raw),
        track(f"read {path.name}", path.stat().st_size, "B") as bar,
    ):
        header_line, header_lines = stream.readline(), 1
        # A name with a line break in quotes goes on in the next line.
        while header_line.count('"') % 2 and header_lines < 100 and (more := stream.readline()):
            header_line += more
            header_lines += 1
        delimiter = delimiter or _delimiter(header_line, wanted)
        if len(delimiter) != 1:
            raise TagsteerError(f"delimiter {delimiter!r} of {path}: wanted one character, like ',' or ';'")
        header = _names(header_line, delimiter)
        for column in wanted:
            if column not in header:
                raise unknown_column(path, column, header)
            if header.count(column) > 1:
                raise TagsteerError(
                    f"{path} has {header.count(column)} columns called {column!r}: rename one of them"
                )
        at = {column: header.index(column) for column in wanted}
        # strict: a stray quote is an error where it stands, instead of swallowing the records that follow.
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        old_limit = csv.field_size_limit(MAX_CELL_CHARS)
        number, read = -1, 0
        try:
            while True:
                line = header_lines + reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    number += 1
                    skip.add("malformed CSV record", f"{path.name}:{line} {error}")
                    continue
                if not row:
                    continue
                number += 1
                read = _advance(bar, raw, read)
                if len(row) != len(header):
                    detail = f"{len(row)} fields, the header has {len(header)}"
                    skip.add("malformed CSV record", f"{path.name}:{line} {detail}")
                    continue
                yield Record(number, f"{path.name}:{line}", {column: row[i] for column, i in at.items()})
        finally:
            csv.field_size_limit(old_limit)


def _delimiter(header: str, wanted: Sequence[str]) -> str:
    """The one delimiter under which the header has all wanted columns; a comma where none or several do."""

    fitting = [mark for mark in _DELIMITERS if set(wanted) <= set(_names(header, mark))]
    return fitting[0] if len(fitting) == 1 else ","


def _names(header: str, delimiter: str) -> list[str]:
    return [
        name.strip() for name in next(csv.reader(io.StringIO(header, newline=""), delimiter=delimiter), [])
    ]


def _jsonl(path: Path, wanted: Sequence[str], skip: SkipLog, encoding: str) -> Iterator[Record]:
    seen: dict[str, None] = {}
    good, number, read = 0, -1, 0
    missing = set(wanted)
    with (
        _open_text(path, encoding) as (stream, raw),
        track(f"read {path.name}", path.stat().st_size, "B") as bar,
    ):
        for line, source in enumerate(iter(lambda: stream.readline(2 * MAX_CELL_CHARS), ""), 1):
            if not source.strip():
                continue
            number += 1
            read = _advance(bar, raw, read)
            try:
                record = json.loads(source)
            except (ValueError, RecursionError) as error:
                skip.add("malformed JSON line", f"{path.name}:{line} {error}")
                if line == 1 and source.lstrip().startswith("["):
                    raise TagsteerError(
                        f"{path} is one JSON list: wanted JSONL, one object on every line"
                    ) from error
                continue
            if not isinstance(record, dict):
                if line == 1 and isinstance(record, list):
                    raise TagsteerError(f"{path} is one JSON list: wanted JSONL, one object on every line")
                skip.add("malformed JSON line", f"{path.name}:{line} {type(record).__name__}, not an object")
                continue
            if len(seen) < 1000:
                seen.update(dict.fromkeys(record))
            missing -= record.keys()
            if absent := [column for column in wanted if column not in record]:
                skip.add(f"row without the key {absent[0]!r}", f"{path.name}:{line}")
                continue
            good += 1
            yield Record(number, f"{path.name}:{line}", {column: record[column] for column in wanted})
    if not good and seen:
        for column in wanted:
            if column in missing:
                raise unknown_column(path, column, list(seen))


def _parquet(path: Path, wanted: Sequence[str], skip: SkipLog) -> Iterator[Record]:
    del skip
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            for column in wanted:
                if column not in there:
                    raise unknown_column(path, column, there)
            number = 0
            with track(f"read {path.name}", file.metadata.num_rows, "row") as bar:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(wanted)):
                    for cells in batch.to_pylist():
                        yield Record(number, f"{path.name}:row {number + 1}", cells)
                        number += 1
                    bar.advance(len(batch))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TagsteerError(f"{path} is not a readable Parquet file: {what}") from error


@contextmanager
def _open_text(path: Path, encoding: str) -> Iterator[tuple[IO[str], IO[bytes]]]:
    """Text stream of a plain or gzipped file, and the raw stream whose position is the progress."""
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise TagsteerError(f"encoding {encoding!r} is unknown: say 'utf-8' or 'latin-1'") from error
    with ExitStack() as files:
        try:
            raw = files.enter_context(path.open("rb"))
            gzipped = path.suffix.lower() == ".gz"
            data: Any = files.enter_context(gzip.GzipFile(fileobj=raw)) if gzipped else raw
            _check_text(path, data.read(4096), encoding)
            data.seek(0)
            # Bytes that are no text become lone surrogates; whoever takes the record counts it as malformed.
            text = io.TextIOWrapper(data, encoding=encoding, errors="surrogateescape", newline="")
            yield files.enter_context(text), raw
        except (OSError, EOFError, zlib.error, UnicodeError) as error:
            raise TagsteerError(f"{path} cannot be read: {error}") from error


def _check_text(path: Path, head: bytes, encoding: str) -> None:
    """Refuse UTF-16 that was not asked for, and files with zero bytes."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and encoding == "utf-8-sig":
        raise TagsteerError(f"{path} is in UTF-16: say encoding='utf-16'")
    if b"\0" in head and "16" not in encoding and "32" not in encoding:
        raise TagsteerError(f"{path} holds binary data: wanted text in {encoding.removesuffix('-sig')}")


def _advance(bar: Bar, raw: IO[bytes], read: int) -> int:
    position = raw.tell()
    if position > read:
        bar.advance(position - read)
    return position
