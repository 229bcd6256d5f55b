"""Commands on a run folder: demo, run, one per stage (judge and evaluate are in judging.py), show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tagsteer.cli import app, terminal
from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    from tagsteer.run import Run

TARGET = typer.Argument(..., help="Run folder, or an experiment file to begin one.")
OUT = typer.Option(None, "--out", "-o", help="Run folder; by default runs/NAME under the current folder.")


@app.command()
def demo(out: Path = typer.Option(Path("runs/demo"), "--out", "-o", help="Run folder.")) -> None:
    """The whole way on a real model: WordNet, SmolLM2 and an SAE of ours, to a page, without key or GPU."""
    from importlib import resources

    with resources.as_file(resources.files("tagsteer.assets").joinpath("demo.toml")) as path:
        execute(_new_run(path, out), "report")


@app.command()
def run(
    config: Path = typer.Argument(..., help="Experiment file (TOML); examples/ has some."),
    out: Path | None = OUT,
    until: str = typer.Option("report", help="Last stage to run."),
) -> None:
    """Run an experiment; what is done already is not done again."""
    execute(_new_run(config, out), until)


def _new_run(config: Path, out: Path | None) -> Run:
    from tagsteer.config import load_config
    from tagsteer.run import Run

    settings = load_config(config)
    return Run(settings, out or Path("runs") / settings.name)


def open_run(folder: Path) -> Run:
    """The run of a folder; one that is no run's, or of another version, is a one-line error."""
    from tagsteer.config import stored_config
    from tagsteer.run import Run

    if not (folder / "config.json").is_file():
        raise TagsteerError(
            f"{folder} is no run folder (no config.json): give the folder that `tagsteer run` made"
        )
    return Run(stored_config(folder / "config.json"), folder)


def run_of(target: Path, out: Path | None) -> Run:
    """The run of a folder, or a new one of an experiment file."""
    if target.is_dir():
        if out is not None and out.resolve() != target.resolve():
            raise TagsteerError(f"{target} is a run folder already: --out is for experiment files")
        return open_run(target)
    if target.suffix != ".toml":
        raise TagsteerError(f"{target} is neither a run folder nor a .toml experiment file")
    return _new_run(target, out)


def execute(run: Run, until: str) -> None:
    """Run the stages up to `until`, saying what each did on stderr; after the last, print the results."""
    from rich.console import Console
    from rich.text import Text

    from tagsteer.run import STAGE_NAMES, STAGES

    if until not in STAGE_NAMES:
        from tagsteer.errors import one_of

        raise one_of(until, STAGE_NAMES, "stage")
    console = Console(stderr=True)

    def tell(stage: str, text: str) -> None:
        place = f"[{STAGE_NAMES.index(stage) + 1}/{len(STAGES)}] {stage}"
        console.print(Text(place, style="bold"), Text(text), soft_wrap=True)

    with terminal():
        run.execute(until, tell)
    if until == "report":
        print_results(run.folder)


def print_results(folder: Path) -> None:
    """The short table and the path of the page, on stdout."""
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tagsteer.report.tables import short_table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _SHORT_HEADS:
        table.add_column(name, justify="left" if name == "label" else "right", overflow="fold")
    for row in short_table(folder):
        table.add_row(*(Text(_shown(value)) for value in row[: len(_SHORT_HEADS)]))
    console = Console()
    console.print(table)
    head = json.loads((folder / "evaluate" / "summary.json").read_text("utf-8"))["provenance"]
    line = f"{head['protocol_line']}; judge: {head['judge']}; {head['n_missing']} ratings missing"
    console.print(
        Text(
            f"floor: the unsteered texts; random: a random feature, both on the same label. {line}",
            style="dim",
        )
    )
    page = folder / "report" / "report.html"
    if page.exists():
        console.print(Text(f"Report: {page.resolve()}", style="bold"), soft_wrap=True)


_SHORT_HEADS = (
    "label", "feature", "F1 calibr.", "output", "strength", "overall", "floor", "random"
)  # fmt: skip


def _shown(value: str | float | None) -> str:
    if value is None:
        return "-"
    return (
        (f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}")
        if isinstance(value, float) and value
        else str(value)
    )


@app.command()
def show(folder: Path = typer.Argument(..., help="Run folder.")) -> None:
    """What a run has done, and its results as far as they are there."""
    from tagsteer.run import STAGES

    existing = open_run(folder)
    complete = True
    for stage in STAGES:
        found = existing.done(stage.name)
        complete = complete and found is not None
        print(f"{stage.name:9} {'not done' if found is None else stage.says.format(**found['result'])}")
    if complete:
        print_results(folder)


def _stage_command(name: str, sentence: str) -> None:
    def command(
        target: Path = TARGET,
        out: Path | None = OUT,
    ) -> None:
        run = run_of(target, out)
        execute(run, name)
        if name == "corpus":
            _describe_corpus(run)

    command.__doc__ = f"{sentence} Earlier stages that are missing run first."
    app.command(name=name)(command)


def _describe_corpus(run: Run) -> None:
    """Documents, labels per support threshold, and what was skipped and why, on stdout."""
    from tagsteer.corpus.describe import describe

    for section, item, count, detail in describe(run.corpus).iter_rows():
        print(f"{section:9}  {item:36}  {count:>11,}  {detail}".rstrip())


for _name, _sentence in {
    "corpus": "Read the tagged documents and say what is in them.",
    "extract": "Measure how often each feature is active on each document.",
    "score": "Score every feature against every label.",
    "select": "Filter the matches to pairs worth steering.",
    "steer": "Generate steered texts and those of the baselines.",
    "report": "Write the page, the figures and the CSV files.",
}.items():
    _stage_command(_name, _sentence)
