"""Training: the sparse CPU step equals autograd, known dictionaries are found, a killed run resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae import sparse_step
from tagsteer.sae.activations import ActivationFile, Scaling, batches
from tagsteer.sae.objectives import AuxiliaryLoss, Weights, dense_step, step
from tagsteer.sae.train import TrainSettings, train

CPU = torch.device("cpu")
D, N_TRUE = 32, 48


class Dictionary:
    """Residuals made of few of N_TRUE known directions: the right answer is known."""

    d_model = D

    def __init__(self, seed: int = 0, tokens: int = 8192, active: int = 3) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = torch.nn.functional.normalize(torch.randn(N_TRUE, D, generator=g), dim=1)
        self.tokens, self.active = tokens, active

    def buffer(self, n: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(n + 100)
        which = torch.rand(self.tokens, N_TRUE, generator=g).topk(self.active).indices
        codes = torch.zeros(self.tokens, N_TRUE).scatter(
            1, which, 1 + torch.rand(self.tokens, self.active, generator=g)
        )
        return 5 * codes @ self.rows + 20.0


def settings(**changes) -> TrainSettings:
    base = {"d_sae": 64, "k": 3, "tokens": 300_000, "batch_tokens": 1024, "lr": 5e-3, "dead_after": 20_000}
    return TrainSettings(**{**base, **changes})


@pytest.mark.parametrize("kind", ["batchtopk", "topk"])
def test_sparse_step_equals_autograd_on_the_same_active_latents(kind, monkeypatch):
    monkeypatch.setattr(sparse_step, "cpu_multiplies_bf16_fast", lambda: False)
    torch.manual_seed(2)
    x = torch.randn(64, D)
    weights, plain = (Weights(D, 64, kind, seed=3, device=CPU) for _ in range(2))
    with torch.no_grad():
        for w in (weights, plain):
            w.b_enc.copy_(torch.linspace(-0.2, 0.1, 64))
            w.w_enc.mul_(1.3)
            w.b_dec.copy_(torch.linspace(0, 0.1, D))
    got = step(weights, x, kind, 6, 0.0, AuxiliaryLoss(64, 10**9, 0.0, 8, CPU))
    pre = x @ plain.w_enc.T + plain.b_enc
    _, rows, latents, _ = sparse_step.choose_active(pre.detach().to(torch.bfloat16), 6, kind == "topk")
    active = torch.zeros_like(pre)
    active[rows, latents] = 1.0
    error = (pre.relu() * active) @ plain.w_dec + plain.b_dec - x
    (error.square().sum(1).mean() / D).backward()
    # The border is found at bf16 resolution, where equal values are all kept.
    assert 6 <= got.l0 < 6.5 and torch.equal(got.fired, active.any(0))
    torch.testing.assert_close(got.error, error.detach(), atol=1e-5, rtol=1e-5)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        torch.testing.assert_close(
            getattr(weights, name).grad, getattr(plain, name).grad, atol=1e-6, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["batchtopk", "topk"])
def test_dense_step_keeps_exactly_k(kind):
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    result = dense_step(Weights(D, 64, kind, seed=3, device=CPU), x, kind, 6)
    assert result.l0 == 6.0


def test_choose_active_keeps_exactly_the_largest():
    rng = np.random.default_rng(0)
    bf16 = torch.from_numpy(rng.normal(size=(100, 200)).astype(np.float32)).to(torch.bfloat16)
    _, rows, latents, smallest = sparse_step.choose_active(bf16, 5, per_row=False)
    want = bf16.float().flatten().sort(descending=True).values[499]
    assert smallest == want and len(latents) == int((bf16.float() >= want).sum())
    assert (bf16.float()[rows, latents] >= want).all()
    starts, _, latents, _ = sparse_step.choose_active(bf16, 5, per_row=True)
    assert (np.diff(starts) >= 5).all()
    for t in range(100):
        mine = bf16[t, latents[starts[t] : starts[t + 1]]].float().min()
        assert mine == bf16[t].float().sort(descending=True).values[4]


@pytest.mark.parametrize("kind", ["batchtopk", "topk", "jumprelu"])
def test_a_known_dictionary_is_found_in_the_models_own_units(kind):
    source = Dictionary()
    sae, stats = train(source, settings(kind=kind, tokens=600_000 if kind == "jumprelu" else 300_000), CPU)
    x = source.buffer(999)
    acts = sae.encode(x)
    fvu = (sae.decode(acts) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert 1 - fvu > 0.9
    # JumpReLU's L0 is a wish: its threshold feels only what lies near it, and here there is a wide gap.
    tolerance = 0.45 if kind == "jumprelu" else 0.25
    assert float((acts > 0).sum(1).float().mean()) == pytest.approx(3, rel=tolerance)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64), atol=1e-4, rtol=0)
    # Most true directions have a decoder row that points their way.
    best = (source.rows @ sae.W_dec.T).max(1).values
    assert (best > 0.95).float().mean() > 0.8
    assert stats["explained_variance"] > 0.85


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path):
    plain, _ = train(Dictionary(), settings(tokens=60_000), CPU)
    file = tmp_path / "checkpoint.pt"

    class Killed(Exception):
        pass

    class Dies(Dictionary):
        def buffer(self, n):
            if n == 4:
                raise Killed
            return super().buffer(n)

    with pytest.raises(Killed):
        train(Dies(), settings(tokens=60_000), CPU, checkpoint=file, checkpoint_every=7)
    resumed, stats = train(Dictionary(), settings(tokens=60_000), CPU, checkpoint=file)
    assert stats["steps"] == 58
    torch.testing.assert_close(resumed.W_enc, plain.W_enc, rtol=0, atol=0)
    torch.testing.assert_close(resumed.threshold, plain.threshold, rtol=0, atol=0)
    with pytest.raises(TagsteerError, match="other settings"):
        train(Dictionary(), settings(tokens=70_000), CPU, checkpoint=file)


def test_dead_latents_come_back_through_the_auxiliary_loss():
    torch.manual_seed(0)
    x = Scaling.measure(Dictionary().buffer(0), 6.0).apply(Dictionary().buffer(0))[:512]
    weights = Weights(D, 64, "batchtopk", 0, CPU)
    with torch.no_grad():
        weights.b_enc[:10] = -0.9
    aux = AuxiliaryLoss(64, dead_after=512, weight=1 / 32, k_aux=8, device=CPU)
    result = step(weights, x, "batchtopk", 1, 0.0, aux)
    dead = aux.dead
    assert dead.any() and not dead.all() and not (dead & result.fired).any()
    assert weights.w_enc.grad is not None and weights.w_enc.grad[dead].abs().sum() > 0

    # Moving along that gradient lets the dead latents explain more of the error.
    @torch.no_grad()
    def aux_error() -> float:
        pre = (x @ weights.w_enc[dead].T + weights.b_enc[dead]).relu()
        top = pre.topk(8, dim=1)
        guess = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ weights.w_dec[dead]
        return float((guess + result.error).square().sum())

    before = aux_error()
    with torch.no_grad():
        for p in (weights.w_enc, weights.w_dec, weights.b_enc):
            p.sub_(3.0 * p.grad)
    assert aux_error() < before


def test_outlier_tokens_are_kept_out_of_scaling_and_batches():
    x = Dictionary().buffer(0)
    x[::1000] *= 60
    scaling = Scaling.measure(x, outlier_factor=6.0)
    clean = Scaling.measure(Dictionary().buffer(0), 6.0)
    torch.testing.assert_close(scaling.mean, clean.mean, atol=0.2, rtol=0)
    assert len(scaling.apply(x)) == len(x) - len(x[::1000])
    assert float(scaling.apply(x).square().mean()) == pytest.approx(1.0, rel=1e-3)


def test_buffers_from_disk_cover_an_epoch_without_repeats(tmp_path: Path):
    x = torch.arange(6000 * 4, dtype=torch.float32).view(6000, 4)
    (tmp_path / "residuals.bin").write_bytes(x.numpy().tobytes())
    with pytest.raises(TagsteerError, match=r"residuals\.json"):
        ActivationFile.open(tmp_path)
    (tmp_path / "residuals.json").write_text('{"d_model": 4, "n_tokens": 6000, "dtype": "float32"}')
    source = ActivationFile.open(tmp_path, buffer_tokens=2048)
    rows = torch.cat([source.buffer(0), source.buffer(1)])[:, 0]
    assert len(rows.unique()) == len(rows) == 4096
    assert torch.equal(source.buffer(3), source.buffer(3))
    assert not torch.equal(source.buffer(0), source.buffer(2))  # another epoch, another order
    (tmp_path / "residuals.bin").write_bytes(b"short")
    with pytest.raises(TagsteerError, match="bytes"):
        ActivationFile.open(tmp_path)


def test_batches_continue_from_a_position():
    source, scaling = Dictionary(), Scaling.measure(Dictionary().buffer(0), 6.0)
    first = batches(source, scaling, 1000, 0, CPU, (0, 0))
    wanted = [next(first) for _ in range(20)]
    again = batches(source, scaling, 1000, 0, CPU, wanted[9][1])
    for (x, place), (y, other) in zip(wanted[10:], (next(again) for _ in range(10)), strict=True):
        assert place == other and torch.equal(x, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "topkk"}, "did you mean"),
        ({"k": 64}, "between 1 and"),
        ({"tokens": 10}, "less than one batch"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(TagsteerError, match=message):
        settings(**changes)
