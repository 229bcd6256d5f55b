"""What a run steers: its pairs, and the baselines that its configuration asks for, as `Method`s of one kind.

Knows the files of earlier stages; must not know judges.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tagsteer.errors import TagsteerError
from tagsteer.files import as_others_are

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tagsteer.label.frequencies import Frequencies
    from tagsteer.run import Run
    from tagsteer.steer.baselines.difference_of_means import Direction
    from tagsteer.steer.baselines.methods import Method, Settings
    from tagsteer.steer.prompting import SteeringPrompts

log = logging.getLogger("tagsteer.run")

NP_RANDOM = "NP random"
"""The method whose labels are not those of the run's pairs."""
CANDIDATES = 20
"""Best features by plain F1 that are looked at for one with a known max activation."""


def methods_of(run: Run) -> list[Method]:
    """The pairs steered, and what they are held against."""
    import numpy as np
    import polars as pl

    from tagsteer.label.frequencies import Frequencies
    from tagsteer.steer.baselines.methods import Pair, Settings, feature_pairs
    from tagsteer.steer.baselines.prompt_steering import prompt_steering
    from tagsteer.steer.baselines.random_features import random_features
    from tagsteer.steer.baselines.unsteered import unsteered
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
    # As alive as the chosen ones: features that fire on too little have no usable maximum.
    enough = {
        int(f) for f, n in zip(ids, frequencies.n_docs_active, strict=True) if n >= 10 and int(f) in maxima
    }
    if s.random_features:
        taken = [feature for _, feature in chosen]
        methods.append(random_features(labels, sorted(enough), settings, seed=run.config.seed, taken=taken))
    if s.prompt_baseline:
        methods.append(prompt_steering(labels, settings, _steering_prompts(run)))
    if s.plain_f1:
        methods.append(_plain_f1(run, frequencies, ids, labels, settings))
    if s.difference_of_means:
        methods.append(_difference_of_means(run, labels, settings))
    if s.neuronpedia is not None:
        methods.append(_np_random(run, {int(i) for i in ids}, enough, settings))
    return methods


def vectors_of(methods: Sequence[Method]) -> dict[str, torch.Tensor]:
    """The named vectors of all methods, for the engine."""
    return {name: vector for method in methods for name, vector in method.vectors.items()}


def _steering_prompts(run: Run) -> SteeringPrompts:
    """The store of steering prompts, with the LLM that writes new ones if the run names one."""
    from tagsteer.steer.prompting import SteeringPrompts

    path, writer = run.path("steer") / "prompts.json", run.config.steer.prompt_writer
    if writer is None:
        return SteeringPrompts(path)
    from tagsteer.judge.clients import asker

    return SteeringPrompts(path, asker(writer.server), f"{writer.model}, temperature {writer.temperature:g}")


def _plain_f1(
    run: Run, frequencies: Frequencies, ids: np.ndarray, labels: Sequence[str], settings: Settings
) -> Method:
    """The best feature of each label without calibration, found on the documents our pairs were found on."""
    import polars as pl

    from tagsteer.label.scoring import DEFAULT_THRESHOLDS, score_features
    from tagsteer.label.statistics import split_documents
    from tagsteer.steer.baselines.plain_f1 import plain_f1

    s = run.config.score
    split = split_documents(frequencies.matrix.shape[0], heldout=s.held_out, seed=run.config.seed)
    corpus = run.corpus.with_labels([run.corpus.label_index(label) for label in labels])
    table = score_features(
        frequencies.matrix[split.selection],
        corpus.label_matrix[split.selection],
        prior=None,
        thresholds=DEFAULT_THRESHOLDS if s.thresholds is None else s.thresholds,
        device=run.scoring_device,
        label_names=labels,
    ).top(CANDIDATES, "label")
    known = settings.max_activations or {}
    table = table.select(
        pl.col("label_name").alias("label"), pl.Series("feature", ids[table["feature"].to_numpy()]), "f1"
    ).filter(pl.col("feature").is_in(list(known)))
    return plain_f1(labels, table, settings)


def _difference_of_means(run: Run, labels: Sequence[str], settings: Settings) -> Method:
    """Directions from the run's own documents, fitted once; labels without a usable strength are left out."""
    import dataclasses

    from tagsteer.steer.baselines.difference_of_means import steering_vectors

    directions = _directions(run, labels)
    usable = {label: d for label, d in directions.items() if (d.max_projection or 0.0) > 0.0}
    if settings.unit == "absolute":
        usable = directions
    lacking = len(directions) - len(usable)
    method = steering_vectors(usable, settings)
    if lacking:
        log.warning("difference of means: %d labels have no positive projection and are left out", lacking)
        note = f"{method.provenance}; {lacking} labels without a positive projection left out"
        method = dataclasses.replace(method, provenance=note)
    return method


def _directions(run: Run, labels: Sequence[str]) -> dict[str, Direction]:
    """Fitted directions, kept in steer/directions.safetensors for the documents, model and labels they are of."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from tagsteer.label.extraction import tokens_in_batch
    from tagsteer.steer.baselines.difference_of_means import Direction, fit_directions

    path = run.path("steer") / "directions.safetensors"
    made_of = json.dumps([run.fingerprint("extract"), list(labels)])
    if path.exists():
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("made_of") == made_of:
                tops = json.loads(header["max_projections"])
                return {label: Direction(file.get_tensor(str(i)), tops[i]) for i, label in enumerate(labels)}
    layer = run.sae.layer if run.config.sae.layer is None else run.config.sae.layer
    if layer is None:
        raise TagsteerError("steer.difference_of_means needs the layer: set sae.layer")
    log.info("difference of means: %d labels on %d documents", len(labels), len(run.corpus.texts))
    found = fit_directions(
        run.model,
        layer,
        run.corpus.texts,
        run.corpus.label_matrix,
        {label: run.corpus.label_index(label) for label in labels},
        max_tokens=run.config.extract.max_tokens,
        tokens_per_batch=tokens_in_batch(run.model, run.config.extract.tokens_per_batch),
    )
    header = {"made_of": made_of, "max_projections": json.dumps([found[n].max_projection for n in labels])}
    fresh = path.with_suffix(".tmp")
    save_file({str(i): found[n].vector.contiguous() for i, n in enumerate(labels)}, str(fresh), header)
    as_others_are(fresh).replace(path)
    return found


def _np_random(run: Run, there: set[int], usable: set[int], settings: Settings) -> Method:
    """Random features under Neuronpedia's labels, among those that fire in the run's documents."""
    from tagsteer.steer.baselines.neuronpedia import np_random, read_labels

    s = run.config.steer
    assert s.neuronpedia is not None
    named = read_labels(s.neuronpedia)
    foreign = [f.feature for f in named if f.feature not in there]
    if foreign:
        raise TagsteerError(
            f"{s.neuronpedia} names feature {foreign[0]} and {len(foreign) - 1} others that the SAE "
            f"{run.config.sae.name!r} does not have: give the labels of exactly this SAE"
        )
    alive = [f for f in named if f.feature in usable]
    if len(alive) < s.neuronpedia_features:
        raise TagsteerError(
            f"{len(alive)} of the {len(named)} features in {s.neuronpedia} fire on 10 or more documents of this "
            f"run: set steer.neuronpedia_features (now {s.neuronpedia_features}) to at most that"
        )
    log.info("NP random: %d of %d labelled features fire in the documents", len(alive), len(named))
    method = np_random(
        alive, settings, n=s.neuronpedia_features, seed=run.config.seed, source=s.neuronpedia.name
    )
    assert method.name == NP_RANDOM
    return method
