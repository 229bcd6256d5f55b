"""How a cell of several labels is split, and how that is found out from the whole column, or refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tagsteer.corpus.stackexchange import parse_tags
from tagsteer.errors import TagsteerError

AUTO = "auto"
ANGLES = "<>"  # `<a><b>`, as in dumps of Stack Exchange
_NAMED = {",": "comma", "|": "|", ";": ";", "\t": "tab"}
_TAG_LIKE = re.compile(r"[^\sA-Z]+")


def split_labels(cell: str, separator: str | None) -> list[str]:
    """The labels of a cell, trimmed, without empty ones; None takes the whole cell as one label.

    >>> split_labels("bread, rye ,", ","), split_labels("<c#><.net>", "<>"), split_labels("ice cream", None)
    (['bread', 'rye'], ['c#', '.net'], ['ice cream'])
    """
    if separator is None:
        parts = [cell]
    elif separator == ANGLES:
        parts = re.findall(r"[^<>]+", cell)
    elif separator.isspace() or not separator:
        parts = cell.split()
    else:
        parts = cell.split(separator)
    return [name for part in parts if (name := " ".join(part.split()))]


def detect_separator(cells: Sequence[str], where: str) -> tuple[str | None, str]:
    """The separator of a column and the reason; TagsteerError where two readings are possible.

    Comma, |, ; or tab must be the only one in the column. A space counts only if words behave like tags:
    lower-case words that come back in other combinations, or words in more combinations than there are words,
    some of them also alone. (A column of "Sports News", "World News" does neither: there a cell may be one
    label.)
    """
    cells = [cell.strip() for cell in cells if cell.strip()]
    if cells and all(cell.startswith("<") and parse_tags(cell) for cell in cells):
        return ANGLES, "every cell has the form <a><b>"
    found = [mark for mark in _NAMED if any(mark in cell for cell in cells)]
    if len(found) > 1:
        counts = ", ".join(
            f"{_NAMED[mark]} in {sum(mark in cell for cell in cells):,} cells" for mark in found
        )
        raise _undecided(where, counts, cells)
    if found:
        mark = found[0]
        return (
            mark,
            f"split by {_NAMED[mark]}, the only separator in {sum(mark in cell for cell in cells):,} cells",
        )
    spaced = [cell for cell in cells if len(cell.split()) > 1]
    if not spaced:
        return None, "no cell has a separator, each is one label"
    combinations = {tuple(cell.split()) for cell in cells}
    words = {word for combination in combinations for word in combination}
    uses = sum(len(set(combination)) for combination in combinations)
    tag_like = all(_TAG_LIKE.fullmatch(word) for word in words)
    alone = {cell for cell in cells if len(cell.split()) == 1}
    beside = {word for cell in spaced for word in cell.split()}
    if len(combinations) > len(words) and (tag_like or alone & beside):
        return " ", f"split by space: {len(words):,} words come in {len(combinations):,} combinations"
    if tag_like and uses > len(words):
        return " ", "split by space: lower-case words come back in other combinations"
    raise _undecided(
        where, f"{len(spaced):,} cells with spaces, which may stand between labels or inside one", cells
    )


def _undecided(where: str, why: str, cells: Sequence[str]) -> TagsteerError:
    example = max(cells[:100], key=len)
    return TagsteerError(
        f"{where}: cannot tell how labels are separated ({why}; for example {example!r:.80}): "
        "say label_separator=',' (or ' ', '|', ';'), or None where a cell is one label"
    )
