"""How surprised an unsteered language model is by texts: the slow part of an offline judge's fluency.

Knows a LanguageModel; must not know ratings or rules. Surprise is counted in nats per character, so that
models with different tokenizers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tagsteer.lm.model import LanguageModel


def token_surprise(
    model: LanguageModel, texts: Sequence[str], *, max_tokens: int = 200, tokens_per_batch: int = 1024
) -> list[np.ndarray]:
    """-log p of each token after the first mark, nats, one float32 array [tokens] for each text.

    Texts stand alone (as AxBench's fluency judge sees them), after BOS or, without one, the end mark.
    """
    import torch

    start = model.tokenizer.bos_token_id
    start = model.tokenizer.eos_token_id if start is None else start
    coded = model.tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=max_tokens
    )["input_ids"] if len(texts) else []  # fmt: skip
    coded = [([] if start is None else [start]) + list(ids) for ids in coded]
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
