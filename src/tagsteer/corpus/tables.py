"""Tables (CSV, JSONL, Parquet) as corpora: one or more text columns, and a column of labels.

Reads record by record; a broken record is counted with its line and costs only itself. How a cell of labels
is split is decided from the whole column (separators.py) and refused where it is not plain. Knows file
formats and columns; must not know any data set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tagsteer.corpus.clean import html_to_text, looks_like_html, plain_text
from tagsteer.corpus.labels import LabelBuilder, SkipLog
from tagsteer.corpus.separators import AUTO, detect_separator, split_labels
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.table_records import Record, open_records
from tagsteer.corpus.texts import TextBuilder, Texts, is_utf8
from tagsteer.errors import TagsteerError

log = logging.getLogger("tagsteer.corpus")

Cell = str | list[str]

_SAMPLE = 200  # records that decide whether a column holds HTML


def from_table(
    path: str | Path,
    text: str | Sequence[str],
    labels: str,
    id: str | None = None,
    *,
    label_separator: str | None = AUTO,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    html: bool | Sequence[str] | None = None,
    keep_unlabelled: bool = False,
) -> Corpus:
    """Read a table by the ending of its name: .csv, .tsv, .jsonl, .ndjson (each also with .gz) or .parquet.

    `text` names one column or several, joined by a blank line. `labels` names a column of lists, or of
    strings that `label_separator` splits: a string, None where a cell is one label, or "auto" (space, comma,
    |, ; and `<a><b>`, found out only where the column leaves no doubt). `id` names a column of unique ids;
    without it the number of the row, from 0, is the id. `delimiter` is the CSV's, by default the one of `, ;
    tab |` that makes the header fit. `html`: clean all text columns (True), none (False), those named, or
    those that mostly hold HTML (None). Rows without a label are left out, unless `keep_unlabelled` wants them
    as documents that have none of the labels. Unknown columns, an undecided separator, another encoding and a
    table without a usable row are TagsteerErrors; malformed rows are counted in `skipped`, by line.
    """
    place = Path(path).expanduser()
    columns = [text] if isinstance(text, str) else list(text)
    if not columns or not all(isinstance(name, str) and name for name in columns):
        raise TagsteerError(f"text={text!r}: name one text column or a list of them")
    if label_separator == "":
        raise TagsteerError("label_separator='': say ' ' for white space, or None where a cell is one label")
    skip = SkipLog()
    wanted = list(dict.fromkeys([*columns, labels, *([id] if id is not None else [])]))
    records = open_records(place, wanted, skip, delimiter=delimiter, encoding=encoding)
    first = list(islice(records, _SAMPLE))
    cleaned = _html_columns(html, columns, first)
    texts, ids, cells = _collect(chain(first, records), columns, labels, id, cleaned, keep_unlabelled, skip)
    separator, matrix_builder = _labels(f"labels in column {labels!r} of {place}", cells, label_separator)
    names, matrix = matrix_builder.finish()
    told = f"text {' + '.join(columns)}, labels {labels}" + (f" split by {separator!r}" if separator else "")
    return Corpus(texts, ids, names, matrix, f"table {place} ({told})", skip.result())


def _html_columns(html: bool | Sequence[str] | None, columns: list[str], first: list[Record]) -> set[str]:
    """The text columns that go through html_to_text."""
    if isinstance(html, bool):
        return set(columns) if html else set()
    if html is not None:
        if unknown := [name for name in ([html] if isinstance(html, str) else html) if name not in columns]:
            raise TagsteerError(f"html={unknown[0]!r} is no text column: choose among {', '.join(columns)}")
        return {html} if isinstance(html, str) else set(html)
    cleaned = set()
    for name in columns:
        cells = [cell for record in first if isinstance(cell := record.cells.get(name), str) and cell.strip()]
        marked = sum(map(looks_like_html, cells))
        if marked * 2 > len(cells):
            cleaned.add(name)
            log.info(
                "column %r is cleaned as HTML: %d of the first %d cells have tags", name, marked, len(cells)
            )
    return cleaned


def _collect(
    records: Iterator[Record],
    columns: list[str],
    labels: str,
    id: str | None,
    cleaned: set[str],
    keep_unlabelled: bool,
    skip: SkipLog,
) -> tuple[Texts, Texts, list[Cell]]:
    """Texts, ids and raw label cells of the usable records."""
    texts, ids = TextBuilder(), TextBuilder()
    seen: set[str] = set()
    cells: list[Cell] = []
    kind: type | None = None  # str or list, as the first row with a label has it
    for record in records:
        pieces = [_text(record.cells.get(name), name in cleaned) for name in columns]
        if None in pieces:
            name = columns[pieces.index(None)]
            skip.add("text that is not text", f"{record.where} {name}={record.cells.get(name)!r:.60}")
            continue
        body = "\n\n".join(piece for piece in pieces if piece)
        cell = _label_cell(record.cells.get(labels))
        identifier = str(record.number) if id is None else _identifier(record.cells.get(id))
        if not body:
            skip.add("row without text", record.where)
        elif cell is None:
            skip.add("labels that are not text", f"{record.where} {labels}={record.cells.get(labels)!r:.60}")
        elif not cell and not keep_unlabelled:
            skip.add("row without a label", record.where)
        elif cell and kind is not None and not isinstance(cell, kind):
            skip.add("labels as a list in one row, as a string in another", record.where)
        elif identifier is None:
            skip.add("row without an id", f"{record.where} {id}={record.cells.get(id or '')!r:.60}")
        elif identifier in seen:
            skip.add("row whose id was there before", f"{record.where} {id}={identifier!r:.60}")
        elif not all(map(is_utf8, (body, identifier, *([cell] if isinstance(cell, str) else cell)))):
            skip.add("row that is not valid Unicode", record.where)
        else:
            kind = kind or (type(cell) if cell else None)
            if id is not None:
                seen.add(identifier)
            texts.append(body)
            ids.append(identifier)
            cells.append(cell)
    return texts.finish(), ids.finish(), cells


def _labels(where: str, cells: list[Cell], separator: str | None) -> tuple[str | None, LabelBuilder]:
    """The separator that was used (None for lists and whole cells) and the split cells."""
    builder = LabelBuilder()
    strings = [cell for cell in cells if isinstance(cell, str)]
    if separator == AUTO:
        separator = None
        if any(strings):
            separator, reason = detect_separator(strings, where)
            log.info("%s: %s", where, reason)
    for cell in cells:
        builder.append(split_labels(cell, separator) if isinstance(cell, str) else cell)
    return separator if any(strings) else None, builder


def _text(cell: Any, html: bool) -> str | None:
    """A cell as text: None (null) is empty, numbers are written out, anything else is not text (None)."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return html_to_text(cell) if html else plain_text(cell)
    return str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else None


def _label_cell(cell: Any) -> str | list[str] | None:
    """A cell of labels as a string, or as a list without empty names; None for anything that is neither."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int) and not isinstance(cell, bool):
        return [str(cell)]
    if isinstance(cell, list | tuple) and all(isinstance(name, str | int) for name in cell):
        return [stripped for name in cell if (stripped := " ".join(str(name).split()))]
    return None


def _identifier(cell: Any) -> str | None:
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        return None
    return str(cell).strip() or None
