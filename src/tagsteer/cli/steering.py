"""Commands for a quick look at steering: generate, chat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tagsteer.cli import app, terminal
from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    from tagsteer.steer.steerer import Steerer

_MODEL = typer.Option("smollm2-135m-instruct", help="Embedded name, hub id or folder.")
_SAE = typer.Option("smollm2-135m-instruct", help="Embedded name, hub id with file, folder or file.")
_RUN = typer.Option(
    Path("runs/demo"), "--run", help="Run folder that labels and max activations are read from."
)
_FEATURE = typer.Option(None, help="Feature to steer, by its number.")
_LABEL = typer.Option(None, help="Label to steer, as a run has named it.")
_LAYER = typer.Option(None, help="Layer, where the SAE's file does not say it.")
_STRENGTH = typer.Option(
    None, help="Multiple of the feature's max activation; default: the run's choice, else 1."
)


@app.command()
def generate(
    prompt: str = typer.Argument(..., help="What to ask the model."),
    feature: int | None = _FEATURE,
    label: str | None = _LABEL,
    strength: float | None = _STRENGTH,
    absolute: bool = typer.Option(False, "--absolute", help="The strength is an activation, not a multiple."),
    run: Path = _RUN,
    model: str = _MODEL,
    sae: str = _SAE,
    layer: int | None = _LAYER,
    max_new_tokens: int = typer.Option(128, min=1),
    temperature: float = typer.Option(1.0, min=0.0, help="0 is greedy."),
    seed: int = typer.Option(0),
) -> None:
    """Answer a prompt while a feature, or the feature of a label, is clamped."""
    with terminal(decisions=False):
        known = _Known(run)
        feature, strength = known.resolve(feature, label, strength, absolute)
        steerer = _steerer(model, sae, layer, {} if absolute else known.maxima(feature))
        unit = "absolute" if absolute else "max_activation"
        text = steerer.generate(
            prompt,
            {feature: strength},
            unit=unit,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
    print(text)


@app.command()
def chat(
    feature: int | None = _FEATURE,
    label: str | None = _LABEL,
    strength: float | None = _STRENGTH,
    run: Path = _RUN,
    model: str = _MODEL,
    sae: str = _SAE,
    layer: int | None = _LAYER,
    temperature: float = typer.Option(0.7, min=0.0),
) -> None:
    """Talk to the steered model; /label NAME, /feature N, /strength X, /off, /reset and /quit change it."""
    known = _Known(run)
    feature, strength = known.resolve(feature, label, strength, False)
    with terminal(decisions=False):
        steerer = _steerer(model, sae, layer, known.all_maxima())
    turns: list[tuple[str, str]] = []
    active = True
    print(f"Feature {feature} at {strength:g} times its max activation. /quit ends.")
    while True:
        try:
            line = input("\nyou> ").strip()
        except EOFError:
            print()
            return
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/label":
                feature, strength = known.resolve(None, rest.strip(), None, False)
            elif word == "/feature":
                feature = int(rest)
            elif word == "/strength":
                strength = float(rest)
            elif word == "/off":
                active = False
            elif word == "/reset":
                turns = []
            elif line:
                turns.append(("user", line))
                answer = ""
                steering = {feature: strength} if active else None
                for piece in steerer.stream(
                    turns, steering, unit="max_activation", temperature=temperature, seed=len(turns)
                ):
                    print(piece, end="", flush=True)
                    answer += piece
                print()
                turns.append(("assistant", answer))
            if word.startswith("/"):
                active = active or word in ("/label", "/feature", "/strength")
                print(f"feature {feature} at {strength:g}" if active else "unsteered")
        except (TagsteerError, ValueError) as error:
            print(f"tagsteer: {error}")


def _steerer(model: str, sae: str, layer: int | None, maxima: dict[int, float]) -> Steerer:
    from tagsteer.lm.model import load_model
    from tagsteer.sae.loading import load_sae
    from tagsteer.steer.steerer import Steerer

    return Steerer(load_model(model), load_sae(sae, layer=layer), maxima)


class _Known:
    """What a run folder knows of labels, chosen strengths and max activations; an absent one knows nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _need(self, file: str, why: str) -> Path:
        path = self.folder / file
        if not path.exists():
            raise TagsteerError(
                f"{why} needs a run, and {path} does not exist: run `tagsteer demo`, or give --run"
            )
        return path

    def resolve(
        self, feature: int | None, label: str | None, strength: float | None, absolute: bool
    ) -> tuple[int, float]:
        """The feature and strength meant; a label stands for its best pair at its chosen strength."""
        import polars as pl

        if (feature is None) == (label is None):
            raise TagsteerError("give either --feature NUMBER or --label NAME")
        if feature is None:
            pairs = pl.read_parquet(self._need("select/pairs.parquet", f"label {label!r}"))
            row = pairs.filter(pl.col("label_name") == label).head(1)
            if not len(row):
                raise one_of(
                    label, pairs["label_name"].unique(maintain_order=True).to_list(), "label of this run"
                )
            feature = int(row["feature"][0])
            scored = self.folder / "evaluate" / "pairs.parquet"
            if strength is None and scored.exists() and not absolute:
                chosen = pl.read_parquet(scored).filter(
                    (pl.col("method") == "steered")
                    & (pl.col("feature") == feature)
                    & (pl.col("label") == label)
                )["strength"]
                strength = float(chosen[0]) if len(chosen) and chosen[0] is not None else None
        if strength is None and absolute:
            raise TagsteerError("--absolute needs --strength, the activation to clamp to")
        return feature, 1.0 if strength is None else strength

    def maxima(self, feature: int) -> dict[int, float]:
        found = self.all_maxima()
        if feature not in found:
            raise TagsteerError(
                f"feature {feature} never fired in {self.folder}, so its max activation is not known: "
                "give --absolute with an activation as --strength"
            )
        return found

    def all_maxima(self) -> dict[int, float]:
        """Robust max activations of the run's extraction, by feature."""
        import numpy as np

        from tagsteer.label.frequencies import Frequencies

        self._need("extract/stage.json", "a strength in max activations")
        maxima = Frequencies.load(self.folder / "extract").robust_max
        return {int(i): float(maxima[i]) for i in np.flatnonzero(np.isfinite(maxima))}
