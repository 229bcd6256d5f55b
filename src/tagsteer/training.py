"""`tagsteer train-sae`: texts to residuals to a trained SAE with a card; joins the corpus, lm and sae rooms.

Training file (TOML): [model], [train] (settings of sae/train.py), layer, and [[data]] entries, each one of the
corpus kinds or a table of conversations; [[held_out]] entries are never trained on and fill the card.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import tagsteer
from tagsteer.config import (
    ModelConfig,
    StackExchangeConfig,
    TableConfig,
    WordNetConfig,
    _Section,
    check,
    read_toml,
)
from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from tagsteer.lm.activations import Document
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.training")


class ConversationsConfig(_Section):
    """A CSV, JSONL or Parquet table with one question and one answer a row, put into the chat template."""

    kind: Literal["conversations"]
    path: Path
    user: str = "instruction"
    assistant: str = "generation"
    max_documents: int | None = None


DataConfig = Annotated[
    WordNetConfig | StackExchangeConfig | TableConfig | ConversationsConfig, Field(discriminator="kind")
]


class TrainingConfig(_Section):
    """One SAE to train."""

    layer: int | str
    model: ModelConfig = ModelConfig()
    max_tokens: int = Field(256, ge=8)
    tokens_per_batch: int = Field(4096, ge=1)
    cache: bool = True
    """Write residuals to disk once (2 bytes × d_model per token in bf16), or run the model as training goes."""
    cache_folder: Path | None = None
    """Where the residuals lie; several SAEs of one layer can share it. By default OUT/residuals."""
    max_residuals: int | None = None
    """Stop caching at about this many tokens."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Fields of sae/train.py's TrainSettings."""
    save_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    data: list[DataConfig] = Field(min_length=1)
    held_out: list[DataConfig] = Field(min_length=1)


def documents_of(entries: Sequence[Any], seed: int) -> list[Document]:
    """All documents of the entries, shuffled together."""
    import random

    found: list[Document] = []
    for entry in entries:
        if isinstance(entry, ConversationsConfig):
            found += _conversations(entry, seed)
        else:
            from tagsteer.stages.data import read_corpus

            found += list(read_corpus(entry, seed).texts)
    random.Random(seed).shuffle(found)
    return found


def _conversations(entry: ConversationsConfig, seed: int) -> list[Document]:
    import random

    from tagsteer.corpus.labels import SkipLog
    from tagsteer.corpus.table_records import open_records

    skipped = SkipLog()
    found: dict[tuple[str, str], None] = {}
    for record in open_records(entry.path, [entry.user, entry.assistant], skipped):
        question, answer = record.cells.get(entry.user), record.cells.get(entry.assistant)
        if question and answer and str(answer).strip():
            found[str(question), str(answer)] = None
    pairs = list(found)
    if not pairs:
        raise TagsteerError(f"{entry.path}: no row with both {entry.user!r} and {entry.assistant!r}")
    if entry.max_documents and entry.max_documents < len(pairs):
        pairs = random.Random(seed).sample(pairs, entry.max_documents)
    return [(("user", question), ("assistant", answer)) for question, answer in pairs]


def train_from_config(path: Path, out: Path) -> list[str]:
    """Train, measure on held-out text, save to `out`; returns what to tell the user."""
    import torch

    from tagsteer.lm.activations import TextSource, cache_residuals
    from tagsteer.lm.model import load_model
    from tagsteer.sae.activations import ActivationFile, ActivationSource
    from tagsteer.sae.train import TrainSettings, train

    config = check(TrainingConfig, _resolved(read_toml(path), path.parent), str(path))
    try:
        settings = TrainSettings(**config.train)
    except TypeError as error:
        raise TagsteerError(
            f"{path}: [train] {str(error).rpartition('.')[2].strip()}; see TrainSettings"
        ) from None
    m = config.model
    model = load_model(m.name, m.device, m.dtype, m.device_map)
    layer = model.layer_index(config.layer)
    documents = documents_of(config.data, settings.seed)
    held_out = documents_of(config.held_out, settings.seed)
    source: ActivationSource
    if config.cache:
        folders = cache_residuals(
            model, [layer], documents, config.cache_folder or out / "residuals",
            max_tokens=config.max_tokens, tokens_per_batch=config.tokens_per_batch, limit=config.max_residuals,
        )  # fmt: skip
        source = ActivationFile.open(folders[0])
    else:
        source = TextSource(model, layer, documents, config.max_tokens, config.tokens_per_batch)
    sae, stats = train(source, settings, model.device, out / "checkpoint.pt")
    card = {
        "model": model.name, "layer": layer, "trained_on": [entry.model_dump(mode="json") for entry in config.data],
        "documents": len(documents), "settings": settings.__dict__, "training": stats, "tagsteer": tagsteer.__version__,
        "licence": "the training texts' owners keep theirs; the weights are yours",
    }  # fmt: skip
    return finish(
        sae, model, layer, held_out, out, card, getattr(torch, config.save_dtype), config.max_tokens
    )


def finish(
    sae: SAE,
    model: LanguageModel,
    layer: int,
    held_out: Sequence[Document],
    out: Path,
    card: dict,
    dtype: Any,
    max_tokens: int,
) -> list[str]:
    """Round to the stored precision, measure what is stored on held-out documents, write SAE and card."""
    import dataclasses

    from tagsteer.sae.health import measure

    rounded = dataclasses.replace(
        sae, W_enc=sae.W_enc.to(dtype).float(), W_dec=sae.W_dec.to(dtype).float(), layer=layer
    )
    residuals, loss = measure_on_model(model, rounded, layer, held_out, max_tokens)
    health = measure(rounded, residuals)
    card = {
        **card,
        "l0": round(health.typical.l0, 2),
        "explained_variance": round(health.typical.explained_variance, 4),
        "explained_variance_with_outliers": round(health.all.explained_variance, 4),
        "outlier_tokens": health.n_outliers,
        "dead_share": round(health.dead_share, 4),
        "held_out_tokens": health.all.n_tokens,
        **loss,
    }
    final = dataclasses.replace(rounded, source=f"tagsteer train-sae on {model.name}", card=card)
    final.save(out, dtype)
    return [*health.lines(), json.dumps(loss), f"SAE and card: {out}"]


def measure_on_model(
    model: LanguageModel, sae: SAE, layer: int, documents: Sequence[Document], max_tokens: int
) -> tuple[list[Any], dict[str, float]]:
    """Residuals at the tokens that count, and next-token cross-entropy plain, with x̂ in x's place, and with the mean.

    Recovered share = (mean-ablated - spliced) / (mean-ablated - plain). Tokens that training leaves out (the
    first, template prefixes) keep their residual.
    """
    import torch

    from tagsteer.compute.batching import Batcher
    from tagsteer.lm.activations import padded, residual_chunks, tokenise
    from tagsteer.lm.hooks import edit_residual

    residuals = [
        x[0].float().cpu() for x in residual_chunks(model, [layer], documents, max_tokens, Batcher(4096))
    ]
    mean = torch.cat(residuals).mean(0)
    tokens = tokenise(model, documents, max_tokens)
    sums = {"plain": 0.0, "spliced": 0.0, "ablated": 0.0}
    count = 0

    def run(batch: list[int]) -> None:
        nonlocal count
        ids, mask, keep = (t.to(model.device) for t in padded([tokens[i] for i in batch], model.pad_id))

        def put(make: Any) -> Any:
            def edit(x: torch.Tensor) -> torch.Tensor:
                return torch.where(keep.to(x.device)[..., None], make(x.float()).to(x.dtype), x)

            return edit

        # Targets are tokens whose predecessor's residual was replaced.
        target = keep[:, :-1] & (mask[:, 1:] > 0)
        for name, make in (
            ("plain", lambda x: x),
            ("spliced", lambda x: sae.decode(sae.encode(x.to(sae.device))).to(x.device)),
            ("ablated", lambda x: mean.to(x.device).expand_as(x)),
        ):
            with torch.inference_mode(), edit_residual(model, layer, put(make)):
                logits = model.hf(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits[target].float(), ids[:, 1:][target], reduction="sum"
            )
            sums[name] += float(losses)
        count += int(target.sum())

    for _ in Batcher(2048).run([len(t.ids) for t in tokens], run):
        pass
    plain, spliced, ablated = (sums[k] / max(count, 1) for k in ("plain", "spliced", "ablated"))
    return residuals, {
        "cross_entropy": round(plain, 4),
        "cross_entropy_spliced": round(spliced, 4),
        "cross_entropy_mean_ablated": round(ablated, 4),
        "cross_entropy_recovered": round((ablated - spliced) / (ablated - plain), 4),
    }


def _resolved(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Paths of a training file are relative to the file."""
    for entry in [*data.get("data", []), *data.get("held_out", [])]:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            entry["path"] = str((base / Path(entry["path"]).expanduser()).resolve())
    if isinstance(data.get("cache_folder"), str):
        data["cache_folder"] = str((base / Path(data["cache_folder"]).expanduser()).resolve())
    return data
