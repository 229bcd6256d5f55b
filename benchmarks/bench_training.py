"""SAE training: tokens/s of the trainer beside sae-lens' trainer and a plain dense autograd step.

All three train BatchTopK SAEs of the same size on the same made-up residuals with Adam, in rounds that take
turns. tagsteer's side is `tagsteer.sae.train.train` itself: its buffers are one round long, so asking for the
next buffer ends a round, and the others have theirs before it is given. sae-lens runs `SAETrainer.fit` in
.venv-peers (`make test-peers` makes it), in a process that waits while the others work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import Row
from tagsteer.sae.objectives import Weights, dense_step
from tagsteer.sae.train import TrainSettings, train

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers" / ("Scripts" if os.name == "nt" else "bin") / "python"
D_MODEL, D_SAE, K, BATCH = 576, 4096, 64, 2048
FULL = {"steps": 6, "rounds": 5}
QUICK = {"steps": 2, "rounds": 3}
"""The first round of each warms up and does not count."""
NOT_MEASURED = "sae-lens was NOT MEASURED: there is no .venv-peers here; `make test-peers` makes it (2 GB)"


@dataclass
class Took:
    """Seconds of every counted round of one trainer, by the clock and of the processor."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)

    def add(self, wall: float, cpu: float) -> None:
        self.wall.append(wall)
        self.cpu.append(cpu)


def residuals(tokens: int) -> torch.Tensor:
    """Tokens made of 32 of 2,000 directions and noise, mean square 1, fp32 [tokens, D_MODEL]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2000, D_MODEL, generator=generator), dim=1)
    which = torch.randint(0, 2000, (tokens, 32), generator=generator)
    size = torch.rand((tokens, 32), generator=generator) + 0.2
    x = torch.nn.functional.embedding_bag(which, directions, per_sample_weights=size, mode="sum")
    x += 0.02 * torch.randn(x.shape, generator=generator)
    return x / x.square().mean().sqrt()


class Rounds:
    """A source of activations that lets the others have their round whenever a new buffer is asked for."""

    def __init__(self, x: torch.Tensor, rounds: int, others: Callable[[], None]) -> None:
        self.x, self.rounds, self.others = x, rounds, others
        self.took, self.given, self.start = Took(), -1, (0.0, 0.0)

    @property
    def d_model(self) -> int:
        return int(self.x.shape[1])

    def buffer(self, n: int) -> torch.Tensor:
        """The same tokens whatever n; the trainer shuffles them by n."""
        del n
        if self.given >= 1:  # a round has ended; the first buffer is only asked for to measure the scale
            self.end_round()
        self.given += 1
        if 1 <= self.given <= self.rounds:
            self.others()
        self.start = time.perf_counter(), time.process_time()
        return self.x

    def end_round(self) -> None:
        if self.given <= self.rounds:
            self.took.add(time.perf_counter() - self.start[0], time.process_time() - self.start[1])


class Dense:
    """The step as one writes it: dense products, autograd, fused Adam."""

    def __init__(self, x: torch.Tensor, lr: float) -> None:
        self.x, self.took = x, Took()
        self.weights = Weights(D_MODEL, D_SAE, "batchtopk", 0, torch.device("cpu"))
        self.optimiser = torch.optim.Adam(self.weights.parameters(), lr=lr, fused=True)

    def round(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        for rows in torch.randperm(len(self.x)).split(BATCH):
            dense_step(self.weights, self.x[rows], "batchtopk", K)
            self.weights.drop_parallel_gradient()
            self.optimiser.step()
            self.weights.renormalise()
        self.took.add(time.perf_counter() - wall, time.process_time() - cpu)


class SAELens:
    """sae-lens' trainer in its own interpreter; a round per line written to it."""

    def __init__(self, x: torch.Tensor, settings: dict[str, Any], folder: Path) -> None:
        np.save(folder / "residuals.npy", x.numpy())
        (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
        command = [PEERS, HERE / "saelens_trainer.py", folder / "residuals.npy", folder / "settings.json"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.took, self.versions = Took(), self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"sae-lens' trainer ended with status {self.process.wait()}: see above")
        return json.loads(line)

    def round(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = self._read()
        self.took.add(found.pop("wall"), found.pop("cpu"))
        self.took.quality = found

    def close(self) -> None:
        self.process.communicate()


def run(quick: bool) -> list[Row]:
    import numba

    size = QUICK if quick else FULL
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    tokens = size["steps"] * BATCH
    x = residuals(tokens)
    settings = TrainSettings(
        d_sae=D_SAE, kind="batchtopk", k=K, tokens=tokens * size["rounds"], batch_tokens=BATCH
    )
    same = {"d_sae": D_SAE, "k": K, "batch": BATCH, "lr": settings.lr, "warmup": settings.warmup,
            "decay": settings.decay, "threads": threads, **size}  # fmt: skip
    dense, peer = Dense(x, settings.lr), None
    with tempfile.TemporaryDirectory() as folder:
        if PEERS.exists():
            peer = SAELens(x, same, Path(folder))
        else:
            print(f"\n*** {NOT_MEASURED} ***\n", file=sys.stderr, flush=True)

        def others() -> None:
            dense.round()
            if peer:
                peer.round()

        source = Rounds(x, size["rounds"], others)
        sae, _ = train(source, settings, torch.device("cpu"))
        if peer:
            peer.close()
    ours = source.took
    a, some = sae.encode(x[:BATCH]), x[:BATCH]
    ours.quality = {
        "explained_variance": float(
            1 - (sae.decode(a) - some).square().sum() / (some - some.mean(0)).square().sum()
        ),
        "l0": float((a > 0).sum(1).float().mean()),
    }
    cores = f"{threads} thread{'s' * (threads > 1)}"
    what = f"BatchTopK, d_model {D_MODEL}, d_sae {D_SAE:,}, k {K}, batches of {BATCH:,}, {cores}"
    how = f"best of {size['rounds'] - 1} rounds of {size['steps']} steps in turn, after one to warm up"
    rows = []
    if peer:
        name = f"sae-lens {peer.versions['sae_lens']}, SAETrainer.fit, torch {peer.versions['torch']}"
        rows.append(row(what, ours, name, peer.took, tokens, how, "not slower"))
    else:
        rows.append(
            Row(what, tokens / min(ours.wall[1:]), "tokens/s", target="not slower", note=NOT_MEASURED)
        )
    return [*rows, row(what, ours, "a dense step with autograd", dense.took, tokens, how, "")]


def row(what: str, ours: Took, name: str, theirs: Took, tokens: int, how: str, target: str) -> Row:
    """A line of the table from the counted rounds of both."""
    by_processor = np.median(theirs.cpu[1:]) / np.median(ours.cpu[1:])
    note = f"{how}; by processor time {by_processor:.1f} ×"
    if theirs.quality:
        note += "; explained variance after these few steps {:.2f} and {:.2f}, L0 {:.0f} and {:.0f}".format(
            *(side.quality[key] for key in ("explained_variance", "l0") for side in (ours, theirs))
        )
    return Row(
        what, tokens / min(ours.wall[1:]), "tokens/s", name, tokens / min(theirs.wall[1:]), True, target, note
    )
