"""Commands around ratings: judge, evaluate, train-judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tagsteer.cli import app, terminal
from tagsteer.cli.runs import OUT, TARGET, execute, print_results, run_of
from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    import polars as pl

    from tagsteer.judge.calibration import Calibration
    from tagsteer.run import Run

JUDGES = ("offline", "server", "local")


@app.command()
def judge(
    target: Path = TARGET,
    out: Path | None = OUT,
    kind: str | None = typer.Option(
        None, "--judge", help="offline, server or local, instead of the configuration's."
    ),
    judge_model: str | None = typer.Option(
        None, help="The judge's model: its name at the server, one of transformers, or a file of train-judge."
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Say what judging would take and cost; send nothing."
    ),
    max_cost: float | None = typer.Option(
        None, min=0.0, help="Stop before more than this is spent, in the unit of the prices."
    ),
    calibrate: int | None = typer.Option(
        None,
        min=1,
        help="Rate offline, let an LLM judge (--judge server or local) rate N of the texts, compare.",
    ),
    correct: bool = typer.Option(
        False, "--correct", help="With --calibrate: means corrected by prediction-powered inference."
    ),
) -> None:
    """Rate the texts. Earlier stages that are missing run first; what is rated already is not rated again."""
    if kind is not None and kind not in JUDGES:
        raise one_of(kind, list(JUDGES), "judge")
    if correct and calibrate is None:
        raise TagsteerError("--correct needs --calibrate N, the number of texts that an LLM judge rates")
    if calibrate is not None and dry_run:
        raise TagsteerError("--dry-run is of the whole run: give it without --calibrate")
    run = run_of(target, out)
    llm = "server" if kind is None else kind
    changes: dict[str, Any] = {} if max_cost is None else {"max_cost": max_cost}
    if judge_model is not None:
        changes |= _model_of(run, llm if calibrate is not None else kind, judge_model)
    if calibrate is not None:
        if llm == "offline":
            raise TagsteerError(
                "--calibrate compares the offline judge with an LLM: give --judge server or local"
            )
        _calibrate(_with(run, changes), calibrate, llm, correct)
        return
    if kind is not None:
        changes["kind"] = kind
    run = _with(run, changes)
    if dry_run:
        from tagsteer.stages.judges import estimate_lines

        with terminal():
            lines = estimate_lines(run)
        print("\n".join(lines))
        return
    _forget_incomplete(run)
    execute(run, "judge")


def _forget_incomplete(run: Run) -> None:
    """An LLM's judgement with missing ratings is begun again: what is settled is neither asked nor paid twice."""
    from tagsteer.stages.judges import judge_kind

    found = run.done("judge")
    if found and found["result"]["missing_ratings"] and judge_kind(run.config.judge)[0] != "offline":
        (run.folder / "judge" / "stage.json").unlink()


def _model_of(run: Run, kind: str | None, name: str) -> dict[str, Any]:
    """The setting that --judge-model stands for."""
    from tagsteer.stages.judges import judge_kind

    kind = kind or judge_kind(run.config.judge)[0]
    if kind == "server":
        return {"model": name}
    if kind == "offline":
        return {"weights": str(Path(name).expanduser().resolve())}
    local = run.config.judge.local
    return {"local": {**({} if local is None else local.model_dump()), "model": name}}


def _with(run: Run, changes: dict[str, Any]) -> Run:
    """The run under other settings of its judge, which become those of its folder once a stage is executed."""
    from tagsteer.config import with_judge
    from tagsteer.run import Run

    return Run(with_judge(run.config, **changes), run.folder) if changes else run


def _calibrate(run: Run, n: int, llm: Any, correct: bool) -> None:
    """Offline ratings of all texts, then those of the LLM for a sample."""
    from tagsteer.stages.judges import calibrate_run, judge_kind

    # Refused before the offline judge works for minutes.
    if llm == "server":
        run.config.judge.server.api_key()
    if run.config.judge.kind == "auto" and judge_kind(run.config.judge)[0] != "offline":
        run = _with(run, {"kind": "offline"})
    execute(run, "judge")
    with terminal():
        found = calibrate_run(run, n, llm, correct)
    for line in calibration_lines(found, correct):
        print(line)
    print(f"written to {run.folder / 'judge' / 'calibration.json'}")


def calibration_lines(found: Calibration, correct: bool) -> list[str]:
    """The agreement, and with `correct` the corrected means."""
    import dataclasses

    return list((found if correct else dataclasses.replace(found, corrected={})).lines())


@app.command()
def evaluate(
    target: Path | None = typer.Argument(None, help="Run folder, or an experiment file to begin one."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Run folder; with --from-axbench a folder for its tables as CSV and JSON."
    ),
    from_axbench: Path | None = typer.Option(
        None, help="Output folder of AxBench, evaluated by AxBench's own protocol instead of a run."
    ),
    suppression: bool = typer.Option(
        False, "--suppression", help="With --from-axbench: score 2 - concept instead of concept."
    ),
    family: str = typer.Option(
        "auto", help="With --from-axbench: how its rows were scored, A, B or C, where the data cannot tell."
    ),
) -> None:
    """Choose strengths by cross-validation and compare with the baselines. Missing stages run first."""
    if from_axbench is None:
        if target is None:
            raise TagsteerError("give a run folder, or --from-axbench FOLDER")
        if suppression or family != "auto":
            raise TagsteerError("--suppression and --family belong to --from-axbench FOLDER")
        run = run_of(target, out)
        execute(run, "evaluate")
        print_results(run.folder)
        return
    if target is not None:
        raise TagsteerError(f"give either the run {target} or --from-axbench {from_axbench}, not both")
    from tagsteer.cli.axbench import print_axbench, write_axbench
    from tagsteer.evaluate.axbench import evaluate_axbench

    report = evaluate_axbench(from_axbench, suppression, family)
    print_axbench(report)
    if out is not None:
        write_axbench(report, out)


@app.command("train-judge")
def train_judge(
    table: Path = typer.Argument(
        ..., help="Rated texts: .parquet, .csv or .jsonl, or the folder of a run that an LLM has judged."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the weights and their card."),
    ratings: str | None = typer.Option(
        None, help="Columns of the three ratings (concept, instruction, fluency), with commas between."
    ),
    rated_by: str | None = typer.Option(None, help='Who rated, for the card; e.g. "three annotators".'),
    name: str | None = typer.Option(None, help="Version of the judge; by default the name of the folder."),
    folds: int = typer.Option(8, min=2, help="Parts of the concepts, each held out once to measure."),
    perplexity: bool = typer.Option(
        False, help="Let a language model read the texts too, for judge.perplexity = true (slow)."
    ),
    seed: int = typer.Option(0),
) -> None:
    """Train an offline judge on your own ratings and measure it on concepts that it has not seen."""
    from tagsteer.cli.ratings import read_ratings

    rows, judged_by, columns = read_ratings(table, ratings)
    from tagsteer.judge.learned import load_reader
    from tagsteer.judge.training import train_judge as train

    with terminal():
        weights = train(
            rows,
            version=name or out.resolve().name,
            judge=rated_by or judged_by,
            ratings=columns,
            slow=load_reader() if perplexity else None,
            folds=folds,
            seed=seed,
        )
    out.mkdir(parents=True, exist_ok=True)
    path = weights.save(out / "judge.safetensors")
    _print_card(weights.card, rows)
    _write_card(weights.card, out / "card.json")
    print(
        f'{path}: use it by judge.weights = "{path}", or `tagsteer judge RUN --judge offline --judge-model {path}`'
    )


def _print_card(card: dict[str, Any], rows: pl.DataFrame) -> None:
    found = card["held_out_concepts"]
    print(
        f"{card['texts']:,} texts of {rows.height:,} rows, {card['concepts']} concepts, rated by {card['judge']}"
    )
    for part, rho in found["spearman"].items():
        error = found["mean_absolute_error"].get(part)
        said = "undefined" if rho is None else f"{rho:.2f}"
        wrong = "" if error is None else f", mean absolute error {error:.2f}"
        print(f"  {part}: Spearman {said} on unseen concepts{wrong}")


def _write_card(card: dict[str, Any], path: Path) -> None:
    import json

    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
