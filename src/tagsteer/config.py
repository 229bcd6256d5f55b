"""The experiment file: one TOML, one pydantic model per stage, all errors reported at once.

Defaults marked "ours" stand where the paper gives no figure; they are never called the paper's.
Keys of judges are never part of a configuration: only the name of the environment variable is.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tagsteer.errors import TagsteerError
from tagsteer.judge.settings import OPENAI, JudgeSettings

T = TypeVar("T", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(_Section):
    name: str = "smollm2-135m-instruct"
    """Embedded name, hub id, or folder."""
    device: str = "auto"
    dtype: str = "auto"
    device_map: str | None = None
    """"auto" shards the model over several GPUs."""


class SAEConfig(_Section):
    name: str = "smollm2-135m-instruct"
    """Embedded name, hub id with file, "saelens:release/id", folder or file."""
    layer: int | str | None = None
    """Needed where the SAE's file does not say it."""


class _Corpus(_Section):
    """What all sources share."""

    max_documents: int | None = Field(None, ge=1)
    """A random sample of that many documents; None takes all."""
    focus: list[str] | None = None
    """Labels of which the sample is made richer: up to `documents_per_focus` documents of each come first, the
    rest of `max_documents` is drawn from all others. The calibrated F1 does not depend on a label's share."""
    documents_per_focus: int = Field(100, ge=1)


class WordNetConfig(_Corpus):
    kind: Literal["wordnet"]


class StackExchangeConfig(_Corpus):
    kind: Literal["stackexchange"]
    path: Path
    """.7z of archive.org, a folder, or a Posts.xml."""
    answers: bool = False
    comments: bool = True


class TableConfig(_Corpus):
    kind: Literal["table"]
    path: Path
    text: list[str]
    labels: str
    id: str | None = None
    label_separator: str | None = None


CorpusConfig = Annotated[WordNetConfig | StackExchangeConfig | TableConfig, Field(discriminator="kind")]


class ExtractConfig(_Section):
    max_tokens: int = Field(256, ge=2)
    """Documents are cut here (ours)."""
    tokens_per_batch: int | None = Field(None, ge=1)
    """Tokens per forward pass; None takes 1,024 on a CPU and more on an accelerator. Halved when memory runs out."""
    documents_per_shard: int = Field(2048, ge=1)


class ScoreConfig(_Section):
    min_support: int = Field(50, ge=1)
    """Documents that a label must have to be scored; the paper's."""
    max_support: int | None = Field(None, ge=1)
    """Labels with more documents are left out: the broadest say little (ours, off by default)."""
    labels: list[str] | Literal["focus"] | None = None
    """If given, only these labels are scored; "focus" means those of corpus.focus."""
    prior: float | None = Field(1e-3, gt=0, lt=1)
    """π₀ of the calibrated F1; reported by others as the paper's. None (write 0 in TOML) is the plain F1."""
    thresholds: list[float] | Literal["exact"] | None = None
    """Activation frequencies tried; None takes the default set (ours)."""
    held_out: float = Field(0.3, gt=0, lt=1)
    """Share of the documents kept away from the choice, on which the reported scores are measured."""
    matches_per_label: int = Field(20, ge=1)
    """Best features of each label that are looked at further (ours)."""
    permutations: int = Field(20, ge=1)
    """Shuffles of the labels behind the false-discovery estimates."""


class SelectConfig(_Section):
    min_output_score: float = Field(1e-3, ge=0)
    """Reported by others as the paper's."""
    top_k: int = Field(20, ge=1)
    """Pairs kept (ours)."""
    max_q: float | None = Field(None, gt=0, le=1)
    """If given, matches must have at most this false-discovery estimate."""
    representatives_only: bool = False
    """If true, only the best of near-duplicate features of a label."""
    one_per_label: bool = False
    """If true, only the best feature of each label."""
    one_per_feature: bool = False
    """If true, each feature serves only its best label."""
    evidence_documents: int = Field(8, ge=1)
    """Documents shown per pair."""


class PromptWriterConfig(_Section):
    """The LLM that writes the steering prompts of the prompt baseline, once per label, as in AxBench."""

    model: str = "gpt-4o-mini"
    """AxBench's."""
    base_url: str = OPENAI
    """Any OpenAI-compatible server."""
    api_key_env: str | None = None
    """Name of the variable with the key; None is OPENAI_API_KEY for OpenAI."""
    temperature: float = Field(1.0, ge=0)
    """AxBench's."""
    max_tokens: int = Field(1024, ge=16)

    @property
    def server(self) -> JudgeSettings:
        """The same as settings of calls."""
        return JudgeSettings(**self.model_dump())


class SteerConfig(_Section):
    intervention: Literal["clamp", "addition", "min_clamp", "clamp_if_active"] = "clamp"
    strengths: list[float] = Field(default=[0.5, 1.0, 1.5, 2.0, 3.0], min_length=1)
    """Ours; the paper's are not known."""
    unit: Literal["max_activation", "absolute"] = "max_activation"
    instructions: int = Field(20, ge=2)
    """Per pair; the paper's 20."""
    instructions_file: Path | None = None
    """AlpacaEval's JSON, or one instruction per line; "alpaca_eval" fetches the 805 from the hub; None takes the
    package's own 100."""
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_k: int | None = Field(None, ge=1)
    """Sampling cut; AxBench's runs have transformers' 50."""
    batch_size: int | None = Field(None, ge=1)
    """Rows at most; None takes 64. Halved when memory runs out."""
    random_features: bool = True
    """Whether a random feature is steered for each label, as a control."""
    prompt_baseline: bool = True
    """Whether the unsteered model is asked for each label in words, as AxBench does."""
    prompt_writer: PromptWriterConfig | None = None
    """If given, an LLM writes each label's steering prompt; None takes a fixed template, and the table says so."""
    plain_f1: bool = False
    """Whether the feature with the best plain F1 of each label is steered, as a baseline of the calibrated one."""
    difference_of_means: bool = False
    """Whether each label's direction of means is added to the residual stream; reads the corpus twice."""
    neuronpedia: Path | None = None
    """If given, the baseline "NP random": features with Neuronpedia's own labels, from an export of exactly this
    SAE (.json, .jsonl, each also .gz) or an AxBench metadata.jsonl."""
    neuronpedia_features: int = Field(100, ge=1)
    """How many of them, drawn at random; the paper's 100."""


class LocalJudgeConfig(_Section):
    """A judge of transformers on this machine; runs where the steered model runs."""

    model: str
    """Embedded name, hub id, or folder of a chat model."""
    dtype: str = "auto"
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    max_new_tokens: int = Field(256, ge=1)
    batch_size: int = Field(8, ge=1)


class JudgeConfig(JudgeSettings):
    """Which judge; the settings of one behind a server are those of judge/settings.py."""

    kind: Literal["auto", "offline", "server", "local"] = "auto"
    """auto: the server if its key is in the environment, else offline."""
    perplexity: bool = False
    """Offline only: whether SmolLM2-135M-Instruct reads every text too, many times slower. Needs weights that were
    trained so (`tagsteer train-judge --perplexity`): for the shipped judge it brought nothing (see its card)."""
    weights: Path | None = None
    """Offline only: the file that `tagsteer train-judge` wrote, instead of the judge that comes with tagsteer."""
    local: LocalJudgeConfig | None = None
    """The model behind kind = "local"."""

    @model_validator(mode="after")
    def _check_kind(self) -> JudgeConfig:
        if self.kind == "local" and self.local is None:
            raise ValueError('kind = "local" needs a model: local = {model = "..."}')
        return self

    @property
    def server(self) -> JudgeSettings:
        """The settings of the judge behind a server alone."""
        return JudgeSettings(**{name: getattr(self, name) for name in JudgeSettings.model_fields})


class EvaluateConfig(_Section):
    protocol: Literal["paper", "axbench"] = "paper"
    repeats: int = Field(10, ge=1)
    splits: int = Field(4, ge=2)
    bootstrap: int = Field(1000, ge=100)


class RunConfig(_Section):
    """One experiment."""

    name: str
    seed: int = 0
    model: ModelConfig = ModelConfig()
    sae: SAEConfig = SAEConfig()
    corpus: CorpusConfig
    extract: ExtractConfig = ExtractConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    steer: SteerConfig = SteerConfig()
    judge: JudgeConfig = JudgeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _enough_instructions(self) -> RunConfig:
        # Found out here, not after everything has been generated and judged.
        if self.evaluate.protocol == "paper" and self.steer.instructions < self.evaluate.splits:
            raise ValueError(
                f"steer.instructions = {self.steer.instructions} are too few for evaluate.splits = "
                f"{self.evaluate.splits}: give as many instructions, or fewer splits"
            )
        return self


_PATHS = (("corpus", "path"), ("steer", "instructions_file"), ("steer", "neuronpedia"), ("judge", "weights"))
"""Entries that are relative to the experiment file."""


def load_config(path: Path | str) -> RunConfig:
    """Read and check an experiment file; relative paths in it are relative to the file."""
    path = Path(path)
    data = read_toml(path)
    data.setdefault("name", path.stem)
    for section, key in _PATHS:
        value = data[section].get(key) if isinstance(data.get(section), dict) else None
        if isinstance(value, str) and value != "alpaca_eval":
            data[section][key] = str((path.parent / Path(value).expanduser()).resolve())
    if isinstance(data.get("score"), dict) and data["score"].get("prior") == 0:
        data["score"]["prior"] = None
    return check(RunConfig, data, str(path))


def stored_config(path: Path | str) -> RunConfig:
    """The configuration that a run folder keeps as config.json; one of another version is a one-line error."""
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TagsteerError(
            f"{path} is not valid JSON ({error}): begin the run again from its .toml file"
        ) from None
    return check(RunConfig, data, str(path))


def with_judge(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration with other settings in [judge], checked anew."""
    judge = check(JudgeConfig, {**config.judge.model_dump(), **changes}, "[judge]")
    return config.model_copy(update={"judge": judge})


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; a missing or broken one is a one-line error."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TagsteerError(
            f"no configuration at {path}: give the path of a .toml file (examples/ has some)"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise TagsteerError(f"{path} is not valid TOML: {error}") from None


def check(kind: type[T], data: Any, where: str) -> T:
    """Validate `data`; every wrong entry is named in one error of one line."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"])
            wanted = item["msg"].removeprefix("Value error, ")
            given = f" (got {_short(item['input'])})"
            if item["type"] == "extra_forbidden":
                # Its value may be a key that someone put here.
                wanted, given = f"no such setting{_near(kind, item['loc'])}", ""
            elif item["type"] == "missing" or isinstance(item["input"], dict):
                given = ""
            problems.append(f"{place}: {wanted}{given}" if place else wanted)
        raise TagsteerError(" ".join(f"{where}: {'; '.join(problems)}".split())) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _near(kind: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """ ", did you mean ..." where a setting with a similar name stands in the same section."""
    import difflib

    names: list[str] = []
    sections: list[Any] = [kind]
    for part in place[:-1]:
        fields = [s.model_fields[part] for s in sections if part in getattr(s, "model_fields", {})]
        if fields:
            sections = [f.annotation for f in fields]
            # A union (the sources of a corpus): the next part of the place is the kind that was chosen.
            sections += [a for s in sections for a in getattr(s, "__args__", ())]
    for section in sections:
        names += getattr(section, "model_fields", {})
    near = difflib.get_close_matches(str(place[-1]), names, n=1)
    return f", did you mean {near[0]}?" if near else ""
