"""What a run folder tells about labels, chosen strengths and max activations, for a quick look at steering.

An absent run knows nothing: then only feature numbers with absolute strengths are left. Must not load models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    from tagsteer.config import ModelConfig, RunConfig, SAEConfig

DEFAULT = Path("runs/demo")


@dataclass(frozen=True)
class Choice:
    """A feature and how far it is steered, in words of `Steerer.generate`."""

    feature: int
    strength: float
    unit: str
    kind: str
    label: str | None = None

    def __str__(self) -> str:
        what = f"feature {self.feature}" + (f" ({self.label})" if self.label else "")
        how = "its max activation" if self.unit == "max_activation" else "absolute"
        times = "times " if self.unit == "max_activation" else ""
        return f"{what}: {self.kind.replace('_', ' ')} at {self.strength:g} {times}{how}"


class Known:
    """A run's knowledge under a model and SAE that may be other ones than the run's."""

    def __init__(self, run: Path | None, model: str | None, sae: str | None, layer: int | None) -> None:
        if run is not None and not (run / "config.json").is_file():
            raise TagsteerError(
                f"{run} is no run folder (no config.json): run `tagsteer demo`, or give --run FOLDER of another"
            )
        self.folder = run or DEFAULT
        self._model, self._sae, self._layer = model, sae, layer

    @cached_property
    def config(self) -> RunConfig | None:
        """The run's configuration; None without a run."""
        from tagsteer.config import stored_config

        path = self.folder / "config.json"
        return stored_config(path) if path.is_file() else None

    @property
    def model(self) -> ModelConfig:
        """The model to load: the one named, else the run's, else the embedded one."""
        from tagsteer.config import ModelConfig

        own = ModelConfig() if self.config is None else self.config.model
        return own if self._model is None else own.model_copy(update={"name": self._model})

    @property
    def sae(self) -> SAEConfig:
        """The SAE to load, chosen like the model."""
        from tagsteer.config import SAEConfig

        own = SAEConfig() if self.config is None else self.config.sae
        if self._sae is not None and self._sae != own.name:
            own = SAEConfig(name=self._sae)
        return own if self._layer is None else own.model_copy(update={"layer": self._layer})

    def _own(self, why: str) -> RunConfig:
        """The run's configuration where its features are the ones that are steered."""
        if self.config is None:
            raise TagsteerError(
                f"{why} needs a run, and there is none at {self.folder}: run `tagsteer demo`, or give --run FOLDER"
            )
        if self.model.name != self.config.model.name or self.sae != self.config.sae:
            raise TagsteerError(
                f"{why} is known for {self.config.sae.name!r} on {self.config.model.name!r}, the SAE and model of "
                f"{self.folder}: leave out --model, --sae and --layer, or give --feature with --absolute"
            )
        return self.config

    def choose(
        self, feature: int | None, label: str | None, strength: float | None, absolute: bool
    ) -> Choice:
        """What is meant; a label stands for its best pair, at its chosen strength unless one is given."""
        if (feature is None) == (label is None):
            raise TagsteerError("give either --feature NUMBER or --label NAME")
        if absolute and strength is None:
            raise TagsteerError("--absolute needs --strength, the activation to steer to")
        config = self.config
        unit = "absolute" if absolute else "max_activation"
        if label is not None:
            config = self._own(f"label {label!r}")
            feature = self._feature_of(label)
            if strength is None:
                strength, unit = self._chosen_strength(label, feature), config.steer.unit
                if strength is None:
                    strength, unit = 1.0, "max_activation"
        assert feature is not None
        kind = "clamp" if config is None else config.steer.intervention
        choice = Choice(feature, 1.0 if strength is None else strength, unit, kind, label)
        self.check(choice)
        return choice

    def check(self, choice: Choice) -> None:
        """Refuse a strength in max activations where the feature has none."""
        if choice.unit == "max_activation" and choice.feature not in self.maxima:
            raise TagsteerError(
                f"feature {choice.feature} has no max activation in {self.folder} (it hardly ever fired): "
                "give --absolute with an activation as --strength"
            )

    def with_strength(self, choice: Choice, strength: float) -> Choice:
        """The same feature at another strength, in the unit that it has."""
        return replace(choice, strength=strength)

    def _feature_of(self, label: str) -> int:
        import polars as pl

        path = self.folder / "select" / "pairs.parquet"
        if not path.exists():
            raise TagsteerError(f"{self.folder} has no pairs yet: run `tagsteer select {self.folder}`")
        pairs = pl.read_parquet(path)
        row = pairs.filter(pl.col("label_name") == label).head(1)
        if len(row):
            return int(row["feature"][0])
        names = pairs["label_name"].unique(maintain_order=True).to_list()
        near = [name for name in names if label and label.casefold() in name.casefold()]
        if near:
            raise TagsteerError(f"unknown label of this run {label!r}: did you mean {' or '.join(near[:3])}?")
        raise one_of(label, names, "label of this run")

    def _chosen_strength(self, label: str, feature: int) -> float | None:
        """What the evaluation chose for a pair; None where it did not."""
        import polars as pl

        path = self.folder / "evaluate" / "pairs.parquet"
        if not path.exists():
            return None
        own = (pl.col("method") == "steered") & (pl.col("feature") == feature) & (pl.col("label") == label)
        chosen = pl.read_parquet(path).filter(own)["strength"]
        return float(chosen[0]) if len(chosen) and chosen[0] is not None else None

    @cached_property
    def maxima(self) -> dict[int, float]:
        """Robust max activations of the run's extraction, by feature."""
        import numpy as np

        from tagsteer.label.frequencies import Frequencies

        self._own("a strength in max activations")
        if not (self.folder / "extract" / "stage.json").exists():
            raise TagsteerError(
                f"{self.folder} has no max activations yet: run `tagsteer extract {self.folder}`"
            )
        maxima = Frequencies.load(self.folder / "extract").robust_max
        return {int(i): float(maxima[i]) for i in np.flatnonzero(np.isfinite(maxima))}
