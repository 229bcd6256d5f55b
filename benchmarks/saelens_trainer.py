"""The sae-lens side of bench_training.py: sae-lens' own SAETrainer, a round of steps per line read from stdin.

Runs in the interpreter of .venv-peers, where tagsteer is not installed, so it imports nothing of it. It waits
between rounds and takes no processor time then. Protocol: one JSON line when ready, then one per round.

    python benchmarks/saelens_trainer.py residuals.npy settings.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import sae_lens
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer


def shuffled_batches(x: torch.Tensor, batch: int) -> Iterator[torch.Tensor]:
    """Endless batches [batch, d_model] from the buffer, in a new order each time it is used up."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            yield x[rows]


def main() -> None:
    residuals, settings = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8"))
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    x = torch.from_numpy(np.load(residuals))
    batch, per_round, rounds = settings["batch"], settings["steps"], settings["rounds"]
    total = per_round * rounds
    config = BatchTopKTrainingSAEConfig(
        d_in=x.shape[1], d_sae=settings["d_sae"], k=settings["k"], dtype="float32", device="cpu"
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=total * batch,
            train_batch_size_samples=batch,
            lr=settings["lr"],
            lr_end=0.0,
            lr_warm_up_steps=round(settings["warmup"] * total),
            lr_decay_steps=round(settings["decay"] * total),
            device="cpu",
            logger=LoggingConfig(log_to_wandb=False),
        ),
        BatchTopKTrainingSAE(config),
        shuffled_batches(x, batch),
    )
    tell({"sae_lens": sae_lens.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()})
    for number, _ in enumerate(sys.stdin, 1):
        # `fit` trains until this many tokens are seen and can be called again to go on.
        trainer.cfg.total_training_samples = number * per_round * batch
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.fit()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tell({"wall": wall, "cpu": cpu, "steps": trainer.n_training_steps, **quality(trainer.sae, x[:batch])})


@torch.no_grad()
def quality(sae: BatchTopKTrainingSAE, x: torch.Tensor) -> dict[str, float]:
    """Explained variance and L0 on some of the tokens: whether it trains what it is timed for."""
    a = sae.encode(x)
    error = (sae.decode(a) - x).square().sum()
    return {
        "explained_variance": float(1 - error / (x - x.mean(0)).square().sum()),
        "l0": float((a > 0).sum(1).float().mean()),
    }


def tell(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
