"""Write docs/saes.md from the cards of the shipped SAEs: `make saes-page`."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "src" / "tagsteer" / "assets" / "saes"

HEAD = """# The shipped SAEs

<!-- written by `make saes-page` from the cards, do not edit -->

Trained by tagsteer for SmolLM2-135M-Instruct after layers 12 and 22 of 30 (0.40 and 0.76 of the depth, as in the
paper), BatchTopK, stored as JumpReLU with one threshold. `load_sae("smollm2-135m-instruct")` takes the default.
Positions 0, the constant start of the chat template, padding, and tokens with a residual norm above six medians
(attention sinks, fifty times the median) are kept out of training and of the figures, unless a column says otherwise.

"""

NOTES = """
- **EV**, **L0**: explained variance and active latents per token on text of kinds that training never saw (questions
  and answers of two other forums), typical tokens; **EV all** counts the outlier tokens too. L0 differs there from that
  on the training mix, which is the number in the name.
- **Dead**: latents that did not fire on the last 300,000 training tokens. **Silent** is the share that did not fire
  on the small held-out sample, an upper bound.
- **CE recovered**: (CE with the mean in place of x − CE with x̂) / (CE with the mean − CE plain), held-out text,
  {tokens} tokens of it.

## Which layer steers

The best feature of each of 58 WordNet labels (examples/layers.toml), clamped to a multiple of its robust maximum, on
a few instructions; *acting* are the pairs whose concept rating rises by more than 0.3 above the unsteered texts.
Few texts per pair and an offline judge: enough to choose a default, not to rank features.

{layers}

The middle layer acts on more labels at the same loss of the instruction, so `layer-12-l0-64` is the default. Matches
found at a prior of 0.05 (which counts missed documents) act more often than those at 0.001, WordNet's labels being
complete. Behind layer 12 the output score is near 0 for features that act and does not predict which do; behind
layer 22 promoted tokens are often readable.

## How they were made

Each card holds its settings. The commands are

```
{commands}
```

Each shipped file is the one that its command wrote on two CPU cores. The held-out text is harder than the training
mix, so L0 differs there; at the L0 of its name, by thresholds raised or lowered together (docs/sae_at_l0.py prints
such rows), each SAE has

{at_l0}

Residuals were made in bfloat16 and cached once per layer; the weights are stored in float16.
"""


def main() -> None:
    lines = [
        "| SAE | latents | MB | EV | EV all | L0 | CE plain | CE recovered | dead | silent | training EV, L0 |"
    ]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    commands, at_l0 = [], []
    tokens: set[str] = set()
    for folder in sorted(SHIPPED.glob("*/*/")):
        head = json.loads((folder / "card.json").read_text("utf-8"))
        card, training = head["card"], head["card"]["training"]
        size = (folder / "sae.safetensors").stat().st_size / 1e6
        lines.append(
            f"| {folder.parent.name}/{folder.name} | {head['d_sae']:,} | {size:.1f} | {card['explained_variance']:.3f} "
            f"| {card['explained_variance_with_outliers']:.3f} | {card['l0']:.1f} | {card['cross_entropy']:.2f} "
            f"| {card['cross_entropy_recovered']:.3f} | {training['dead_share']:.1%} | {card['dead_share']:.1%} "
            f"| {training['explained_variance']:.3f}, {training['l0']:.1f} |"
        )
        tokens.add(f"{card['held_out_tokens']:,}")
        other = card["at_other_threshold"]
        at_l0.append(
            f"- {folder.name}: explained variance {other['explained_variance']:.3f} at L0 {other['l0']:.1f} "
            f"(thresholds × {other['factor']:g})"
        )
        commands.append(f"{card['command']} --out saes/{folder.name}")
    layers = ["| SAE | prior | strength | pairs | acting | mean rise | instruction | fluency |"]
    layers += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in json.loads((ROOT / "docs" / "layer-comparison.json").read_text("utf-8")):
        name = row["sae"].partition("/")[2]
        figures = f"{row['mean_rise']:+.3f} | {row['instruction']:.2f} | {row['fluency']:.2f}"
        layers.append(
            f"| {name} ({row['dtype']}) | {row['prior']:g} | {row['strength']:g} "
            + f"| {row['pairs']} | {row['acting']} | {figures} |"
        )
    layers += ["", f"Judge: {row['judge']}."]
    page = (
        HEAD
        + "\n".join(lines)
        + "\n"
        + NOTES.format(
            tokens=" or ".join(sorted(tokens)),
            commands="\n".join(commands),
            layers="\n".join(layers),
            at_l0="\n".join(at_l0),
        )
    )
    (ROOT / "docs" / "saes.md").write_text(page, "utf-8")


if __name__ == "__main__":
    main()
