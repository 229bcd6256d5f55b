"""Evidence: for a feature and a label, the documents where the feature fires most, token by token.

Which documents is read from the frequencies; one batched pass over just those documents finds the
activation on every token. Joins lm, sae and corpus; knows no judges, and draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tagsteer.compute.batching import Batcher
from tagsteer.errors import TagsteerError
from tagsteer.label.extraction import Extraction, sae_layer, tokens_in_batch
from tagsteer.progress import track

if TYPE_CHECKING:
    import torch
    from scipy.sparse import csr_matrix

    from tagsteer.corpus.store import Corpus
    from tagsteer.label.frequencies import Frequencies
    from tagsteer.lm.model import LanguageModel
    from tagsteer.sae.sae import SAE


@dataclass(frozen=True)
class EvidenceDocument:
    """One document with a feature's activation on each of its tokens."""

    document: int
    """Index in the corpus."""
    document_id: str
    has_label: bool
    frequency: float
    """Share of its counted tokens on which the feature fires."""
    max_activation: float
    """Over counted tokens."""
    most_active: int
    """Position of that token; the first of equal ones."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Pieces of the text, one per token, which joined are the text; special tokens by their names."""
    activations: tuple[float, ...]
    counted: tuple[bool, ...]
    """False for special tokens and attention sinks, whose activation says nothing about the text."""


@dataclass(frozen=True)
class Evidence:
    """What a pair of feature and label rests on."""

    feature: int
    label: str
    documents: tuple[EvidenceDocument, ...]
    """Where the feature fires most, highest frequency first; fewer than asked for if it fires on fewer."""
    n_active: int
    """Documents of the corpus on which it fires at all."""


def collect_evidence(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus,
    frequencies: Frequencies | csr_matrix,
    pairs: Sequence[tuple[int, str]],
    *,
    documents: int = 10,
    layer: int | str | None = None,
    max_tokens: int | None = None,
    tokens_per_batch: int | None = None,
) -> list[Evidence]:
    """Evidence for (feature, label) pairs, in their order, from the frequencies [n_documents, n_features].

    Each needed document runs once up to the layer, whatever number of pairs it serves; only the features
    asked for are encoded. Layer, `max_tokens` and what counts are those of the extraction; a bare matrix says
    none of it, and gets its defaults, attention sinks beyond the first token counted. TagsteerError for an
    unknown feature or label, or frequencies of other documents or features.
    """
    from tagsteer.label.frequencies import Frequencies

    extracted = frequencies if isinstance(frequencies, Frequencies) else None
    matrix: csr_matrix = extracted.matrix if extracted else frequencies
    settings = extracted.meta if extracted else {}
    if matrix.shape != (len(corpus.texts), sae.n_features):
        raise TagsteerError(
            f"frequencies of shape {list(matrix.shape)} do not fit {len(corpus.texts)} documents and "
            f"{sae.n_features} features: extract them from this corpus with this SAE"
        )
    if documents < 1:
        raise TagsteerError(f"documents = {documents}: ask for at least 1 document per pair")
    columns = {name: i for i, name in enumerate(corpus.label_names)}
    if unknown := [label for _, label in pairs if label not in columns]:
        raise TagsteerError(
            f"label {unknown[0]!r} is not in the corpus {corpus.source}: see corpus.label_names"
        )
    counting = Extraction(
        model,
        sae,
        sae_layer(model, sae, settings.get("layer") if layer is None else layer),
        max_tokens or settings.get("max_tokens", 256),
        settings.get("count_special", False),
        settings.get("count_first", False),
        settings.get("sink_ratio"),
        settings.get("median_norm"),
    )
    chosen = _top_documents(matrix, sae, sorted({int(feature) for feature, _ in pairs}), documents)
    needed = {feature: rows for feature, (rows, _, _) in chosen.items()}
    found = _activations(counting, corpus.texts, needed, tokens_per_batch)
    labels = corpus.label_matrix.tocsc()
    result = []
    for feature, label in pairs:
        rows, shares, n_active = chosen[int(feature)]
        column = columns[label]
        positive = set(labels.indices[labels.indptr[column] : labels.indptr[column + 1]].tolist())
        records = [
            _record(corpus, n, n in positive, float(share), found.tokens[n], found.values[int(feature), n])
            for n, share in zip(rows, shares, strict=True)
        ]
        result.append(Evidence(int(feature), label, tuple(records), n_active))
    return result


@dataclass(frozen=True)
class _Tokens:
    """One tokenised document."""

    ids: list[int]
    pieces: list[str]
    counted: np.ndarray


@dataclass(frozen=True)
class _Found:
    tokens: dict[int, _Tokens]
    values: dict[tuple[int, int], np.ndarray]
    """Activations [positions] by (feature, document)."""


def _top_documents(
    matrix: csr_matrix, sae: SAE, features: list[int], n: int
) -> dict[int, tuple[list[int], np.ndarray, int]]:
    """Per feature: documents by falling frequency (ties: first come), their frequencies, number of active
    ones."""
    columns = np.array([sae.row(feature) for feature in features], dtype=np.int64)
    some = matrix[:, columns].tocsc()
    chosen = {}
    for i, feature in enumerate(features):
        part = slice(some.indptr[i], some.indptr[i + 1])
        rows, shares = some.indices[part], some.data[part]
        order = np.lexsort((rows, -shares))[:n]
        chosen[feature] = (rows[order].tolist(), shares[order], len(rows))
    return chosen


def _activations(
    counting: Extraction, texts: Sequence[str], needed: dict[int, list[int]], tokens_per_batch: int | None
) -> _Found:
    """Run every needed document once and keep the activations of the features that need it."""
    import torch

    sae = counting.sae
    features_of: dict[int, list[int]] = {}
    for feature, rows in needed.items():
        for n in rows:
            features_of.setdefault(n, []).append(feature)
    numbers = sorted(features_of)
    tokens = _tokenise(counting.model, [texts[n] for n in numbers], counting.max_tokens)

    def work(batch: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        with torch.inference_mode():
            residual, keep, _ = counting.residuals([tokens[i].ids for i in batch])
            counted = keep.cpu().numpy()
            out = []
            for row, i in enumerate(batch):
                n = len(tokens[i].ids)
                a = _encode(sae, residual[row, :n].to(sae.device), features_of[numbers[i]])
                out.append((counted[row, :n], a.float().cpu().numpy()))
            return out

    kept, values = {}, {}
    with track("evidence", total=len(numbers), unit="documents") as bar:
        for batch, found in Batcher(tokens_in_batch(counting.model, tokens_per_batch)).run(
            [len(t.ids) for t in tokens], work
        ):
            for i, (counted, a) in zip(batch, found, strict=True):
                n = numbers[i]
                kept[n] = _Tokens(tokens[i].ids, tokens[i].pieces, counted)
                values.update({(feature, n): a[:, j] for j, feature in enumerate(features_of[n])})
            bar.advance(len(batch))
    return _Found(kept, values)


def _encode(sae: SAE, x: torch.Tensor, features: list[int]) -> torch.Tensor:
    """Activations [tokens, features] of these features only, where the kind of SAE allows it."""
    if sae.depends_on_all:
        return sae.encode(x)[:, [sae.row(feature) for feature in features]]
    return sae.select(features).encode(x)


def _tokenise(model: LanguageModel, texts: list[str], max_tokens: int) -> list[_Tokens]:
    """Ids as the extraction has them, and the piece of text that each stands for."""
    ids = model.encode_batch(texts, max_tokens)
    spans: list[list[tuple[int, int]] | None] = [None] * len(texts)
    if texts and getattr(model.tokenizer, "is_fast", False):
        spans = model.tokenizer(
            texts,
            split_special_tokens=True,
            truncation=True,
            max_length=max_tokens,
            return_offsets_mapping=True,
        )["offset_mapping"]
    none = np.empty(0, dtype=bool)
    return [
        _Tokens(tokens, _pieces(model, text, tokens, span), none)
        for text, tokens, span in zip(texts, ids, spans, strict=True)
    ]


def _pieces(
    model: LanguageModel, text: str, ids: list[int], spans: list[tuple[int, int]] | None
) -> list[str]:
    """The text cut at the ends of its tokens; a character of several tokens goes to the first of them."""
    if spans is None or len(spans) != len(ids):
        return model.token_strings(ids)
    pieces, end = [], 0
    for token, (start, stop) in zip(ids, spans, strict=True):
        if token in model.special_ids and start == stop:
            pieces.append(model.tokenizer.convert_ids_to_tokens(token))
            continue
        pieces.append(text[end : max(end, stop)])
        end = max(end, stop)
    return pieces


def _record(
    corpus: Corpus, n: int, has_label: bool, share: float, tokens: _Tokens, activations: np.ndarray
) -> EvidenceDocument:
    shown = np.where(tokens.counted, activations, -1)
    best = int(shown.argmax())
    return EvidenceDocument(
        document=n,
        document_id=str(corpus.ids[n]),
        has_label=has_label,
        frequency=share,
        max_activation=float(max(shown[best], 0)),
        most_active=best,
        token_ids=tuple(tokens.ids),
        tokens=tuple(tokens.pieces),
        activations=tuple(activations.tolist()),
        counted=tuple(tokens.counted.tolist()),
    )
