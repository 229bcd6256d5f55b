"""How surprised an unsteered language model is by texts, and by a topic or a request after them: the slow part of
an offline judge.

Knows a LanguageModel; must not know ratings or rules. Surprise is counted in nats per character, so that
models with different tokenizers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tagsteer.lm.model import LanguageModel


ABOUT, ASKED = "\n\nThis text is about ", "\n\nIt answers the request: "
MAX_TOPIC, MAX_ASKED = 32, 40
"""Tokens of a concept and of an instruction that are read; long requests cost time and say little more."""


def token_surprise(
    model: LanguageModel, texts: Sequence[str], *, max_tokens: int = 200, tokens_per_batch: int = 1024
) -> list[np.ndarray]:
    """-log p of each token after the first mark, nats, one float32 array [tokens] for each text.

    Texts stand alone (as AxBench's fluency judge sees them), after BOS or, without one, the end mark.
    """
    start = _start(model)
    return _surprise(model, [start + ids for ids in _coded(model, texts, max_tokens)], tokens_per_batch)


def read_for(
    model: LanguageModel,
    texts: Sequence[str],
    topics: Sequence[str],
    requests: Sequence[str],
    *,
    max_tokens: int = 144,
    tokens_per_batch: int = 1024,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Surprise of each text's tokens, then of its topic's, then of its request's, in one pass each: nats.

    The topic follows the text as "This text is about ...", the request as "It answers the request: ...": a text
    that speaks of them makes them less surprising (the query likelihood of Ponte & Croft 1998).
    """
    start, about, asked = _start(model), *_coded(model, [ABOUT, ASKED], None)
    parts = list(
        zip(
            _coded(model, texts, max_tokens), _coded(model, topics, MAX_TOPIC), _coded(model, requests, MAX_ASKED),
            strict=True,
        )
    )  # fmt: skip
    coded = [start + text + about + topic + asked + request for text, topic, request in parts]
    found = []
    for surprise, (text, topic, request) in zip(
        _surprise(model, coded, tokens_per_batch), parts, strict=True
    ):
        # surprise[i] is that of coded[i + 1]; without a start mark the first token has none.
        s = surprise if start else np.concatenate([np.full(1, np.nan, np.float32), surprise])
        second, third = len(text) + len(about), len(text) + len(about) + len(topic) + len(asked)
        found.append((s[: len(text)], s[second : second + len(topic)], s[third : third + len(request)]))
    return found


def _start(model: LanguageModel) -> list[int]:
    start = model.tokenizer.bos_token_id
    start = model.tokenizer.eos_token_id if start is None else start
    return [] if start is None else [start]


def _coded(model: LanguageModel, texts: Sequence[str], most: int | None) -> list[list[int]]:
    if not len(texts):
        return []
    found = model.tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, truncation=most is not None, max_length=most
    )["input_ids"]  # fmt: skip
    return [list(ids) for ids in found]


def _surprise(model: LanguageModel, coded: Sequence[list[int]], tokens_per_batch: int) -> list[np.ndarray]:
    """-log p of every token but the first, float32 [tokens - 1] for each row of ids, in batches by length."""
    import torch

    out = [np.zeros(0, np.float32)] * len(coded)
    order = sorted((i for i in range(len(coded)) if len(coded[i]) > 1), key=lambda i: len(coded[i]))
    at = 0
    while at < len(order):
        rows = [order[at]]
        while (
            at + len(rows) < len(order)
            and (len(rows) + 1) * len(coded[order[at + len(rows)]]) <= tokens_per_batch
        ):
            rows.append(order[at + len(rows)])
        at += len(rows)
        width = max(len(coded[i]) for i in rows)
        ids = torch.full((len(rows), width), model.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, i in enumerate(rows):
            ids[row, : len(coded[i])] = torch.tensor(coded[i])
            mask[row, : len(coded[i])] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        with torch.inference_mode():
            logits = (
                model.hf(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            )  # (rows, width - 1, vocab)
            chosen = logits.gather(-1, ids[:, 1:, None].to(logits.device))[..., 0]
            surprise = (torch.logsumexp(logits, -1) - chosen).cpu().numpy()
        for row, i in enumerate(rows):
            out[i] = surprise[row, : len(coded[i]) - 1].astype(np.float32)
    return out


def surprise_per_character(model: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """Mean surprise of each text in nats per character, float64 [texts]; NaN for a text without tokens."""
    sums = [(float(s.sum()), len(t)) for s, t in zip(token_surprise(model, texts), texts, strict=True)]
    return np.array([total / n if n and total else np.nan for total, n in sums])
