"""Commands beside a run: doctor, train-sae."""

from __future__ import annotations

from pathlib import Path

import typer

from tagsteer.cli import app, terminal


@app.command()
def doctor(
    sae: str | None = typer.Option(None, help="Measure this SAE on sample texts."),
    model: str = typer.Option("smollm2-135m-instruct", help="The model that the SAE is for."),
    layer: int | None = typer.Option(None, help="Layer, where the SAE's file does not say it."),
) -> None:
    """What is here, what would be downloaded, and which device and precision would be used, and why."""
    from tagsteer.doctor import check_sae, report

    if sae is None:
        for line in report():
            print(line)
    else:
        with terminal():
            lines = check_sae(sae, model, layer)
        print("\n".join(lines))


@app.command("train-sae")
def train_sae(
    config: Path = typer.Argument(..., help="Training file (TOML); examples/saes/ has some."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the SAE, its card and its checkpoint."),
) -> None:
    """Train an SAE on a model's residual stream; the same command goes on after an interrupt."""
    from tagsteer.training import train_from_config

    with terminal():
        lines = train_from_config(config, out)
    print("\n".join(lines))
