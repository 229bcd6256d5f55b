"""Steered generation against plain generation, and against the usual way: a hook that runs the whole SAE.

The usual way is AxBench's shape: transformers' generate, one feature and strength at a time, ten instructions a
batch, and at every token encode, edit, decode and error term of the whole SAE. Weights of the SAEs are random:
speed does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks import Row
from tagsteer.lm.hooks import edit_residual
from tagsteer.lm.model import LanguageModel, load_model
from tagsteer.sae.sae import SAE
from tagsteer.steer.generate import Engine, WorkItem
from tagsteer.steer.instructions import load_instructions
from tagsteer.steer.interventions import NOTHING, clamp
from tagsteer.steer.kv import new_cache
from tagsteer.steer.prompting import prompt_ids
from tagsteer.steer.sampling import exponentials

LAYER, ROWS = 22, 10


def run(quick: bool) -> list[Row]:
    model = load_model()
    pairs, new_tokens, rounds = (2, 12, 1) if quick else (6, 64, 2)
    prompts = [prompt_ids(model, i.text) for i in load_instructions().sample(ROWS)]
    rows = []
    for width in (16_384, 131_072):
        rows += _speeds(model, _random_sae(model, width), prompts, pairs, new_tokens, rounds)
    return [*rows, *_stability(model, prompts, 8 if quick else 32, 20 if quick else 300)]


def _random_sae(model: LanguageModel, width: int) -> SAE:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(width, model.d_model, generator=g) / model.d_model**0.5
    parts = {
        "W_enc": w.T.contiguous(),
        "b_enc": torch.zeros(width),
        "W_dec": w,
        "b_dec": torch.zeros(model.d_model),
    }
    return SAE("jumprelu", **parts, threshold=torch.full((width,), 20.0), layer=LAYER).to(
        model.device, model.dtype
    )


def _speeds(
    model: LanguageModel, sae: SAE, prompts: list[tuple[int, ...]], pairs: int, new_tokens: int, rounds: int
) -> list[Row]:
    """Best of interleaved rounds, so that neighbours on the machine hit all sides alike."""
    where = "CPU time" if model.device.type == "cpu" else "wall time"
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter

    def engine(steered: bool) -> int:
        items = [
            WorkItem(("bench", f, b), prompt, clamp({f: 30.0}) if steered else NOTHING, new_tokens)
            for f in range(pairs)
            for b, prompt in enumerate(prompts)
        ]
        return sum(len(g.token_ids) + (g.finish == "eos") for g in Engine(model, sae).run(items))

    sides: dict[str, Callable[[], int]] = {
        "plain": lambda: engine(False),
        "steered": lambda: engine(True),
        "usual": lambda: _usual_way(model, sae, prompts, pairs, new_tokens),
    }
    best = dict.fromkeys(sides, 0.0)
    for _ in range(rounds):
        for name, side in sides.items():
            start = clock()
            best[name] = max(best[name], side() / (clock() - start))
    what = f"clamped generation, d_sae {sae.d_sae:,}, {pairs} pairs × {len(prompts)} instructions × {new_tokens} tokens"
    how = (
        f"tokens per second of {where}, best of {rounds} interleaved rounds; batch {Engine(model).batch_size}"
    )
    usual = (
        f"encode and decode the whole SAE, one pair at a time, batch {len(prompts)}, transformers' generate"
    )
    few, many = (
        _products(model, n, clock, 1 if rounds == 1 else 10) for n in (ROWS, Engine(model).batch_size)
    )
    bound = (
        f"{how}; the model's matrix products alone: {few:,.0f} tokens/s at {ROWS} rows, {many:,.0f} at "
        f"{Engine(model).batch_size} (prompts not counted)"
    )
    return [
        Row(
            what,
            best["steered"],
            "tokens/s",
            "the same engine unsteered",
            best["plain"],
            True,
            "≥ 0.95 ×",
            how,
        ),
        Row(what, best["steered"], "tokens/s", usual, best["usual"], True, "≥ 3 ×", bound),
    ]


@torch.inference_mode()
def _products(model: LanguageModel, rows: int, clock: Callable[[], float], times: int) -> float:
    """Rows per second through every linear layer once: what generation of that many rows can't exceed."""
    layers = [m for m in model.hf.modules() if isinstance(m, torch.nn.Linear)]
    inputs = [torch.randn(rows, m.in_features).to(model.device, model.dtype) for m in layers]

    def once() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    once()
    best = 0.0
    for _ in range(times):
        start = clock()
        once()
        best = max(best, rows / (clock() - start))
    return best


def _usual_way(
    model: LanguageModel, sae: SAE, prompts: list[tuple[int, ...]], pairs: int, new_tokens: int
) -> int:
    """Tokens generated; texts that ended early are not counted on, though their rows are still computed."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[model.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    total = 0
    for feature in range(pairs):

        def edit(x: torch.Tensor, feature: int = feature) -> torch.Tensor:
            a = sae.encode(x)
            error = x - sae.decode(a)
            a[..., feature] = 30.0
            return sae.decode(a) + error

        with edit_residual(model, LAYER, edit), torch.inference_mode():
            out = model.hf.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=new_tokens,
                pad_token_id=model.pad_id,
            )
        for row in out[:, longest:].tolist():
            ends = [i for i, token in enumerate(row) if token in model.eos_ids]
            total += ends[0] + 1 if ends else len(row)
    return total


def _stability(model: LanguageModel, prompts: list[tuple[int, ...]], steps: int, draws: int) -> list[Row]:
    """How often a draw at temperature 1 changes when the same row is computed in another batch."""
    some = prompts[:4]
    together, forced = _logits(model, some, steps, None)
    alone = torch.cat([_logits(model, [p], steps, forced[b : b + 1])[0] for b, p in enumerate(some)])
    a, b = together.flatten(0, 1).float(), alone.flatten(0, 1).float()
    g = torch.Generator().manual_seed(0)
    changed = 0
    for _ in range(draws):
        keys = torch.randint(-(2**31), 2**31, (len(a), 2), generator=g, dtype=torch.int64).int().to(a.device)
        noise = exponentials(keys, a.shape[1]).log()
        changed += int(((a - noise).argmax(-1) != (b - noise).argmax(-1)).sum())
    u = torch.rand(len(a), 50 * draws, generator=g, dtype=torch.float64).to(a.device)
    sums = [x.double().softmax(-1).cumsum(-1) for x in (a, b)]
    inverse = (torch.searchsorted(sums[0], u) != torch.searchsorted(sums[1], u)).double().mean().item()
    # The race changes a draw with probability at most 2·TV / (1 + TV), TV the distance of the two distributions.
    tv = (a.double().softmax(-1) - b.double().softmax(-1)).abs().sum(-1) / 2
    bound = float((2 * tv / (1 + tv)).mean())
    dtype = str(model.dtype).removeprefix("torch.")
    what = (
        f"draws that change between batch 4 and batch 1, per million tokens, {dtype} on {model.device.type}"
    )
    note = (
        f"upper bound; seen {changed} of {len(a) * draws:,}; largest difference of a logit "
        f"{float((a - b).abs().max()):.1e}; at most {128 * bound:.1e} of 128-token texts"
    )
    return [Row(what, 1e6 * bound, "", "draws by inverse CDF", 1e6 * inverse, False, "", note)]


@torch.inference_mode()
def _logits(
    model: LanguageModel, prompts: list[tuple[int, ...]], steps: int, forced: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [rows, steps, vocab] of a greedy or forced continuation, with the tokens [rows, steps]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[model.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    cache, logits, tokens = new_cache(model.hf.config)[0], [], []
    for step in range(steps):
        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp(min=0)
        out = model.hf(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits.append(out.logits[:, -1].clone())
        tokens.append(logits[-1].argmax(-1) if forced is None else forced[:, step])
        ids, mask = tokens[-1][:, None], torch.nn.functional.pad(mask, (0, 1), value=1)
    return torch.stack(logits, 1), torch.stack(tokens, 1)
