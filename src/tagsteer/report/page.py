"""Writes report.html: one page that needs no network and no JavaScript, beside its figures and CSV files.

All text from data sets and models goes through jinja2's autoescape after `visible`; the page's policy lets no
script run but its own. Knows tables, nothing of models.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tagsteer
from tagsteer.report import overview, text
from tagsteer.report.figures import (
    curve_figure,
    curves_figure,
    inline_svg,
    methods_figure,
    naming_figure,
    save_figure,
)
from tagsteer.report.read import RunRecord, read_run
from tagsteer.report.tables import write_tables
from tagsteer.report.views import Limits, pair_views

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger("tagsteer.report")


def write_report(run_folder: Path, target: Path, limits: Limits | None = None) -> Path:
    """Write report.html, figures/ and the CSV files into `target`; returns the path of the page.

    TagsteerError where the run lacks a stage.
    """
    limits = limits or Limits()
    run = read_run(run_folder)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    write_tables(run, target)
    drawn = _figures(run, target, limits)
    views, left_out = pair_views(run, limits)
    for note in left_out.notes():
        log.info(note)
    assets = {name: _template(name) for name in ("page.css", "page.js")}
    page = _environment().get_template("page.html").render(
        run=run,
        name=text.visible(run.config.get("name", run.folder.name)),
        headline=overview.headline(run),
        findings=overview.findings(run),
        tiles=overview.tiles(run),
        facts=overview.facts(run),
        table=_table(run),
        comparisons=run.summary.comparisons.to_dicts(),
        methods=run.summary.methods.to_dicts(),
        provenance=run.methods["methods"],
        references=overview.reference_figures(),
        pairs=views,
        figures=drawn,
        filters=run.filters.to_dicts(),
        missing=overview.missing_ratings(run),
        skipped=overview.skipped_documents(run),
        endings=overview.unfinished(run),
        stages=overview.stage_lines(run),
        settings=list(overview.settings(run.config)),
        notes=[text.visible(note) for note in run.summary.notes],
        left_out=left_out.notes(),
        limits=limits,
        version=tagsteer.__version__,
        style=assets["page.css"],
        script=assets["page.js"],
        script_hash=base64.b64encode(hashlib.sha256(assets["page.js"].encode()).digest()).decode(),
    )  # fmt: skip
    path = target / "report.html"
    partial = path.with_name("partial-" + path.name)
    partial.write_text(page, "utf-8")
    partial.replace(path)
    return path


def _figures(run: RunRecord, target: Path, limits: Limits) -> dict[str, Any]:
    """Draw, save beside the page, and return as inline SVG."""
    folder = target / "figures"
    methods, naming = methods_figure(run.summary.methods), naming_figure(run.pairs)
    save_figure(methods, folder / "methods")
    save_figure(naming, folder / "naming-and-causing")
    shown = run.pairs.head(limits.pairs).to_dicts()
    save_figure(curves_figure(run.summary.curves, shown), folder / "strength-curves")
    curves = []
    for i, row in enumerate(shown):
        said = f"Mean ratings of pair {i + 1} at each strength; the table below it has the values."
        curves.append(
            inline_svg(curve_figure(run.summary.curves, row["pair"], row["strength"]), f"c{i}", said)
        )
    return {
        "methods": inline_svg(
            methods, "m", "Scores of each method with intervals; the table below has the values."
        ),
        "naming": inline_svg(
            naming, "n", "Calibrated F1 against output score; the table of pairs has the values."
        ),
        "curves": curves,
    }


def _table(run: RunRecord) -> list[dict[str, Any]]:
    """Rows of the table of pairs, numbered, with visible labels."""
    rows = run.pairs.to_dicts()
    return [
        {**row, "number": i + 1, "label_name": text.visible(row["label_name"])} for i, row in enumerate(rows)
    ]


def _template(name: str) -> str:
    return resources.files("tagsteer.report").joinpath("templates", name).read_text("utf-8")


def _environment() -> Environment:
    """Autoescape everywhere; an unknown name in a template is an error, not an empty string."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        text.visible,
        text.token,
        text.number,
        text.small,
        text.strength,
        text.plural,
        text.method_name,
    ):
        environment.filters[function.__name__] = function
    environment.globals.update(interval=text.interval, known=text.known)
    return environment
