"""The offline judge's card for readers: every figure is read from card.json, which train_judge.py measures."""

from __future__ import annotations

from typing import Any

from tagsteer.judge.learned import HEADS

TARGETS = {"concept": 0.80, "instruction": 0.76, "fluency": 0.70, "overall": 0.78}
TARGETS_SAE = {"concept": 0.85, "instruction": 0.85, "fluency": 0.80}
TRIED = (
    "Perplexity in gentler forms on the same 2,560 texts (few small trees on the slow inputs and the first sums alone, "
    "or on what the first trees left over): overall .73 to .74 where the first trees alone have .74.",
    "A network of two layers on MiniLM's vectors of all six layers (mean, spread, last 24 tokens), their products with "
    "concept and instruction, and the inputs above, mixed half and half with the trees: .005 more for concept, .017 for "
    "instruction, .014 for fluency, .008 overall (19,456 texts, 4 folds); not worth 3 MB and a second kind of weights.",
    "Larger trees (400 of 24 leaves): .005 more for instruction, nothing for fluency. 32 components of MiniLM's third "
    "layer as inputs too: .004 more for instruction, .005 for fluency (26,624 texts).",
    "Not tried, for want of a GPU: a language model trained on the ratings itself.",
)
HEAD = ["| | concept | instruction | fluency | overall |", "|---|--:|--:|--:|--:|"]


def lines_of(card: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The lines of those entries that were measured."""
    return [line(name, card[key]) for key, name in names.items() if key in card]


def line(name: str, found: dict[str, Any], key: str = "spearman") -> str:
    cells = ("—" if found[key].get(h) is None else f"{found[key][h]:.2f}" for h in HEADS)
    return f"| {name} | " + " | ".join(cells) + " |"


def markdown(card: dict[str, Any], size: int) -> str:
    """card.json as a page."""
    held, read = card["held_out_concepts"], card.get("held_out_with_perplexity")
    lines = [
        f"# The offline judge `{card['version']}`",
        "",
        "Written by `python -m benchmarks.train_judge`; do not edit. Not gpt-4o-mini: a model of its ratings.",
        "",
        f"Trained on {card['source']}, {card['concepts']} concepts, rated by {card['judge']};",
        f"{card['short_rows']:,} of them also with their concept named by a short tag. Inputs: MiniLM similarities,",
        "word overlap, repetition, counts and components of the text's vector; no network. Gradient-boosted trees,",
        f"{size / 1e6:.1f} MB. Every figure below is of concepts that were not seen in training ({card['folds']} folds by",
        "concept); calibration too is read off other folds.",
        "",
        "## Spearman correlation with gpt-4o-mini", "", *HEAD,
        line("unseen concepts, all texts", held),
        *lines_of(card, {"held_out_even_mix": "the same number of texts of each concept and method"}),
        line("the concept given as a short tag", card["held_out_short_tags"]),
        *(line(f"{m} alone", found) for m, found in card["by_method"].items()),
        *lines_of(card, {"held_out_method_sae": "SAE steering, judge trained without it"}),
        "| *target* | " + " | ".join(f"{TARGETS[h]:.2f}" for h in HEADS) + " |",
        "| *target, SAE steering* | " + " | ".join(f"{TARGETS_SAE[h]:.2f}" if h in TARGETS_SAE else "" for h in HEADS) + " |",
        line("ceiling: gpt-4o-mini judged twice (62 texts)", card["ceiling_judged_twice"]),
        line("floor: rules", card["floor_rules"]),
    ]  # fmt: skip
    if read:
        lines += [
            "", "## With perplexity" if card.get("slow_trees") else "## Perplexity: tried, no better, not shipped", "",
            "A second set of trees reads what SmolLM2-135M-Instruct finds surprising in the text, and in the concept and",
            f"the instruction after it. Trained and measured on {card['texts_read']:,} of the texts, evenly over concepts and",
            "methods; many times slower.", "", *HEAD,
            line("with perplexity", read), line("without it, same texts", card["held_out_same_texts_without"]),
            *(line(f"{m} alone, with", found) for m, found in card["by_method_with_perplexity"].items()),
        ]  # fmt: skip
    lines += [
        "", "## Mean absolute error", "", *HEAD,
        line("unseen concepts", held, "mean_absolute_error"),
        line("ceiling", card["ceiling_judged_twice"], "mean_absolute_error"),
        line("floor: rules", card["floor_rules"], "mean_absolute_error"),
        line("floor: constant", card["floor_constant"], "mean_absolute_error"),
        "", "## Means: judged minus real (asked for: within 0.08)", "", *HEAD,
        *(
            f"| {m} | " + " | ".join(f"{d[h]:+.3f}" for h in HEADS) + " |"
            for m, d in card["method_means"]["difference"].items()
        ),
        line("rank correlation of concept means", card["concept_means"]),
        line("rank correlation of method means", card["method_means"]),
        "", "## Choice of factor", "", *_choice(card["factor_choice"]),
        *_curve(card.get("learning_curve")),
        *_absent(card),
        "", "## Also tried, and not shipped", "",
        "Trials by hand in November 2026 on the same folds, before this training; no command of the repository repeats",
        "them.", "", *(f"- {trial}" for trial in TRIED),
        "", "## Confusion (rows: gpt-4o-mini's 0, 1, 2; columns: rounded)", "",
        *(f"- {h}: {m}" for h, m in held["confusion"].items()),
        "", "## Calibration (mean judged → mean real, by tenths)", "",
        *(f"- {h}: " + ", ".join(f"{p:.2f} → {r:.2f}" for p, r, _ in c) for h, c in held["calibration"].items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _curve(curve: dict[str, Any] | None) -> list[str]:
    if curve is None:
        return []
    shown = [line(name, {"spearman": found}) for name, found in curve.items()]
    return ["", "## Learning curve (Spearman, half of the folds)", "", *HEAD, *shown]


def _absent(card: dict[str, Any]) -> list[str]:
    named = {
        "held_out_method_sae": "a judge trained without SAE steering",
        "learning_curve": "the learning curve",
    }
    absent = [name for key, name in named.items() if key not in card]
    return ["", f"Not measured for this version: {', '.join(absent)}."] if absent else []


def _choice(choice: dict[str, Any]) -> list[str]:
    return [
        f"{choice['choices']} choices (method and concept; chosen on half of the instructions, scored on the rest by",
        f"gpt-4o-mini): score {choice['score_of_judged_choice']} by this judge's choice, "
        f"{choice['score_of_real_choice']} by gpt-4o-mini's own,",
        f"share {choice['share_of_real_choice']} (asked for: 0.92); best factor on the scored half itself "
        f"{choice['upper_bound']}.",
    ]
