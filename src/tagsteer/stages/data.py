"""Stages `corpus` and `extract`: tagged documents, and how often each feature is active on them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tagsteer.config import CorpusConfig, StackExchangeConfig, TableConfig
from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    import numpy as np

    from tagsteer.corpus.store import Corpus
    from tagsteer.run import Run

log = logging.getLogger("tagsteer.run")


def read_corpus(config: CorpusConfig, seed: int) -> Corpus:
    """The corpus of a configuration, cut to a random sample if it says so."""
    from tagsteer.corpus.store import Corpus

    if isinstance(config, StackExchangeConfig):
        corpus = Corpus.from_stackexchange(config.path, answers=config.answers, comments=config.comments)
    elif isinstance(config, TableConfig):
        options: dict[str, Any] = {"id": config.id, "label_separator": config.label_separator}
        corpus = Corpus.from_table(
            config.path, config.text, config.labels, **{k: v for k, v in options.items() if v is not None}
        )
    else:
        corpus = Corpus.from_wordnet()
    if config.max_documents and config.max_documents < len(corpus.texts):
        corpus = corpus.subset(_sample(corpus, config, seed))
    return corpus


def _sample(corpus: Corpus, config: CorpusConfig, seed: int) -> np.ndarray:
    """Positions of a random sample, ascending; documents of the focus labels first if there are any."""
    import numpy as np

    rng = np.random.default_rng(seed)
    assert config.max_documents is not None
    chosen: set[int] = set()
    by_label = corpus.label_matrix.tocsc()
    for name in config.focus or []:
        column = corpus.label_index(name)
        carriers = by_label.indices[by_label.indptr[column] : by_label.indptr[column + 1]]
        # A document that an earlier label brought counts for this one too.
        missing = config.documents_per_focus - len(chosen.intersection(carriers.tolist()))
        others = [int(i) for i in rng.permutation(carriers) if int(i) not in chosen]
        chosen.update(others[: max(0, missing)])
    if len(chosen) > config.max_documents:
        raise TagsteerError(
            f"corpus.focus asks for {len(chosen):,} documents, more than max_documents = {config.max_documents:,}: "
            "lower documents_per_focus or raise max_documents"
        )
    rest = np.setdiff1d(np.arange(len(corpus)), np.fromiter(chosen, np.int64, len(chosen)))
    drawn = rng.choice(rest, size=config.max_documents - len(chosen), replace=False)
    return np.sort(np.concatenate([np.fromiter(chosen, np.int64, len(chosen)), drawn]))


def corpus_stage(run: Run) -> dict[str, Any]:
    """Read the source once and keep documents and labels as files."""
    corpus = read_corpus(run.config.corpus, run.config.seed)
    corpus.save(run.path("corpus"))
    return {"documents": len(corpus.texts), "labels": len(corpus.label_names), "source": corpus.source}


def extract_stage(run: Run) -> dict[str, Any]:
    """Activation frequencies in resumable shards."""
    from tagsteer.label.frequencies import extract_frequencies

    e = run.config.extract
    found = extract_frequencies(
        run.model,
        run.sae,
        run.corpus,
        layer=run.config.sae.layer,
        max_tokens=e.max_tokens,
        tokens_per_batch=e.tokens_per_batch,
        documents_per_shard=e.documents_per_shard,
        folder=run.path("extract"),
    )
    tokens = int(found.token_counts.sum())
    if not tokens:
        raise TagsteerError(f"no token of {run.corpus.source} was counted: are the documents empty?")
    fired = int((found.n_tokens_active > 0).sum())
    return {
        "documents": found.matrix.shape[0],
        "tokens": tokens,
        "features_fired": fired,
        "l0": float(found.n_tokens_active.sum() / tokens),
    }
