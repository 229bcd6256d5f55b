"""Reads a run folder into one typed object; a stage that is not there is an error naming its command.

Knows which files the stages write, nothing of models, pages or figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.summary import TARGET, Summary, load_summary

if TYPE_CHECKING:
    import polars as pl

RATINGS = ("concept", "instruction", "fluency")


@dataclass(frozen=True)
class Document:
    """One document of a pair's evidence; the fields of label.evidence.EvidenceDocument that a page needs."""

    document_id: str
    has_label: bool
    frequency: float
    max_activation: float
    most_active: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    counted: tuple[bool, ...]


@dataclass(frozen=True)
class Evidence:
    """What a pair rests on: documents, most active first, and how many there are in all."""

    feature: int
    label: str
    documents: tuple[Document, ...]
    n_active: int


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run as the report needs it."""

    folder: Path
    config: Mapping[str, Any]
    corpus: Mapping[str, Any]
    """corpus.json: source, documents, labels, skipped."""
    pairs: pl.DataFrame
    """select/pairs.parquet, joined with the steered rows of the evaluation (see `steered_pairs`)."""
    filters: pl.DataFrame
    evidence: Sequence[Evidence]
    """In the order of `pairs`."""
    methods: Mapping[str, Any]
    """steer/methods.json: provenance of each method, source of the instructions."""
    texts: pl.DataFrame
    """A row per generation: method, pair, label, feature, strength, value, instruction_id, instruction_text,
    generation, finish, n_tokens, the three ratings, overall, reason."""
    judge: Mapping[str, str]
    summary: Summary
    stages: Mapping[str, Mapping[str, Any]]
    """stage.json of every stage that has one."""

    @property
    def offline(self) -> bool:
        """Whether the ratings come from the judge that needs no key."""
        return self.judge["name"].startswith("offline")


def read_run(folder: str | Path) -> RunRecord:
    """Read everything the report shows; TagsteerError where a stage is missing or its files are broken."""
    import polars as pl

    path = Path(folder)
    if not path.is_dir():
        raise TagsteerError(f"no run folder at {path}: give the folder that `tagsteer run` made")
    texts = _texts(path)
    pairs, summary = _pairs(path)
    evidence = [_evidence(entry, path) for entry in _json(path, "select", "evidence.json")]
    if len(evidence) != len(pairs):
        raise TagsteerError(
            f"{path} has evidence for {len(evidence)} pairs and {len(pairs)} pairs: run `tagsteer select` again"
        )
    notes = {
        note.parent.name: json.loads(note.read_text("utf-8")) for note in sorted(path.glob("*/stage.json"))
    }
    return RunRecord(
        folder=path,
        config=_config(path),
        corpus=_json(path, "corpus", "corpus.json"),
        pairs=pairs,
        filters=pl.read_parquet(_file(path, "select", "filters.parquet")),
        evidence=evidence,
        methods=_json(path, "steer", "methods.json"),
        texts=texts,
        judge=_json(path, "judge", "judge.json"),
        summary=summary,
        stages=notes,
    )


def steered_pairs(folder: str | Path) -> pl.DataFrame:
    """The selected pairs with what steering them gave: a row per pair, in order of selection."""
    return _pairs(Path(folder))[0]


def _pairs(path: Path) -> tuple[pl.DataFrame, Summary]:
    import polars as pl

    pairs = pl.read_parquet(_file(path, "select", "pairs.parquet"))
    _file(path, "evaluate", "summary.json")
    summary = load_summary(path / "evaluate")
    columns = [
        *("pair", "strength", "strength_share", "overall", "low", "high", *RATINGS),
        *("unsteered_overall", "random_overall", "prompt_overall", "n_instructions", "n_missing", "reason"),
    ]
    scores = summary.pairs.filter(pl.col("method") == TARGET).select(columns)
    scores = scores.with_columns(pl.col("pair").cast(pairs["pair"].dtype))
    return pairs.join(scores, on="pair", how="left", maintain_order="left"), summary


def _texts(path: Path) -> pl.DataFrame:
    """The ratings with the text of the instruction, whose name a rating has too, and the overall score."""
    import polars as pl

    from tagsteer.evaluate.scores import overall_score

    ratings = pl.read_parquet(_file(path, "judge", "ratings.parquet"))
    if "instruction_text" not in ratings.columns:
        generations = pl.read_parquet(_file(path, "steer", "generations.parquet"))
        if generations["digest"].to_list() != ratings["digest"].to_list():
            raise TagsteerError(
                f"the ratings in {path} are of other texts than those there: run `tagsteer judge` again"
            )
        ratings = ratings.with_columns(generations["instruction"].alias("instruction_text"))
    scores = overall_score(*(ratings[name].cast(pl.Float64).to_numpy() for name in RATINGS))
    return ratings.with_columns(pl.Series("overall", scores, dtype=pl.Float64).fill_nan(None))


def _evidence(entry: Mapping[str, Any], path: Path) -> Evidence:
    try:
        documents = [
            Document(
                document_id=str(d["document_id"]),
                has_label=bool(d["has_label"]),
                frequency=float(d["frequency"]),
                max_activation=float(d["max_activation"]),
                most_active=int(d["most_active"]),
                tokens=tuple(map(str, d["tokens"])),
                activations=tuple(map(float, d["activations"])),
                counted=tuple(map(bool, d["counted"])),
            )
            for d in entry["documents"]
        ]
        return Evidence(int(entry["feature"]), str(entry["label"]), tuple(documents), int(entry["n_active"]))
    except (KeyError, TypeError, ValueError) as error:
        raise TagsteerError(
            f"{path / 'select' / 'evidence.json'} is not readable ({error!r}): run `tagsteer select` again"
        ) from None


def _config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise TagsteerError(
            f"{path} is no run folder (no config.json): give the folder that `tagsteer run` made"
        )
    found: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    return found


def _file(path: Path, stage: str, name: str) -> Path:
    """A file of a stage, or an error naming the command that makes it."""
    if not (path / stage / name).is_file():
        raise TagsteerError(f"{path} has no {stage}/{name}: run `tagsteer {stage}` on it first")
    return path / stage / name


def _json(path: Path, stage: str, name: str) -> Any:
    try:
        return json.loads(_file(path, stage, name).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TagsteerError(
            f"{path / stage / name} is not valid JSON ({error}): run `tagsteer {stage}` again"
        ) from None
