"""A run: the stages in order, each done once for the settings that change it, resumable wherever it stopped.

A stage is done when its folder holds stage.json with the fingerprint of its own settings and of all earlier
stages. Another fingerprint means that settings changed: the stage runs again, and what it keeps by content
(generations, judgements, shards) is used again where it still fits.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tagsteer
from tagsteer.config import RunConfig, stored_config
from tagsteer.errors import TagsteerError, one_of
from tagsteer.stages.data import corpus_stage, extract_stage
from tagsteer.stages.naming import score_stage, select_stage
from tagsteer.stages.results import evaluate_stage, report_stage
from tagsteer.stages.steering import judge_stage, steer_stage

if TYPE_CHECKING:
    from tagsteer.corpus.store import Corpus
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.run")


@dataclass(frozen=True)
class Stage:
    """A step of a run: what it does, and the sections of the configuration that change its result."""

    name: str
    sections: tuple[str, ...]
    work: Callable[[Run], dict[str, Any]]
    says: str
    """One sentence for the terminal, made from what `work` returned."""


STAGES = (
    Stage("corpus", ("corpus", "seed"), corpus_stage, "{documents:,} documents, {labels:,} labels from {source}"),
    Stage(
        "extract", ("model", "sae", "extract"), extract_stage,
        "{tokens:,} tokens, {features_fired:,} features fired, L0 {l0:.1f}",
    ),
    Stage("score", ("score",), score_stage, "{labels:,} labels, {matches:,} matches; best: {best}"),
    Stage("select", ("select",), select_stage, "{pairs} pairs of {labels} labels ({features_scored} output scores)"),
    Stage("steer", ("steer",), steer_stage, "{texts:,} texts by {methods} methods ({non_finite} not finite)"),
    Stage("judge", ("judge",), judge_stage, "{texts:,} texts rated by {judge}; {missing_ratings} incomplete"),
    Stage("evaluate", ("evaluate",), evaluate_stage, "{pairs} pairs by the protocol {protocol}; {missing} missing"),
    Stage("report", (), report_stage, "{page}"),
)  # fmt: skip
STAGE_NAMES = [stage.name for stage in STAGES]


class Run:
    """A configuration and its folder; the model and the SAE are loaded when a stage first needs them."""

    def __init__(self, config: RunConfig, folder: Path | str) -> None:
        self.config = config
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """The run that a folder was made by."""
        path = Path(folder) / "config.json"
        if not path.exists():
            raise TagsteerError(
                f"{folder} is no run folder (no config.json): give the folder that `tagsteer run` made"
            )
        return cls(stored_config(path), folder)

    def path(self, stage: str) -> Path:
        """The folder of a stage, made if absent."""
        path = self.folder / stage
        path.mkdir(parents=True, exist_ok=True)
        return path

    @cached_property
    def model(self) -> LanguageModel:
        from tagsteer.lm.model import load_model

        m = self.config.model
        return load_model(m.name, m.device, m.dtype, m.device_map)

    @cached_property
    def sae(self) -> SAE:
        from tagsteer.sae.loading import load_sae

        layer = self.config.sae.layer
        index = None if layer is None else self.model.layer_index(layer)
        sae = load_sae(self.config.sae.name, layer=index, device=str(self.model.device))
        if sae.d_model != self.model.d_model:
            raise TagsteerError(
                f"SAE {self.config.sae.name!r} has d_model {sae.d_model}, {self.model.name} has {self.model.d_model}: "
                "give an SAE that was trained on this model"
            )
        log.info("%s", sae.describe())
        return sae

    @cached_property
    def sae_digest(self) -> str:
        """Hash of the SAE's weights, part of the key of each generation."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.sae.W_enc, self.sae.b_enc, self.sae.W_dec, self.sae.threshold):
            if tensor is not None:
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def corpus(self) -> Corpus:
        from tagsteer.corpus.store import Corpus

        return Corpus.load(self.path("corpus"))

    @property
    def scoring_device(self) -> str | None:
        """CUDA where the model is there, else compiled loops on the CPU."""
        return "cuda" if self.model.device.type == "cuda" else None

    def fingerprint(self, name: str) -> str:
        """Hash of everything that changes the stage's result: its sections, those before it, the version."""
        digest = hashlib.blake2b(tagsteer.__version__.encode(), digest_size=16)
        data = self.config.model_dump(mode="json")
        for stage in STAGES[: STAGE_NAMES.index(name) + 1]:
            digest.update(json.dumps([data[section] for section in stage.sections]).encode())
        for path in (self.config.corpus.path if hasattr(self.config.corpus, "path") else None,):
            if path is not None and path.is_file():
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def done(self, name: str) -> dict[str, Any] | None:
        """What a finished stage noted, if it was made with these settings."""
        note = self.folder / name / "stage.json"
        if not note.exists():
            return None
        found = json.loads(note.read_text("utf-8"))
        return found if found["fingerprint"] == self.fingerprint(name) else None

    def execute(self, until: str = "report", on_stage: Callable[[str, str], None] | None = None) -> None:
        """Run all stages up to `until`; those already done with these settings are skipped."""
        if until not in STAGE_NAMES:
            raise one_of(until, STAGE_NAMES, "stage")
        tell = on_stage or (lambda stage, text: log.info("%s: %s", stage, text))
        with self._alone():
            self._execute(until, tell)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes in one folder would do everything twice and write between each other's lines."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        # The system lets go of it when the process ends, however it ends.
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise TagsteerError(
                f"another tagsteer process is at work in {self.folder}: wait for it, stop it, or give another --out"
            ) from None
        except NotImplementedError:
            log.warning("%s: this file system has no locks; start no second process here", self.folder)
        try:
            yield
        finally:
            lock.release()

    def _execute(self, until: str, tell: Callable[[str, str], None]) -> None:
        self._keep_config()
        fresh = False
        for stage in STAGES[: STAGE_NAMES.index(until) + 1]:
            found = None if fresh else self.done(stage.name)
            if found is not None:
                tell(stage.name, "done before: " + stage.says.format(**found["result"]))
                continue
            fresh = True
            self._clear_outdated(stage.name)
            started = time.monotonic()
            (self.folder / stage.name / "stage.json").unlink(missing_ok=True)
            result = stage.work(self)
            note = {
                "fingerprint": self.fingerprint(stage.name), "result": result, "version": tagsteer.__version__,
                "seconds": round(time.monotonic() - started, 1),
                "finished": datetime.datetime.now().isoformat("T", "seconds"),
            }  # fmt: skip
            (self.path(stage.name) / "stage.json").write_text(json.dumps(note, indent=1), "utf-8")
            tell(stage.name, stage.says.format(**result))

    def _keep_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(self.config.model_dump_json(indent=1), "utf-8")

    def _clear_outdated(self, name: str) -> None:
        """Extraction keeps shards of one setting only: shards of another are removed, saying so."""
        started = self.folder / name / "started.json"
        mine = {"fingerprint": self.fingerprint(name)}
        if name == "extract" and started.exists() and json.loads(started.read_text("utf-8")) != mine:
            log.warning("settings changed: the extraction in %s is done anew", started.parent)
            shutil.rmtree(started.parent)
        self.path(name)
        started.write_text(json.dumps(mine), "utf-8")
