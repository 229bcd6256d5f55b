"""What the page shows of each pair, as plain values: evidence with marked tokens, and texts beside each other.

Decides what is left out of the page, and counts it. Knows tables, nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tagsteer.evaluate.summary import TARGET
from tagsteer.report.read import RATINGS, Document, Evidence, RunRecord
from tagsteer.report.text import known, method_name, number, plural, strength, visible

if TYPE_CHECKING:
    import polars as pl

LEVELS = 5  # shades of a firing token


@dataclass(frozen=True)
class Limits:
    """How much the page holds; the CSV files hold everything."""

    pairs: int = 60
    """Pairs with a section of their own."""
    instructions: int = 4
    """Instructions whose texts are shown per pair: the first ones of the run, not picked."""
    strengths: int = 12
    text_characters: int = 3000
    """Of one text."""
    document_tokens: int = 400
    """Of one evidence document, around the most active token."""
    total_characters: int = 4_000_000
    """Of all generated texts on the page."""


@dataclass
class LeftOut:
    """What did not go into the page."""

    pairs: int = 0
    instructions: int = 0
    texts_cut: int = 0
    texts_dropped: int = 0
    documents_cut: int = 0
    strengths: int = 0
    characters: int = field(default=0, repr=False)

    def notes(self) -> list[str]:
        """One sentence for each kind of thing that is not on the page."""
        found = []
        if self.pairs:
            found.append(
                f"{plural(self.pairs, 'pair')} beyond the limit of the page have no section of their own."
            )
        if self.instructions:
            found.append(
                f"Texts of {plural(self.instructions, 'further instruction')} per pair are in generations.csv only."
            )
        if self.strengths:
            found.append(
                f"Texts at {plural(self.strengths, 'further strength')} are in generations.csv only."
            )
        if self.texts_dropped:
            found.append(
                f"{plural(self.texts_dropped, 'text')} did not fit the page and are in generations.csv only."
            )
        if self.texts_cut:
            found.append(
                f"{plural(self.texts_cut, 'long text')} are cut on the page, whole in generations.csv."
            )
        if self.documents_cut:
            found.append(
                f"{plural(self.documents_cut, 'long evidence document')} are cut around their most active token."
            )
        return found


@dataclass(frozen=True)
class Piece:
    """A stretch of a document; level 0 is text without activation, 1 to LEVELS the shade."""

    text: str
    level: int
    title: str
    peak: bool = False
    aside: bool = False
    """A special or first token, which is not counted."""

    @property
    def special(self) -> bool:
        """Whether it stands for no text, as <|im_start|>; by its looks, for the evidence does not say."""
        return self.aside and self.text.startswith("<") and self.text.endswith(">")


@dataclass(frozen=True)
class DocumentView:
    id: str
    has_label: bool
    frequency: float
    max_activation: float
    pieces: tuple[Piece, ...]
    before: int
    """Tokens cut off before and after."""
    after: int


@dataclass(frozen=True)
class Card:
    """One text with its ratings."""

    kind: str  # steered, unsteered, random, prompt or other: its colour
    title: str
    text: str
    cut: int
    overall: float | None
    ratings: tuple[tuple[str, float | None], ...]
    reason: str
    warning: str
    chosen: bool


@dataclass(frozen=True)
class InstructionView:
    text: str
    cards: tuple[Card, ...]
    """Unsteered, steered at the chosen strength, and the other baselines."""
    others: tuple[Card, ...]
    """Steered at the other strengths, ascending."""


@dataclass(frozen=True)
class PairView:
    number: int
    label: str
    row: Mapping[str, Any]
    n_active: int
    documents: tuple[DocumentView, ...]
    curve: tuple[Mapping[str, Any], ...]
    instructions: tuple[InstructionView, ...]


def pair_views(run: RunRecord, limits: Limits) -> tuple[list[PairView], LeftOut]:
    """The pairs that get a section, in order of selection, and what was left out."""
    import polars as pl

    left_out = LeftOut(pairs=max(0, len(run.pairs) - limits.pairs))
    views = []
    for i, row in enumerate(run.pairs.head(limits.pairs).iter_rows(named=True)):
        here = pl.col("pair") == row["pair"]
        curve = run.summary.curves.filter(here & (pl.col("method") == TARGET)).sort("strength")
        tuned = run.summary.pairs.filter(here)
        views.append(
            PairView(
                number=i + 1,
                label=visible(row["label_name"]),
                row=row,
                n_active=run.evidence[i].n_active,
                documents=_documents(run.evidence[i], limits, left_out),
                curve=tuple(curve.to_dicts()),
                instructions=_instructions(run.texts.filter(here), tuned, limits, left_out),
            )
        )
    return views, left_out


def _documents(evidence: Evidence, limits: Limits, left_out: LeftOut) -> tuple[DocumentView, ...]:
    highest = max((d.max_activation for d in evidence.documents), default=0.0)
    return tuple(document_view(d, highest, limits, left_out) for d in evidence.documents)


def document_view(document: Document, highest: float, limits: Limits, left_out: LeftOut) -> DocumentView:
    """The document as pieces: firing tokens one by one, shaded by their share of `highest`, the rest joined."""
    n = len(document.tokens)
    start = max(0, min(document.most_active - limits.document_tokens // 2, n - limits.document_tokens))
    stop = min(n, start + limits.document_tokens)
    left_out.documents_cut += stop - start < n
    pieces: list[Piece] = []
    for at in range(start, stop):
        text, value = visible(document.tokens[at]), document.activations[at]
        if not document.counted[at]:
            pieces.append(Piece(text, 0, "not counted", aside=True))
        elif value > 0:
            level = shade(value, highest)
            pieces.append(Piece(text, level, f"activation {number(value)}", peak=at == document.most_active))
        elif pieces and not pieces[-1].level and not pieces[-1].aside:
            pieces[-1] = Piece(pieces[-1].text + text, 0, "")
        else:
            pieces.append(Piece(text, 0, ""))
    return DocumentView(
        visible(document.document_id), document.has_label, document.frequency, document.max_activation,
        tuple(pieces), start, n - stop,
    )  # fmt: skip


def shade(value: float, highest: float) -> int:
    """The shade of an activation: equal steps up to the highest one, at least 1."""
    return max(1, min(LEVELS, -int(-LEVELS * value // highest))) if highest > 0 else 1


def _instructions(
    texts: pl.DataFrame, tuned: pl.DataFrame, limits: Limits, left_out: LeftOut
) -> tuple[InstructionView, ...]:
    import polars as pl

    ids = texts["instruction_id"].unique(maintain_order=True).to_list()
    left_out.instructions = max(left_out.instructions, len(ids) - limits.instructions)
    best: dict[Any, float] = {}
    for row in tuned.iter_rows(named=True):
        if known(row["strength"]):
            best.setdefault((row["method"], row["feature"]), row["strength"])
    views = []
    for number_ in ids[: limits.instructions]:
        rows = texts.filter(pl.col("instruction_id") == number_).to_dicts()
        at_best = [
            r for r in rows if r["strength"] is None or best.get((r["method"], r["feature"])) == r["strength"]
        ]
        # The floor first, then ours, then what else there is.
        at_best.sort(key=lambda r: {"unsteered": 0, TARGET: 1}.get(r["method"], 2))
        others = [r for r in rows if r["method"] == TARGET and r not in at_best]
        others.sort(key=lambda r: r["strength"])
        left_out.strengths = max(left_out.strengths, len(others) - limits.strengths)
        views.append(
            InstructionView(
                visible(rows[0]["instruction_text"]),
                _cards(at_best, limits, left_out, chosen=True),
                _cards(others[: limits.strengths], limits, left_out, chosen=False),
            )
        )
    return tuple(views)


def _cards(
    rows: Sequence[Mapping[str, Any]], limits: Limits, left_out: LeftOut, *, chosen: bool
) -> tuple[Card, ...]:
    cards = []
    for row in rows:
        text = visible(row["generation"])
        if left_out.characters + min(len(text), limits.text_characters) > limits.total_characters:
            left_out.texts_dropped += 1
            continue
        cut = max(0, len(text) - limits.text_characters)
        left_out.texts_cut += cut > 0
        left_out.characters += len(text) - cut
        cards.append(_card(row, text[: limits.text_characters], cut, chosen))
    return tuple(cards)


def _card(row: Mapping[str, Any], text: str, cut: int, chosen: bool) -> Card:
    method = row["method"]
    title = method_name(method)
    if method == "random":
        title += f" {row['feature']}"
    if row["strength"] is not None:
        title += f" at strength {strength(row['strength'])}"
    return Card(
        kind=method if method in ("steered", "unsteered", "random", "prompt") else "other",
        title=title,
        text=text,
        cut=cut,
        overall=row["overall"],
        ratings=tuple((name, row[name]) for name in RATINGS),
        reason=visible(row["reason"]) if row["reason"] else "",
        warning="the activations were not finite: the text is worthless"
        if row["finish"] == "non_finite"
        else "",
        chosen=chosen and method == TARGET,
    )
