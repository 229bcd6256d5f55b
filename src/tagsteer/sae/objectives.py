"""What a training SAE computes for a batch: active latents, loss and gradients, for each kind.

`step` fills the gradients of `Weights` and returns what the loop reports. TopK and BatchTopK take the sparse
path on CPUs (sparse_step.py) and plain autograd on other devices; JumpReLU always takes autograd with the
straight-through estimators of Rajamanoharan et al. 2024 (arXiv 2407.14435). Inputs are centred and scaled to
one mean square per coordinate. Must not know language models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

KINDS = ("batchtopk", "topk", "jumprelu")


class Weights(nn.Module):
    """Parameters of an SAE in training: w_enc, w_dec [d_sae, d_model], b_enc [d_sae], b_dec [d_model]."""

    def __init__(self, d_model: int, d_sae: int, kind: str, seed: int, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = nn.functional.normalize(torch.randn(d_sae, d_model, generator=generator), dim=1).to(device)
        self.w_dec = nn.Parameter(rows)
        self.w_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae, device=device))
        self.b_dec = nn.Parameter(torch.zeros(d_model, device=device))
        # In the log, so that a step multiplies the threshold instead of moving it below zero.
        self.log_threshold = (
            nn.Parameter(torch.full((d_sae,), -2.3, device=device)) if kind == "jumprelu" else None
        )

    @torch.no_grad()
    def renormalise(self) -> None:
        """Decoder rows back to norm 1; without it the sparsity term is met by shrinking activations."""
        self.w_dec.div_(self.w_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))

    @torch.no_grad()
    def drop_parallel_gradient(self) -> None:
        """Remove the part of the decoder's gradient that only changes row norms."""
        if self.w_dec.grad is not None:
            along = (self.w_dec.grad * self.w_dec).sum(1, keepdim=True)
            self.w_dec.grad.sub_(along * self.w_dec)


@dataclass(frozen=True)
class StepResult:
    """Reconstruction error [tokens, d_model], which latents fired [d_sae], and the batch's L0."""

    error: torch.Tensor
    fired: torch.Tensor
    l0: float


def step(
    weights: Weights, x: torch.Tensor, kind: str, k: int, l0_weight: float, aux: AuxiliaryLoss
) -> StepResult:
    """Set the gradients of mean ‖x̂ - x‖²/d_model (+ sparsity and dead-latent terms) for a batch x [tokens, d_model]."""
    if kind != "jumprelu" and x.device.type == "cpu":
        result = _sparse_step(weights, x, k, per_row=kind == "topk")
    else:
        result = dense_step(weights, x, kind, k, l0_weight)
    aux.add_gradients(weights, x, result)
    return result


def dense_step(weights: Weights, x: torch.Tensor, kind: str, k: int, l0_weight: float = 0.0) -> StepResult:
    """The plain form of a step: dense products and autograd; mixed precision on CUDA."""
    weights.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
        pre = x @ weights.w_enc.T + weights.b_enc
        penalty = torch.zeros((), device=x.device)
        if kind == "jumprelu":
            assert weights.log_threshold is not None
            acts, active = _JumpReLU.apply(pre.float(), weights.log_threshold.exp())
            l0 = active.sum(1).mean()
            penalty = l0_weight * (l0 / k - 1).square()
        else:
            positive = pre.float().relu()
            keep = (
                positive.topk(k, dim=1).values[:, -1:]
                if kind == "topk"
                else _batch_border(positive, k * len(x))
            )
            active = (positive >= keep) & (positive > 0)
            acts = positive * active
        error = acts @ weights.w_dec + weights.b_dec - x
    error = error.float()
    (error.square().sum(1).mean() / x.shape[1] + penalty).backward()
    active = active.detach()
    return StepResult(error.detach(), active.any(0), float(active.sum(1).float().mean()))


def _batch_border(positive: torch.Tensor, n: int) -> torch.Tensor:
    """The n-th largest value of the batch, found among the candidates above a sampled border."""
    flat = positive.flatten()
    sample = flat[:: max(1, flat.numel() // 1_000_000)]
    share = min(1.0, 1.25 * n / flat.numel())
    candidates = flat[flat >= sample.kthvalue(max(1, round(len(sample) * (1 - share)))).values]
    candidates = candidates if len(candidates) >= n else flat
    return candidates.topk(n).values[-1]


class _JumpReLU(torch.autograd.Function):
    """(pre, threshold) -> (activations, active as 0/1), with rectangle-kernel gradients for the threshold."""

    bandwidth = 0.1

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        active = (pre > threshold).to(pre.dtype)
        return pre.relu() * active, active

    @staticmethod
    def backward(ctx, g_acts, g_active):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < _JumpReLU.bandwidth / 2).to(pre.dtype) / _JumpReLU.bandwidth
        g_threshold = -(threshold * near * g_acts + near * g_active).sum(0)
        return g_acts * ((pre > threshold) & (pre > 0)), g_threshold


def _sparse_step(weights: Weights, x: torch.Tensor, k: int, per_row: bool) -> StepResult:
    from tagsteer.sae import sparse_step as sparse

    with torch.no_grad():
        dtype = torch.bfloat16 if sparse.cpu_multiplies_bf16_fast() else torch.float32
        pre = torch.addmm(weights.b_enc.to(dtype), x.to(dtype), weights.w_enc.to(dtype).T).to(torch.bfloat16)
    starts, rows, latents, _ = sparse.choose_active(pre, k, per_row)
    w_enc, w_dec, b_enc, b_dec = (
        p.detach().numpy() for p in (weights.w_enc, weights.w_dec, weights.b_enc, weights.b_dec)
    )
    acts, error = torch.empty(len(latents)).numpy(), torch.empty_like(x)
    sparse.forward(x.numpy(), starts, latents, w_enc, b_enc, w_dec, b_dec, acts, error.numpy())
    offsets, order = sparse.by_latent(latents, w_dec.shape[0])
    for parameter in (weights.w_enc, weights.w_dec, weights.b_enc):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
    assert (
        weights.w_enc.grad is not None and weights.w_dec.grad is not None and weights.b_enc.grad is not None
    )
    scale = 1.0 / x.numel()
    sparse.backward(
        *(x.numpy(), rows, order, offsets, acts, error.numpy(), w_dec, np.float32(scale)),
        *(weights.w_enc.grad.numpy(), weights.b_enc.grad.numpy(), weights.w_dec.grad.numpy()),
    )
    weights.b_dec.grad = error.sum(0) * (2 * scale)
    fired = torch.from_numpy(offsets[1:] > offsets[:-1])
    return StepResult(error, fired, len(latents) / len(x))


class AuxiliaryLoss:
    """Lets dead latents explain the error that is left (AuxK of Gao et al. 2024, arXiv 2406.04093, A.2)."""

    def __init__(self, d_sae: int, dead_after: int, weight: float, k_aux: int, device: torch.device) -> None:
        self.dead_after, self.weight, self.k_aux = dead_after, weight, k_aux
        self.silent = torch.zeros(d_sae, dtype=torch.int64, device=device)
        """Tokens seen since each latent fired last."""

    @property
    def dead(self) -> torch.Tensor:
        return self.silent >= self.dead_after

    def add_gradients(self, weights: Weights, x: torch.Tensor, result: StepResult) -> None:
        """Count silence, then add the auxiliary loss's gradients for the dead latents."""
        self.silent = torch.where(result.fired, 0, self.silent + len(x))
        dead = self.dead.nonzero().squeeze(1)
        if not len(dead) or not self.weight:
            return
        w_enc, w_dec, b_enc = (
            p.detach()[dead].requires_grad_() for p in (weights.w_enc, weights.w_dec, weights.b_enc)
        )
        pre = (x @ w_enc.T + b_enc).relu()
        k = min(self.k_aux, len(dead))
        top = pre.topk(k, dim=1)
        guess = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ w_dec
        loss = self.weight * (guess + result.error).square().sum() / x.numel()
        parameters = (weights.w_enc, weights.w_dec, weights.b_enc)
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, (w_enc, w_dec, b_enc)), strict=True):
            assert parameter.grad is not None
            parameter.grad[dead] += grad
