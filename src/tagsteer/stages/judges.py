"""Which judge rates a run, what it would cost, and how far the offline judge agrees with an LLM on the run's texts.

Knows configurations and the files of stages; how a rating is made is the judge room's business.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from tagsteer.config import JudgeConfig
    from tagsteer.judge.calibration import Calibration
    from tagsteer.judge.types import Judge, JudgeItem
    from tagsteer.run import Run

log = logging.getLogger("tagsteer.run")

STORE = "judgements.sqlite"
"""Every answer of an LLM judge, in judge/."""


def judge_kind(config: JudgeConfig) -> tuple[Literal["offline", "server", "local"], str]:
    """The kind of judge meant, and why; `auto` is the server only if its key is in the environment."""
    if config.kind != "auto":
        return config.kind, f"judge.kind = {config.kind!r}"
    try:
        config.server.api_key()
    except TagsteerError as reason:
        return "offline", str(reason)
    return "server", "its key is in the environment"


def choose_judge(run: Run, folder: Path) -> Judge:
    """The judge of the configuration."""
    kind, why = judge_kind(run.config.judge)
    log.info("judge: %s (%s)", kind, why)
    return _offline(run) if kind == "offline" else llm_judge(run, folder, kind)


def llm_judge(run: Run, folder: Path, kind: Literal["server", "local"]) -> Judge:
    """A judge that is asked by the rubric; its answers are stored in `folder`. A missing key is an error here."""
    from tagsteer.judge.store import JudgementStore

    config = run.config.judge
    if kind == "server":
        from tagsteer.judge.clients import OpenAIJudge

        config.server.api_key()
        return OpenAIJudge(config.server, JudgementStore(folder / STORE))
    from tagsteer.judge.local import LocalJudge
    from tagsteer.lm.model import load_model

    local = config.local
    if local is None:
        raise TagsteerError(
            'the local judge needs a model: set judge.local = {model = "..."}, or give --judge-model'
        )
    same = local.model == run.config.model.name and local.dtype == run.config.model.dtype
    model = run.model if same else load_model(local.model, run.config.model.device, local.dtype)
    return LocalJudge(
        model,
        JudgementStore(folder / STORE),
        few_shot=config.few_shot,
        temperature=local.temperature,
        max_new_tokens=local.max_new_tokens,
        batch_size=local.batch_size,
        asks=config.asks,
        seed=run.config.seed,
    )


def close(judge: Judge) -> None:
    """Close the store of a judge that has one."""
    store = getattr(judge, "store", None)
    if store is not None:
        store.close()


def _offline(run: Run) -> Judge:
    """The offline judge on the run's device: the shipped weights, or the configured ones."""
    from tagsteer.judge.learned import LearnedJudge
    from tagsteer.lm.model import choose_device

    config = run.config.judge
    device = choose_device(run.config.model.device).name
    return LearnedJudge.load(config.weights, device=device, perplexity=config.perplexity)


def estimate_lines(run: Run) -> list[str]:
    """What judging the run's texts would take, in words; nothing is sent and nothing is written."""
    from tagsteer.judge.settings import estimate
    from tagsteer.judge.store import JudgementStore

    items = items_of(run)
    kind, why = judge_kind(run.config.judge)
    settings = run.config.judge.server
    path = run.folder / "judge" / STORE
    store = JudgementStore(path) if path.exists() else None
    try:
        found = estimate(items, settings, store)
    finally:
        if store is not None:
            store.close()
    if kind == "server":
        lines = [str(found)]
        if settings.max_cost is not None:
            lines.append(f"max_cost = {settings.max_cost:g} bounds what is spent through {path}")
        return lines
    if kind == "local":
        assert run.config.judge.local is not None
        return [
            f"{found.texts:,} texts: at most {found.calls + found.stored:,} questions to "
            f"{run.config.judge.local.model} on this machine, no cost; answers stored in {path} are not asked again"
        ]
    return [
        f"{found.texts:,} texts by the offline judge: nothing is sent, no cost ({why})",
        f"by the server it would be: {found}",
    ]


def items_of(run: Run) -> list[JudgeItem]:
    """The distinct texts of the stage `steer`; TagsteerError where it was not done with these settings."""
    import polars as pl

    from tagsteer.stages.steering import judge_items

    if run.done("steer") is None:
        raise TagsteerError(
            f"{run.folder} has no texts of its present settings to judge: run `tagsteer steer` on it first"
        )
    cells = pl.read_parquet(run.path("steer") / "generations.parquet")
    return judge_items(cells.iter_rows(named=True))


def calibrate_run(run: Run, n: int, kind: Literal["server", "local"], correct: bool) -> Calibration:
    """Let an LLM judge rate `n` of the texts that the offline judge rated; written to judge/calibration.json."""
    import polars as pl

    from tagsteer.judge.calibration import calibrate_with
    from tagsteer.judge.types import PARTS, Rating
    from tagsteer.stages.steering import item_key

    folder = run.path("judge")
    noted = json.loads((folder / "judge.json").read_text("utf-8"))
    if not noted["name"].startswith("offline"):
        raise TagsteerError(
            f"this run is judged by {noted['name']}: calibration is of the offline judge, so run "
            "`tagsteer judge RUN --judge offline` first"
        )
    items = items_of(run)
    offline: dict[str, Rating] = {}
    groups: dict[str, str] = {}
    table = pl.read_parquet(folder / "ratings.parquet")
    for row in table.iter_rows(named=True):
        texts = {name: row[name] for name in ("label", "generation")}
        key = item_key({**texts, "instruction": row["instruction_text"]})
        reasons = {part: row["reason"] or "" for part in PARTS if row[part] is None}
        offline[key] = Rating(
            **{part: row[part] for part in PARTS}, reasons=reasons, judge=noted["description"]
        )
        groups.setdefault(key, row["method"])
    judge = llm_judge(run, folder, kind)
    try:
        found = calibrate_with(judge, items, offline, n, seed=run.config.seed, groups=groups)
    finally:
        close(judge)
    note = {
        "offline": found.offline, "llm": judge.describe(), "texts_judged": n, "texts": len(items),
        "incomplete": found.missing, "seed": run.config.seed, "agreement": found.agreement,
        "corrected": _corrected(found) if correct else None,
    }  # fmt: skip
    text = json.dumps(_finite(note), indent=1, allow_nan=False)
    (folder / "calibration.json").write_text(text + "\n", "utf-8")
    return found


def _corrected(found: Calibration) -> dict[str, Any]:
    return {
        group: {part: asdict(value) for part, value in parts.items()}
        for group, parts in found.corrected.items()
    }


def _finite(value: Any) -> Any:
    """Plain JSON values, what is not a number as null."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
