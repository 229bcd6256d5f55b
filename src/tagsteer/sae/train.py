"""Train a sparse autoencoder on residuals: BatchTopK, TopK or JumpReLU, resumable, with honest progress.

Inputs are centred and scaled for training and the scaling is folded into the weights at the end, so that the
SAE that comes out takes and gives the model's own units. A BatchTopK SAE leaves as a JumpReLU one whose single
threshold gives the wanted L0 on held-in tokens. Must not know language models or text.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tagsteer.errors import TagsteerError, one_of
from tagsteer.progress import track
from tagsteer.sae.activations import ActivationSource, Scaling, batches
from tagsteer.sae.objectives import KINDS, AuxiliaryLoss, StepResult, Weights, step
from tagsteer.sae.sae import SAE

log = logging.getLogger("tagsteer.sae")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that changes the trained weights."""

    d_sae: int = 4096
    kind: str = "batchtopk"
    k: int = 64
    """Active latents per token wanted: exact for TopK, on average for the others."""
    tokens: int = 5_000_000
    batch_tokens: int = 2048
    lr: float = 1e-3
    warmup: float = 0.02
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.4
    """Share of the steps, at the end, over which it falls to 0."""
    l0_weight: float = 5.0
    """JumpReLU only: weight of (L0/k - 1)²."""
    aux_weight: float = 1 / 32
    k_aux: int = 64
    dead_after: int = 300_000
    """Tokens without firing after which a latent counts as dead."""
    outlier_factor: float = 6.0
    """Tokens with a residual norm above this many medians are left out (attention sinks)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise one_of(self.kind, list(KINDS), "kind of SAE to train")
        if not 0 < self.k < self.d_sae:
            raise TagsteerError(f"k = {self.k} must lie between 1 and d_sae - 1 = {self.d_sae - 1}")
        if self.tokens < self.batch_tokens:
            raise TagsteerError(f"tokens = {self.tokens} is less than one batch of {self.batch_tokens}")

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_tokens

    def lr_at(self, i: int) -> float:
        """Linear warm-up, constant, linear decay to 0."""
        rise = min(1.0, (i + 1) / max(1, self.warmup * self.steps))
        fall = min(1.0, (self.steps - i) / max(1, self.decay * self.steps))
        return self.lr * min(rise, fall)


def train(
    source: ActivationSource,
    settings: TrainSettings,
    device: torch.device,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    on_report: Callable[[dict], None] | None = None,
) -> tuple[SAE, dict]:
    """Train on `source`; returns the SAE in the model's units (CPU, fp32) and what training measured.

    With `checkpoint` (a file) the state is saved as training goes, and a later call with the same settings
    continues to the same result. Another call's checkpoint with other settings is an error.
    """
    state = _State.begin(source, settings, device)
    if checkpoint and checkpoint.exists():
        state.restore(checkpoint)
        log.info("resuming at step %d of %d from %s", state.step, settings.steps, checkpoint)
    feed = batches(source, state.scaling, settings.batch_tokens, settings.seed, device, state.position)
    meter = _Meter()
    with track(f"Training {settings.kind} SAE", settings.steps, "steps", done=state.step) as bar:
        while state.step < settings.steps:
            x, position = next(feed)
            result = state.take_step(x)
            state.position = position
            meter.add(x, result)
            bar.advance()
            if state.step % 50 == 0 or state.step == settings.steps:
                report = meter.report(state)
                bar.note("EV {explained_variance:.3f}  L0 {l0:.1f}  dead {dead_share:.1%}".format(**report))
                if on_report:
                    on_report(report)
            if checkpoint and (state.step % checkpoint_every == 0 or state.step == settings.steps):
                state.save(checkpoint)
    report = meter.last or meter.report(state)
    return state.finish(source), {**report, "tokens": state.step * settings.batch_tokens, "steps": state.step}


class _Meter:
    """Explained variance and L0 over the steps since the last report."""

    def __init__(self) -> None:
        self.error = self.variance = self.l0 = self.n = 0.0
        self.last: dict = {}

    def add(self, x: torch.Tensor, result: StepResult) -> None:
        self.error += float(result.error.square().sum())
        self.variance += float((x - x.mean(0)).square().sum())
        self.l0 += result.l0
        self.n += 1

    def report(self, state: _State) -> dict:
        self.last = {
            "step": state.step,
            "explained_variance": 1 - self.error / max(self.variance, 1e-12) if self.n else math.nan,
            "l0": self.l0 / max(self.n, 1),
            "dead_share": float(state.aux.dead.float().mean()),
        }
        self.error = self.variance = self.l0 = self.n = 0.0
        return self.last


class _State:
    """Weights, optimiser and place in the data: what a checkpoint holds."""

    def __init__(self, settings: TrainSettings, scaling: Scaling, d_model: int, device: torch.device) -> None:
        self.settings, self.scaling, self.device = settings, scaling, device
        self.weights = Weights(d_model, settings.d_sae, settings.kind, settings.seed, device)
        self.optimiser = torch.optim.Adam(
            self.weights.parameters(), lr=settings.lr, betas=(0.9, 0.999), fused=True
        )
        self.aux = AuxiliaryLoss(
            settings.d_sae, settings.dead_after, settings.aux_weight, settings.k_aux, device
        )
        self.step = 0
        self.position = (0, 0)

    @classmethod
    def begin(cls, source: ActivationSource, settings: TrainSettings, device: torch.device) -> _State:
        scaling = Scaling.measure(source.buffer(0), settings.outlier_factor)
        return cls(settings, scaling, source.d_model, device)

    def take_step(self, x: torch.Tensor) -> StepResult:
        s = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = s.lr_at(self.step)
        # JumpReLU's sparsity pressure starts at 0: full pressure on random latents kills them.
        l0_weight = s.l0_weight * min(1.0, self.step / max(1, 0.2 * s.steps))
        result = step(self.weights, x, s.kind, s.k, l0_weight, self.aux)
        self.weights.drop_parallel_gradient()
        self.optimiser.step()
        self.weights.renormalise()
        self.step += 1
        if not math.isfinite(result.l0) or not torch.isfinite(result.error[0, 0]):
            raise TagsteerError(f"training diverged at step {self.step} (lr {s.lr}); lower the learning rate")
        return result

    def save(self, path: Path) -> None:
        state = {
            "settings": json.dumps(asdict(self.settings), sort_keys=True),
            "weights": self.weights.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "silent": self.aux.silent,
            "step": self.step,
            "position": list(self.position),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != json.dumps(asdict(self.settings), sort_keys=True):
            raise TagsteerError(
                f"{path} is a checkpoint of other settings ({state['settings']}); delete it or name another"
            )
        self.weights.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.aux.silent = state["silent"]
        self.step, self.position = state["step"], (state["position"][0], state["position"][1])

    @torch.no_grad()
    def finish(self, source: ActivationSource) -> SAE:
        """Fold the scaling into the weights: encode(x) = act(x @ W_enc + b_enc), all in the model's units."""
        s, w = self.settings, self.weights
        mean, scale = self.scaling.mean.to(self.device), self.scaling.scale
        # Scaled pre-activation p = w·(x - mean)/scale + b; in model units a = scale·p, since decoder rows keep norm 1.
        threshold = None
        if s.kind == "jumprelu":
            assert w.log_threshold is not None
            threshold = (w.log_threshold.exp() * scale).cpu()
        elif s.kind == "batchtopk":
            threshold = torch.full((s.d_sae,), self._threshold_for_l0(source) * scale)
        return SAE(
            kind="topk" if s.kind == "topk" else "jumprelu",
            W_enc=w.w_enc.T.contiguous().cpu(),
            b_enc=(w.b_enc * scale - w.w_enc @ mean).cpu(),
            W_dec=w.w_dec.detach().clone().cpu(),
            b_dec=(w.b_dec * scale + mean).cpu(),
            threshold=threshold,
            k=s.k if s.kind == "topk" else None,
        )

    def _threshold_for_l0(self, source: ActivationSource, n_tokens: int = 65_536) -> float:
        """The one threshold at which k latents per token are active on average, from a histogram of positives."""
        counts = torch.zeros(32_768, dtype=torch.int64, device=self.device)
        seen = 0
        for n in range(4):
            for x in self.scaling.apply(source.buffer(n)).split(2048):
                pre = (
                    (x.to(self.device) @ self.weights.w_enc.T + self.weights.b_enc).relu().to(torch.bfloat16)
                )
                counts += torch.bincount(pre.view(torch.int16).flatten().int(), minlength=32_768)
                seen += len(x)
                if seen >= n_tokens:
                    break
            if seen >= n_tokens:
                break
        from_top = counts.flip(0).cumsum(0)
        bits = 32_767 - int((from_top >= self.settings.k * seen).nonzero()[0])
        return float(torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16))
