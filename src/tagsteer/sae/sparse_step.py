"""One training step of a TopK or BatchTopK SAE on a CPU, at the cost of its active latents.

Of the five dense products of a step (encode, decode, and three gradients) only the encoder's pre-activations
need every latent; they are made in bf16 where the CPU multiplies bf16 fast and serve only to choose the active
ones. Values and gradients of those are then exact fp32 sums over the active (token, latent) pairs. The dense
autograd step in objectives.py computes the same and is the test's reference. Must not know language models.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

_BINS = 32768  # non-negative bf16 numbers, whose bit patterns are ordered like their values


def cpu_multiplies_bf16_fast() -> bool:
    """Whether this CPU has bf16 dot-product instructions (AVX512-BF16, AMX or Arm's BF16)."""
    return (
        bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and torch.backends.cpu.get_cpu_capability() != "AVX2"
    )


def choose_active(
    pre: torch.Tensor, k: int, per_row: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Active pairs of pre-activations `pre` [tokens, d_sae] (bf16): CSR row starts, latents, and the smallest one.

    `per_row` keeps the k largest positive values of each token (TopK), else the k·tokens largest of the batch
    (BatchTopK, Bussmann et al. 2024). Equal values at the border are all kept.
    """
    bits = pre.view(torch.int16).numpy()
    if per_row:
        border = _row_borders(bits, k)
    else:
        border = np.full(bits.shape[0], _batch_border(bits, k * bits.shape[0]), dtype=np.int16)
    starts = _row_starts(bits, border)
    latents = np.empty(starts[-1], dtype=np.int32)
    _collect(bits, border, starts, latents)
    rows = np.repeat(np.arange(bits.shape[0], dtype=np.int32), np.diff(starts))
    smallest = float(torch.tensor(int(border.min()), dtype=torch.int16).view(torch.bfloat16))
    return starts, rows, latents, smallest


@njit(cache=True)
def _batch_border(bits, n_keep):
    counts = np.zeros(_BINS, dtype=np.int64)
    for t in range(bits.shape[0]):
        for value in bits[t]:
            if value > 0:
                counts[value] += 1
    kept, border = 0, _BINS
    while border > 1 and kept < n_keep:
        border -= 1
        kept += counts[border]
    return border


@njit(parallel=True, cache=True)
def _row_borders(bits, k):
    borders = np.empty(bits.shape[0], dtype=np.int16)
    for t in prange(bits.shape[0]):
        borders[t] = max(np.partition(bits[t], -k)[-k], 1)
    return borders


@njit(parallel=True, cache=True)
def _row_starts(bits, border):
    starts = np.zeros(bits.shape[0] + 1, dtype=np.int64)
    for t in prange(bits.shape[0]):
        n = 0
        for value in bits[t]:
            n += value >= border[t]
        starts[t + 1] = n
    return np.cumsum(starts)


@njit(parallel=True, cache=True)
def _collect(bits, border, starts, latents):
    for t in prange(bits.shape[0]):
        p = starts[t]
        for j in range(bits.shape[1]):
            if bits[t, j] >= border[t]:
                latents[p] = j
                p += 1


@njit(parallel=True, fastmath=True, cache=True)
def forward(x, starts, latents, w_enc, b_enc, w_dec, b_dec, acts, error):
    """acts[p] = relu(w_enc[j]·x_t + b_enc[j]) per active pair, and error[t] = reconstruction - x_t.

    x, error [tokens, d_model]; w_enc, w_dec [d_sae, d_model]; acts [pairs].
    """
    d = x.shape[1]
    for t in prange(x.shape[0]):
        row = b_dec - x[t]
        for p in range(starts[t], starts[t + 1]):
            j = latents[p]
            dot = b_enc[j]
            for c in range(d):
                dot += w_enc[j, c] * x[t, c]
            acts[p] = max(dot, np.float32(0))
            if dot > 0:
                for c in range(d):
                    row[c] += dot * w_dec[j, c]
        error[t] = row


@njit(parallel=True, fastmath=True, cache=True)
def backward(x, rows, order, offsets, acts, error, w_dec, scale, g_enc, gb_enc, g_dec):
    """Gradients of scale·Σ error² for each latent, over its own active pairs (`order` sorted by latent).

    g_enc, g_dec [d_sae, d_model], gb_enc [d_sae] are overwritten.
    """
    d = x.shape[1]
    for j in prange(w_dec.shape[0]):
        enc, dec, bias = np.zeros(d, np.float32), np.zeros(d, np.float32), np.float32(0)
        for q in range(offsets[j], offsets[j + 1]):
            p = order[q]
            if acts[p] <= 0:
                continue
            t, a = rows[p], acts[p]
            da = np.float32(0)
            for c in range(d):
                da += error[t, c] * w_dec[j, c]
                dec[c] += a * error[t, c]
            bias += da
            for c in range(d):
                enc[c] += da * x[t, c]
        for c in range(d):
            g_enc[j, c] = np.float32(2) * scale * enc[c]
            g_dec[j, c] = np.float32(2) * scale * dec[c]
        gb_enc[j] = np.float32(2) * scale * bias


@njit(cache=True)
def by_latent(latents, d_sae):
    """Counting sort of the pairs by latent: offsets [d_sae + 1] and the order [pairs]."""
    offsets = np.zeros(d_sae + 1, dtype=np.int64)
    for j in latents:
        offsets[j + 1] += 1
    offsets = np.cumsum(offsets)
    place = offsets[:-1].copy()
    order = np.empty(latents.shape[0], dtype=np.int64)
    for p in range(latents.shape[0]):
        order[place[latents[p]]] = p
        place[latents[p]] += 1
    return offsets, order
