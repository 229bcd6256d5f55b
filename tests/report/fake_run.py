"""A made-up run folder with the files that the stages write; its evaluation is the real `summarise`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tagsteer.config import RunConfig
from tagsteer.evaluate.summary import summarise

LABELS = ("beverage", "musical instrument", "disease", "vehicle", "fabric", "bird")
WORDS = {
    "beverage": "tea coffee juice brew cup",
    "musical instrument": "flute violin drum strings melody",
    "disease": "fever infection symptom illness cough",
    "vehicle": "wagon truck wheels engine ride",
    "fabric": "wool silk weave cotton thread",
    "bird": "feather wing sparrow nest beak",
}
INSTRUCTIONS = (
    "Write a short letter to a friend who is moving to another town.",
    "Explain how to plan a quiet weekend.",
    "Describe what makes a good neighbour.",
    "Give three tips for learning something new.",
    "Tell a story that begins on a rainy morning.",
    "What should a visitor know about your street?",
    "Suggest a name for a small shop.",
    "Summarise why people keep diaries.",
)
PLAIN = (
    "Take the time that you need, and start with one small thing. Friends help, and so does a plan that you "
    "can change when the day turns out otherwise. Nothing has to be perfect at first."
)
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
JUDGE = (
    "offline judge, not gpt-4o-mini (offline-2: MiniLM similarities and word overlap; fluency by repetition)"
)


def make_run(
    folder: Path,
    *,
    labels: tuple[str, ...] = LABELS,
    instructions: int = 8,
    prompt: bool = True,
    generation: str | None = None,
    token: str | None = None,
    missing: int = 3,
    seed: int = 0,
) -> Path:
    """Write a run folder; `generation` and `token` replace texts and a token of each evidence document."""
    rng = np.random.default_rng(seed)
    for stage in ("corpus", "extract", "score", "select", "steer", "judge", "evaluate"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        _json(
            folder / stage / "stage.json",
            {"result": {}, "version": "0.1.0", "seconds": 3.2, "finished": "2026-01-02"},
        )
    config = RunConfig.model_validate(
        {"name": "made up", "corpus": {"kind": "wordnet"}, "steer": {"strengths": STRENGTHS}}
    )
    (folder / "config.json").write_text(config.model_dump_json(indent=1))
    skipped = {"counts": {"no text": 12}, "examples": {"no text": ["data.noun:31 no definition"]}}
    _json(folder / "corpus/corpus.json", {
        "format": 1, "source": "WordNet 3.0 nouns", "documents": 82115, "labels": 19045, "has_texts": True,
        "skipped": skipped,
    })  # fmt: skip
    pairs = _pairs(labels, rng)
    pairs.write_parquet(folder / "select/pairs.parquet")
    _filters(len(pairs)).write_parquet(folder / "select/filters.parquet")
    evidence = [_evidence(row, rng, token) for row in pairs.iter_rows(named=True)]
    _json(folder / "select/evidence.json", evidence)
    _json(folder / "steer/methods.json", {
        "methods": {"steered": "selected by calibrated F1", "unsteered": "no intervention",
                    "random": "random features of 1,931, seed 0", "prompt": "steering prompts by a template"},
        "instructions": "tagsteer's own 100 instructions", "digest": "0" * 16,
    })  # fmt: skip
    cells = _cells(pairs, instructions, prompt, generation, rng)
    cells.drop("concept", "instruction", "fluency", "reason").rename(
        {"instruction_text": "instruction"}
    ).write_parquet(folder / "steer/generations.parquet")
    some = pl.int_range(pl.len()).is_in(list(range(4, 4 + missing)))
    ratings = cells.with_columns(
        concept=pl.when(some).then(None).otherwise("concept"),
        reason=pl.when(some).then(pl.lit("no rating in the reply")).otherwise("reason"),
    )
    ratings.drop("instruction_text").write_parquet(folder / "judge/ratings.parquet")
    _json(
        folder / "judge/judge.json",
        {"name": "offline judge, not gpt-4o-mini", "version": "offline-2", "description": JUDGE},
    )
    summarise(ratings, judge=JUDGE, repeats=2, splits=2, date="2026-01-02").save(folder / "evaluate")
    return folder


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _pairs(labels: tuple[str, ...], rng: np.random.Generator) -> pl.DataFrame:
    rows = []
    for i, label in enumerate(labels):
        f1 = 0.62 - 0.07 * i
        rows.append({
            "pair": i, "feature": 1000 + 137 * i, "label": i, "f1": f1, "threshold": 0.1, "tp": 90, "fp": 20, "fn": 60,
            "tn": 900, "precision": 0.82, "recall": 0.6, "support": 150, "label_name": label,
            "heldout_f1": f1 - 0.05 if i != 2 else None, "heldout_f1_low": f1 - 0.15 if i != 2 else None,
            "heldout_f1_high": f1 + 0.04 if i != 2 else None, "heldout_support": 45,
            "q_value": [2e-5, 0.0004, 0.012][i % 3],
            "group": i, "representative": True, "group_size": 1, "jaccard": None, "cosine": None,
            "output_score": float(0.002 + 0.4 * rng.random()), "max_activation": 12.5 + i,
            "exact_max_activation": 19.0 + i,
            "n_docs_active": 2400 - 100 * i,
            "lens_tokens": [f" {w}" for w in WORDS.get(label, "a b c").split()] + ["\n", "<|im_end|>", " le"],
            "promoted_tokens": [*WORDS.get(label, "a b c").split(), " the"],
        })  # fmt: skip
    return pl.DataFrame(
        rows, infer_schema_length=None, schema_overrides={"jaccard": pl.Float64, "cosine": pl.Float64}
    )


def _filters(left: int) -> pl.DataFrame:
    return pl.DataFrame({
        "filter": ["support", "output_score", "q_value", "representative", "top_k"],
        "requirement": [">= 50", ">= 0.001", None, None, f"first {left}"],
        "before": [400, 380, 200, 200, 200], "removed": [20, 180, 0, 0, 200 - left],
        "missing": [0, 4, 0, 0, 0], "after": [380, 200, 200, 200, left],
    })  # fmt: skip


def _evidence(row: dict[str, Any], rng: np.random.Generator, token: str | None) -> dict[str, Any]:
    words = WORDS.get(row["label_name"], "one two three four five").split()
    documents = []
    for n in range(5):
        a, b, c = (words[(n + k) % 5] for k in range(3))
        text = f"{a}: a kind of {b} that people make by hand, known for its {c}"
        tokens = ["<|im_start|>", *text.replace(" ", "\0 ").split("\0")]
        if token is not None:
            tokens[3] = token
        activations = [40.0] + [
            float(9 * rng.random()) if any(w in t for w in words) else 0.0 for t in tokens[1:]
        ]
        best = 1 + int(np.argmax(activations[1:]))
        documents.append({
            "document": n, "document_id": f"{words[0]}.n.{n:02}", "has_label": n != 3, "frequency": 0.3 - 0.02 * n,
            "max_activation": activations[best], "most_active": best, "token_ids": list(range(len(tokens))),
            "tokens": tokens, "activations": activations, "counted": [False] + [True] * (len(tokens) - 1),
        })  # fmt: skip
    return {"feature": row["feature"], "label": row["label_name"], "documents": documents, "n_active": 2400}


def _cells(
    pairs: pl.DataFrame, n: int, prompt: bool, generation: str | None, rng: np.random.Generator
) -> pl.DataFrame:
    rows = []
    methods = ("steered", "unsteered", "random", *(["prompt"] if prompt else []))
    for method in methods:
        tried = STRENGTHS if method in ("steered", "random") else (None,)
        for pair in pairs.iter_rows(named=True):
            words = WORDS.get(pair["label_name"], "one two three four five").split()
            for i in range(n):
                for s in tried:
                    concept = {"unsteered": 0.05, "random": 0.1, "prompt": 1.4}.get(
                        method, min(2, 0.7 * (s or 0))
                    )
                    harm = 0.35 * (s or 0) ** 1.5 if method in ("steered", "random") else 0.1
                    chatter = (
                        " ".join(words[int(k)] for k in rng.integers(0, 5, int(4 * (s or 0))))
                        if method == "steered"
                        else ""
                    )
                    feature = {"steered": pair["feature"], "random": 3000 + pair["pair"]}.get(method)
                    rows.append({
                        "method": method, "label": pair["label_name"], "feature": feature, "strength": s,
                        "value": None if s is None else s * pair["max_activation"], "instruction_id": i,
                        "instruction_text": INSTRUCTIONS[i % len(INSTRUCTIONS)],
                        "generation": generation or f"{PLAIN} {chatter}".strip(), "finish": "length", "n_tokens": 60,
                        "digest": f"{len(rows):x}", "pair": pair["pair"],
                        "concept": round(float(np.clip(concept + 0.3 * rng.normal(), 0, 2)), 2),
                        "instruction": round(float(np.clip(1.7 - harm + 0.2 * rng.normal(), 0, 2)), 2),
                        "fluency": round(float(np.clip(1.9 - harm + 0.2 * rng.normal(), 0, 2)), 2), "reason": None,
                    })  # fmt: skip
    schema = {"feature": pl.Int64, "strength": pl.Float64, "value": pl.Float64, "reason": pl.String}
    return pl.DataFrame(rows, infer_schema_length=None, schema_overrides=schema)
