"""Stages `score` and `select`: which feature goes with which label, and which of these pairs are steered."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    import polars as pl

    from tagsteer.corpus.store import Corpus
    from tagsteer.label.output_score import OutputScores
    from tagsteer.run import Run

log = logging.getLogger("tagsteer.run")


def labels_to_score(corpus: Corpus, run: Run) -> Corpus:
    """The corpus with the labels that the configuration lets through by support and name."""
    import numpy as np

    s = run.config.score
    wanted = run.config.corpus.focus if s.labels == "focus" else s.labels
    if s.labels == "focus" and wanted is None:
        raise TagsteerError('score.labels = "focus" needs corpus.focus, the list of labels')
    if wanted is not None:
        unknown = [name for name in wanted if name not in corpus.label_names]
        if unknown:
            raise one_of(unknown[0], list(corpus.label_names), "label")
    corpus = corpus.with_min_support(s.min_support)
    keep = np.ones(len(corpus.label_names), bool)
    if s.max_support is not None:
        keep &= corpus.support <= s.max_support
    if wanted is not None:
        keep &= np.isin(np.array(corpus.label_names), list(wanted))
    if not keep.any():
        raise TagsteerError(
            f"no label has {s.min_support} to {s.max_support or 'any number of'} documents"
            f"{' among score.labels' if wanted else ''}: `tagsteer corpus` lists the labels by support"
        )
    return corpus.with_labels(np.flatnonzero(keep))


def score_stage(run: Run) -> dict[str, Any]:
    """Find the best features of each label on one part of the documents, measure them on the other."""
    from tagsteer.label.frequencies import Frequencies
    from tagsteer.label.matching import find_matches
    from tagsteer.label.scoring import DEFAULT_THRESHOLDS

    s = run.config.score
    corpus = labels_to_score(run.corpus, run)
    found = find_matches(
        Frequencies.load(run.path("extract")).matrix,
        corpus.label_matrix,
        k=s.matches_per_label,
        prior=s.prior,
        thresholds=DEFAULT_THRESHOLDS if s.thresholds is None else s.thresholds,
        device=run.scoring_device,
        label_names=corpus.label_names,
        heldout=s.held_out,
        n_permutations=s.permutations,
        decoder=run.sae.W_dec,
        seed=run.config.seed,
    )
    if not len(found.table):
        raise TagsteerError(
            "no feature fires on a document of any label: does the SAE fit the model and the layer?"
        )
    folder = run.path("score")
    found.table.write_parquet(folder / "matches.parquet")
    if found.labels is not None:
        found.labels.write_parquet(folder / "labels.parquet")
    (folder / "settings.json").write_text(json.dumps(found.record, indent=1), "utf-8")
    best = found.table.row(0, named=True)
    return {
        "labels": len(corpus.label_names),
        "matches": len(found.table),
        "best": f"{best['label_name']} by feature {best['feature']} (calibrated F1 {best['f1']:.3f})",
    }


def select_stage(run: Run) -> dict[str, Any]:
    """The three filters; evidence and promoted tokens of the pairs that are left."""
    import polars as pl

    from tagsteer.label.evidence import collect_evidence
    from tagsteer.label.frequencies import Frequencies
    from tagsteer.label.output_score import output_scores
    from tagsteer.label.selection import select_pairs

    s = run.config.select
    folder = run.path("select")
    matches = pl.read_parquet(run.path("score") / "matches.parquet")
    features = sorted(matches["feature"].unique().to_list())
    outputs = output_scores(run.model, run.sae, features, layer=run.config.sae.layer)
    table = pl.DataFrame({"feature": outputs.features, "output_score": outputs.score.astype("float64")})
    selection = select_pairs(
        matches,
        min_support=run.config.score.min_support,
        output_scores=table,
        min_output_score=s.min_output_score,
        top_k=s.top_k,
        max_q_value=s.max_q,
        representatives_only=s.representatives_only,
        one_per_label=s.one_per_label,
        one_per_feature=s.one_per_feature,
    )
    frequencies = Frequencies.load(run.path("extract"))
    pairs = _with_feature_facts(selection.pairs, frequencies, outputs, run)
    pairs.write_parquet(folder / "pairs.parquet")
    selection.record.write_parquet(folder / "filters.parquet")
    evidence = collect_evidence(
        run.model,
        run.sae,
        run.corpus,
        frequencies,
        list(zip(pairs["feature"].to_list(), pairs["label_name"].to_list(), strict=True)),
        documents=s.evidence_documents,
        layer=run.config.sae.layer,
        max_tokens=run.config.extract.max_tokens,
        tokens_per_batch=run.config.extract.tokens_per_batch,
    )
    (folder / "evidence.json").write_text(json.dumps([asdict(item) for item in evidence]), "utf-8")
    return {"pairs": len(pairs), "labels": pairs["label_name"].n_unique(), "features_scored": len(features)}


def _with_feature_facts(
    pairs: pl.DataFrame, frequencies: Any, outputs: OutputScores, run: Run
) -> pl.DataFrame:
    """Max activation, firing counts and promoted tokens beside each pair."""
    import polars as pl

    features = pairs["feature"].to_list()
    rows = [run.sae.row(f) for f in features]
    scored = [outputs.of(f) for f in features]

    def tokens(ids: Any) -> list[str]:
        return run.model.token_strings([int(i) for i in ids])

    return pairs.with_columns(
        pl.Series("max_activation", frequencies.robust_max[rows], pl.Float64),
        pl.Series("exact_max_activation", frequencies.max_activation[rows], pl.Float64),
        pl.Series("n_docs_active", frequencies.n_docs_active[rows]),
        pl.Series("lens_tokens", [tokens(outputs.lens_tokens[i]) for i in scored]),
        pl.Series("promoted_tokens", [tokens(outputs.promoted_tokens[i]) for i in scored]),
    )
