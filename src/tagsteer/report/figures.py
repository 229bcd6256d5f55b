"""The figures of a run: strength curves, methods with intervals, naming against causing.

Explicit Figure objects on the Agg canvas: no pyplot, no display, no state. In the page an SVG follows the
page's colours, light or dark; the files beside it keep fixed ones. Knows tables, nothing of HTML around it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsteer.report.text import known, method_name, one_line

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#22282e", "#626a72", "#d8dcdf"
COLOURS = {
    "steered": "#0b5fa5", "prompt": "#157a5a", "random": "#b4480f", "unsteered": "#6b6f75",
    "concept": "#7a4bb0", "instruction": "#8a6a00", "fluency": "#0f7c86",
}  # fmt: skip
OTHER = "#8c3b6a"  # methods that are not in the list
MARKERS = {"steered": "o", "prompt": "D", "random": "s", "unsteered": "v"}
_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "line", OTHER: "other"} | {c: n for n, c in COLOURS.items()}
_STYLE: Any = {
    "font.family": "sans-serif", "font.size": 9, "text.parse_math": False, "svg.fonttype": "none",
    "svg.hashsalt": "tagsteer", "axes.edgecolor": GRID, "axes.labelcolor": FAINT, "text.color": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.facecolor": "none",
    "figure.facecolor": "none", "legend.frameon": False, "axes.titlesize": 9, "axes.titlelocation": "left",
    "axes.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Our style; labels in scripts that the font lacks give boxes in a PNG, not a warning."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curve_figure(curves: pl.DataFrame, pair: Any, chosen: float | None) -> Figure:
    """Mean ratings of one pair over strength, beside its floor, random feature and prompting."""
    with _quiet():
        figure = _figure(4.9, 3.2)
        axes = figure.add_subplot()
        draw_curves(axes, curves, pair, chosen, parts=True)
        axes.set_xlabel("strength")
        axes.set_ylabel("mean rating, 0 to 2")
        figure.legend(loc="outside lower center", ncols=4, handlelength=2, columnspacing=1, fontsize=8)
    return figure


def curves_figure(curves: pl.DataFrame, pairs: Sequence[Mapping[str, Any]]) -> Figure:
    """Small strength curves of many pairs on common axes; pairs: rows with pair, label_name, feature, strength."""
    columns = min(4, max(1, len(pairs)))
    rows = -(-len(pairs) // columns)
    with _quiet():
        figure = _figure(2.4 * columns, 0.6 + 1.9 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, row in zip(grid, pairs, strict=False):
            draw_curves(axes, curves, row["pair"], row["strength"], parts=False)
            axes.set_title(f"{one_line(row['label_name'], 24)} · {row['feature']}")
        for axes in grid[len(pairs) :]:
            axes.set_visible(False)
        figure.supxlabel("strength", fontsize=9, color=FAINT)
        figure.supylabel("mean overall score, 0 to 2", fontsize=9, color=FAINT)
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=4, fontsize=8)
    return figure


def draw_curves(axes: Axes, curves: pl.DataFrame, pair: Any, chosen: float | None, *, parts: bool) -> None:
    """One pair's curves on given axes; `parts` adds the three ratings of the steered texts."""
    import polars as pl

    own = curves.filter(pl.col("pair") == pair)
    steered = own.filter(pl.col("method") == "steered").sort("strength")
    x = steered["strength"].to_list()
    if known(chosen):
        axes.axvline(float(chosen or 0), color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            "chosen", (float(chosen or 0), 1), xycoords=("data", "axes fraction"), xytext=(3, -1),
            textcoords="offset points", va="top", fontsize=7.5, color=FAINT,
        )  # fmt: skip
    axes.plot(
        x, _floats(steered["overall"]), color=COLOURS["steered"], linewidth=2.2, marker="o", markersize=4,
        label="overall", zorder=4,
    )  # fmt: skip
    if parts:
        for name, dash in (("concept", (4, 1.5)), ("instruction", (1.5, 1.2)), ("fluency", (5, 1.5, 1, 1.5))):
            axes.plot(
                x, _floats(steered[name]), color=COLOURS[name], linewidth=1.2, linestyle=(0, dash), label=name
            )
    for method in [m for m in own["method"].unique(maintain_order=True).to_list() if m != "steered"]:
        rows = own.filter(pl.col("method") == method).sort("strength")
        colour = COLOURS.get(method, OTHER)
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": 1.2,
            "label": one_line(method_name(method), 24).lower(),
        }
        if rows["strength"].null_count() == rows.height:
            levels = rows["overall"].drop_nulls().to_list()
            if levels:
                axes.axhline(sum(levels) / len(levels), **style)
        else:
            # Several random features of a pair: one line, their mean at each strength.
            mean = rows.group_by("strength", maintain_order=True).agg(pl.col("overall").mean())
            axes.plot(
                mean["strength"].to_list(),
                _floats(mean["overall"]),
                marker=MARKERS.get(method, "x"),
                markersize=3,
                **style,
            )
    axes.set_ylim(-0.06, 2.06)
    axes.set_yticks([0, 0.5, 1, 1.5, 2])


def methods_figure(methods: pl.DataFrame) -> Figure:
    """Mean scores of every method with their intervals over pairs."""
    panels = ("overall", "concept", "instruction", "fluency")
    rows = methods.to_dicts()
    with _quiet():
        figure = _figure(8.4, 0.95 + 0.34 * len(rows))
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True)
        for axes, name in zip(grid, panels, strict=True):
            for y, row in enumerate(rows):
                if not known(row[name]):
                    continue
                colour = COLOURS.get(row["method"], OTHER)
                if known(row[f"{name}_low"]) and known(row[f"{name}_high"]):
                    axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [y, y], color=colour, linewidth=2)
                axes.plot(
                    [row[name]], [y], marker=MARKERS.get(row["method"], "x"), color=colour, markersize=6
                )
                above = row[f"{name}_high"] if known(row[f"{name}_high"]) else row[name]
                right = above < 1.6
                axes.annotate(
                    f"{row[name]:.2f}", (above if right else row[f"{name}_low"] or row[name], y),
                    xytext=(5 if right else -5, 0), textcoords="offset points", va="center",
                    ha="left" if right else "right", fontsize=8, color=INK,
                )  # fmt: skip
            axes.set_title(name)
            axes.set_xlim(-0.05, 2.05)
            axes.set_xticks([0, 1, 2])
            axes.grid(False, axis="y")
            axes.spines["left"].set_visible(False)
        grid[0].set_yticks(range(len(rows)), [one_line(method_name(row["method"]), 24) for row in rows])
        grid[0].tick_params(axis="y", labelcolor=INK)
        grid[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def naming_figure(pairs: pl.DataFrame) -> Figure:
    """Calibrated F1 against output score, a point per pair, as large as its overall score."""
    import numpy as np
    from matplotlib.ticker import NullFormatter

    rows = [
        r
        for r in pairs.to_dicts()
        if known(r["f1"]) and known(r.get("output_score")) and r["output_score"] > 0
    ]
    with _quiet():
        figure = _figure(5.0, 3.4)
        axes = figure.add_subplot()
        if rows:
            x, y = np.array([r["f1"] for r in rows]), np.array([r["output_score"] for r in rows])
            scored = np.array([known(r["overall"]) for r in rows])
            size = np.array([20 + 110 * r["overall"] if known(r["overall"]) else 20 for r in rows])
            for part, face in ((scored, COLOURS["steered"]), (~scored, "none")):
                axes.scatter(
                    x[part],
                    y[part],
                    s=size[part],
                    color=face,
                    edgecolor=COLOURS["steered"],
                    alpha=0.75,
                    linewidth=0.8,
                )
            for r in rows:
                axes.annotate(
                    str(r["pair"] + 1),
                    (r["f1"], r["output_score"]),
                    xytext=(7, 4),
                    textcoords="offset points",
                    fontsize=7.5,
                )
            axes.set_yscale("log")
            # The log scale's own labels are formulas, which stay off for the sake of labels with dollar signs.
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.margins(0.08, 0.12)
        axes.set_xlabel("calibrated F1 (how well the feature is named)")
        axes.set_ylabel("output score (what it causes), log")
    return figure


def _floats(values: Any) -> list[float]:
    return [float("nan") if v is None else v for v in values.to_list()]


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.png and <stem>.svg on white, for papers and slides."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with _quiet():
        for suffix, more in ((".png", {"dpi": 160}), (".svg", {"metadata": {"Date": None}})):
            path = stem.with_name(stem.name + suffix)
            figure.savefig(path, facecolor="white", **more)
            written.append(path)
    return written


def inline_svg(figure: Figure, prefix: str, description: str) -> str:
    """The figure as SVG to put into a page: its colours are the page's variables, its ids start with `prefix`.

    Drawn labels are escaped by matplotlib, `description` here.
    """
    import html

    with _quiet():
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    # Text without a colour of its own is black.
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # would reach the whole page
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg).replace("<text ", '<text fill="currentColor" ')
    named = f'<svg role="img" aria-label="{html.escape(description, quote=True)}" class="figure" '
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", named, 1)
