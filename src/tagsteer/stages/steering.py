"""Stages `steer` and `judge`: every pair × strength × instruction as text, and every text with its ratings.

Both keep what costs as it arrives, under a key of everything that changes it, and only do what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from tagsteer.judge.types import Judge, JudgeItem
    from tagsteer.run import Run
    from tagsteer.steer.baselines.methods import Cell, Method
    from tagsteer.steer.generate import WorkItem

log = logging.getLogger("tagsteer.run")


def methods_of(run: Run) -> list[Method]:
    """The pairs steered, and what they are held against."""
    import numpy as np
    import polars as pl

    from tagsteer.label.frequencies import Frequencies
    from tagsteer.steer.baselines.methods import Pair, Settings, feature_pairs
    from tagsteer.steer.baselines.prompt_steering import prompt_steering
    from tagsteer.steer.baselines.random_features import random_features
    from tagsteer.steer.baselines.unsteered import unsteered
    from tagsteer.steer.prompting import SteeringPrompts
    from tagsteer.steer.sampling import Sampling

    s = run.config.steer
    pairs = pl.read_parquet(run.path("select") / "pairs.parquet")
    frequencies = Frequencies.load(run.path("extract"))
    ids = np.arange(run.sae.d_sae) if run.sae.features is None else run.sae.features.cpu().numpy()
    known = np.isfinite(frequencies.robust_max)
    maxima = {int(f): float(m) for f, m in zip(ids[known], frequencies.robust_max[known], strict=True)}
    settings = Settings(
        model=run.model,
        kind=s.intervention,
        unit=s.unit,
        max_activations=maxima,
        max_new_tokens=s.max_new_tokens,
        sampling=Sampling(temperature=s.temperature, top_k=s.top_k),
    )
    chosen = list(zip(pairs["label_name"].to_list(), pairs["feature"].to_list(), strict=True))
    labels = list(dict.fromkeys(label for label, _ in chosen))
    steered = feature_pairs(
        "steered", [Pair(*pair) for pair in chosen], settings, "selected by calibrated F1"
    )
    methods = [steered, unsteered(labels, settings)]
    if s.random_features:
        # As alive as the chosen ones: features that fire on too little have no usable maximum.
        enough = [
            int(f)
            for f, n in zip(ids, frequencies.n_docs_active, strict=True)
            if n >= 10 and int(f) in maxima
        ]
        taken = [feature for _, feature in chosen]
        methods.append(random_features(labels, enough, settings, seed=run.config.seed, taken=taken))
    if s.prompt_baseline:
        methods.append(prompt_steering(labels, settings, SteeringPrompts(run.path("steer") / "prompts.json")))
    return methods


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
    digests = {cell.item.key: _digest(cell.item, run) for cell in cells}
    log_file = TextLog(run.path("steer") / "texts.jsonl")
    missing = {c.item.key: c.item for c in cells if digests[c.item.key] not in log_file}
    if missing:
        if len(missing) < len(digests):
            log.info("%d of %d texts are there already", len(digests) - len(missing), len(digests))
        engine = Engine(
            run.model, run.sae, layer=run.config.sae.layer, batch_size=s.batch_size, seed=run.config.seed
        )
        with log_file.appending() as write:
            for found in engine.run(list(missing.values())):
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


def _digest(item: WorkItem, run: Run) -> str:
    """Everything that changes a text: model, SAE, prompt, steering, sampling, seed."""
    parts = [
        *(run.model.name, str(run.model.dtype), run.sae_digest, run.config.seed, list(item.prompt_ids)),
        *(item.intervention.to_dict(), item.max_new_tokens, repr(item.sampling), repr(item.key)),
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _cell_row(cell: Cell, places: dict[int, int], found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table; `instruction_id` is the place in drawn order, as AxBench counts."""
    terms = cell.item.intervention.terms
    return {
        "method": cell.method, "label": cell.pair.label, "feature": cell.pair.feature, "strength": cell.strength,
        "value": terms[0].value if terms else None, "instruction_id": places[cell.instruction.id], "instruction_row": cell.instruction.id,
        "instruction": cell.instruction.text, "generation": found["text"], "finish": found["finish"],
        "n_tokens": found["n_tokens"], "digest": found["digest"],
    }  # fmt: skip


def _with_pair_numbers(table: Any, pairs: Any) -> Any:
    """Give each cell the number of its pair; a baseline's cells stand once under every pair of their label."""
    import polars as pl

    numbers = pairs.select("pair", label="label_name", pair_feature="feature")
    joined = table.join(numbers, on="label", how="inner", maintain_order="left")
    return joined.filter(
        (pl.col("method") != "steered") | (pl.col("feature") == pl.col("pair_feature"))
    ).drop("pair_feature")


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


def choose_judge(run: Run, folder: Path) -> Judge:
    """The judge of the configuration; `auto` asks the server only if its key is in the environment."""
    from tagsteer.judge.clients import OpenAIJudge
    from tagsteer.judge.offline import offline_judge
    from tagsteer.judge.settings import JudgeSettings
    from tagsteer.judge.store import JudgementStore

    config = run.config.judge
    settings = JudgeSettings(**config.model_dump(exclude={"kind", "perplexity"}))
    kind = config.kind
    if kind == "auto":
        try:
            settings.api_key()
            kind = "server"
        except TagsteerError as reason:
            log.info("offline judge: %s", reason)
            kind = "offline"
    if kind == "offline":
        return offline_judge("auto", run.model if config.perplexity else None, device=run.model.device.type)
    settings.api_key()
    return OpenAIJudge(settings, JudgementStore(folder / "judgements.sqlite"))


def judge_stage(run: Run, judge: Judge | None = None) -> dict[str, Any]:
    """Rate every distinct (label, instruction, text), then one table of all cells with their ratings."""
    import polars as pl

    from tagsteer.judge.types import PARTS

    folder = run.path("judge")
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
    with log_file.appending() as write:
        for key, rating in judge.rate(missing):
            values = {part: getattr(rating, part) for part in PARTS}
            entry = {"digest": keys[key], **values, "reasons": rating.reasons}
            # A missing part may come with a later run; only whole ratings are kept.
            (write if rating.complete else log_file.add)(entry)
    unknown: dict[str, Any] = {**dict.fromkeys(PARTS), "reasons": {"all": "the judge gave no rating"}}
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
