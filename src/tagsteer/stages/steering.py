"""Stages `steer` and `judge`: every pair × strength × instruction as text, and every text with its ratings.

Both keep what costs as it arrives, under a key of everything that changes it, and only do what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsteer.judge.settings import CostCeilingReached
from tagsteer.stages.judges import choose_judge, close
from tagsteer.stages.methods import NP_RANDOM, methods_of, vectors_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    import torch

    from tagsteer.judge.types import Judge, JudgeItem
    from tagsteer.run import Run
    from tagsteer.steer.baselines.methods import Cell
    from tagsteer.steer.generate import WorkItem

log = logging.getLogger("tagsteer.run")


def steer_stage(run: Run) -> dict[str, Any]:
    """Generate what is missing, write each text as it is finished, then one table of all cells."""
    import polars as pl

    from tagsteer.steer.generate import Engine
    from tagsteer.steer.instructions import load_instructions

    s = run.config.steer
    available = load_instructions(s.instructions_file)
    instructions = available.sample(s.instructions, run.config.seed)
    methods = methods_of(run)
    cells = [cell for method in methods for cell in method.cells(s.strengths, instructions)]
    places = {instruction.id: place for place, instruction in enumerate(instructions)}
    vectors = vectors_of(methods)
    digests = {cell.item.key: _digest(cell.item, run, vectors) for cell in cells}
    log_file = TextLog(run.path("steer") / "texts.jsonl")
    missing = {c.item.key: c.item for c in cells if digests[c.item.key] not in log_file}
    if missing:
        if len(missing) < len(digests):
            log.info("%d of %d texts are there already", len(digests) - len(missing), len(digests))
        engine = Engine(
            run.model,
            run.sae,
            layer=run.config.sae.layer,
            vectors=vectors,
            batch_size=s.batch_size,
            seed=run.config.seed,
        )
        with log_file.appending() as write:
            for found in engine.run_units(_units([c.item for c in cells], missing, run)):
                if found.key not in missing:
                    continue
                write({
                    "digest": digests[found.key], "text": found.text, "finish": found.finish,
                    "n_tokens": len(found.token_ids),
                })  # fmt: skip
    rows = [_cell_row(cell, places, log_file[digests[cell.item.key]]) for cell in cells]
    table = pl.DataFrame(rows, infer_schema_length=None)
    table = _with_pair_numbers(table, pl.read_parquet(run.path("select") / "pairs.parquet"))
    table.write_parquet(run.path("steer") / "generations.parquet")
    provenance = {m.name: m.provenance for m in methods}
    note = {"methods": provenance, "instructions": available.source, "digest": available.digest}
    (run.path("steer") / "methods.json").write_text(json.dumps(note, indent=1), "utf-8")
    broken = int((table["finish"] == "non_finite").sum())
    return {"texts": len(digests), "cells": len(cells), "methods": len(methods), "non_finite": broken}


def _units(
    items: Sequence[WorkItem], missing: Mapping[Any, WorkItem], run: Run
) -> Sequence[Sequence[WorkItem]]:
    """What the engine is given: in float32 the missing items; in coarser types, whose rounding depends on a batch's
    composition, every fixed unit of the run that lacks an item, so that an interruption changes no text."""
    import torch

    from tagsteer.steer.generate import work_units

    if run.model.dtype in (torch.float32, torch.float64):
        return [list(missing.values())]
    distinct = {item.key: item for item in items}
    return [unit for unit in work_units(distinct.values()) if any(item.key in missing for item in unit)]


def _digest(item: WorkItem, run: Run, vectors: Mapping[str, torch.Tensor]) -> str:
    """Everything that changes a text: model, SAE, prompt, steering with its vectors, sampling, seed."""
    parts = [
        *(run.model.name, str(run.model.dtype), run.sae_digest, run.config.seed, list(item.prompt_ids)),
        *(item.intervention.to_dict(), item.max_new_tokens, repr(item.sampling), repr(item.key)),
    ]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16)
    for name in item.intervention.features:
        if isinstance(name, str):
            digest.update(vectors[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cell_row(cell: Cell, places: dict[int, int], found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table; `instruction_id` is the place in drawn order, as AxBench counts."""
    terms = cell.item.intervention.terms
    return {
        "method": cell.method, "label": cell.pair.label, "strength": cell.strength,
        "feature": cell.pair.feature if isinstance(cell.pair.feature, int) else None,
        "value": terms[0].value if terms else None,
        "instruction_id": places[cell.instruction.id], "instruction_row": cell.instruction.id,
        "instruction": cell.instruction.text, "generation": found["text"], "finish": found["finish"],
        "n_tokens": found["n_tokens"], "digest": found["digest"],
    }  # fmt: skip


def _with_pair_numbers(table: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Give each cell the number of its pair; a baseline's cells stand once under every pair of their label.

    Features under Neuronpedia's labels are pairs of their own, numbered after ours.
    """
    import polars as pl

    named = table.filter(pl.col("method") == NP_RANDOM)
    numbers = pairs.select("pair", label="label_name", pair_feature="feature")
    joined = table.filter(pl.col("method") != NP_RANDOM).join(
        numbers, on="label", how="inner", maintain_order="left"
    )
    ours = joined.filter(
        (pl.col("method") != "steered") | (pl.col("feature") == pl.col("pair_feature"))
    ).drop("pair_feature")
    if not len(named):
        return ours
    own = named.select("label", "feature").unique(maintain_order=True)
    first = int(pairs["pair"].max()) + 1  # type: ignore[arg-type]
    own = own.with_columns(pl.int_range(first, first + len(own)).cast(ours.schema["pair"]).alias("pair"))
    theirs = named.join(own, on=["label", "feature"], how="left", maintain_order="left")
    return pl.concat([ours, theirs.select(ours.columns)])


class TextLog:
    """A JSON line per finished text; a line cut by a kill is dropped, later lines win."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._texts: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                self._texts[entry["digest"]] = entry

    def __contains__(self, digest: str) -> bool:
        return digest in self._texts

    def __getitem__(self, digest: str) -> dict[str, Any]:
        return self._texts[digest]

    def get(self, digest: str, default: dict[str, Any]) -> dict[str, Any]:
        return self._texts.get(digest, default)

    def appending(self) -> _Appending:
        return _Appending(self)

    def add(self, entry: dict[str, Any]) -> None:
        self._texts[entry["digest"]] = entry


class _Appending:
    """Context in which entries are written to the log, each flushed before the next."""

    def __init__(self, log_file: TextLog) -> None:
        self._log = log_file

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self._file = self._log.path.open("ab")
        if self._file.tell():
            self._file.write(b"\n")  # ends a line that a kill may have cut

        def write(entry: dict[str, Any]) -> None:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            self._log.add(entry)

        return write

    def __exit__(self, *_: object) -> None:
        self._file.close()


def judge_stage(run: Run, judge: Judge | None = None) -> dict[str, Any]:
    """Rate every distinct (label, instruction, text), then one table of all cells with their ratings."""
    import polars as pl

    from tagsteer.judge.types import PARTS

    folder = run.path("judge")
    # Ratings that were missing may come this time: what was made from the earlier ones is out of date.
    for stage in ("judge", "evaluate", "report"):
        (run.folder / stage / "stage.json").unlink(missing_ok=True)
    cells = pl.read_parquet(run.path("steer") / "generations.parquet")
    judge = judge or choose_judge(run, folder)
    items = judge_items(cells.iter_rows(named=True))
    described = judge.describe()
    log_file = TextLog(folder / "ratings.jsonl")
    keys = {
        item.key: hashlib.blake2b(f"{described}\0{item.key}".encode(), digest_size=16).hexdigest()
        for item in items
    }
    missing = [item for item in items if keys[item.key] not in log_file]
    ceiling: CostCeilingReached | None = None
    with log_file.appending() as write:
        try:
            for key, rating in judge.rate(missing):
                values = {part: getattr(rating, part) for part in PARTS}
                entry = {"digest": keys[key], **values, "reasons": rating.reasons}
                # A missing part may come with a later run; only whole ratings are kept.
                (write if rating.complete else log_file.add)(entry)
        except CostCeilingReached as error:
            ceiling = error
        finally:
            close(judge)
    why = "the judge gave no rating" if ceiling is None else "not asked: the ceiling on cost was reached"
    unknown: dict[str, Any] = {**dict.fromkeys(PARTS), "reasons": {"all": why}}
    rows = []
    for cell in cells.iter_rows(named=True):
        found = log_file.get(keys[item_key(cell)], unknown)
        rows.append(
            {**{part: found[part] for part in PARTS}, "reason": "; ".join(found["reasons"].values()) or None}
        )
    schema = {**dict.fromkeys(PARTS, pl.Float64), "reason": pl.String}
    # "instruction" is the wording among the cells and a rating among the ratings.
    cells = cells.rename({"instruction": "instruction_text"})
    ratings = pl.concat([cells, pl.DataFrame(rows, schema=schema)], how="horizontal")
    ratings.write_parquet(folder / "ratings.parquet")
    (folder / "judge.json").write_text(
        json.dumps({"name": judge.name, "version": judge.version, "description": described}, indent=1),
        "utf-8",
    )
    if ceiling is not None:
        raise ceiling
    incomplete = ratings.filter(pl.any_horizontal(pl.col(list(PARTS)).is_null())).height
    return {"judge": described, "texts": len(items), "missing_ratings": incomplete}


def item_key(cell: dict[str, Any]) -> str:
    """Identity of a judgement: label, instruction and text, whatever method they came from."""
    parts = json.dumps([cell["label"], cell["instruction"], cell["generation"]])
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def judge_items(cells: Iterable[dict[str, Any]]) -> list[JudgeItem]:
    """One JudgeItem per distinct text, in the order of the cells."""
    from tagsteer.judge.types import JudgeItem

    found: dict[str, JudgeItem] = {}
    for cell in cells:
        key = item_key(cell)
        found.setdefault(key, JudgeItem(key, cell["label"], cell["instruction"], cell["generation"]))
    return list(found.values())
