"""The figure of docs/scores.md: how the calibrated F1 of a simulated probe depends on threshold, prior and support.

    python -m benchmarks.figure_scores          # writes docs/figures/calibrated-f1.png

After appendix A.2.1 of arXiv 2605.31183: a probe's reading is normal, N(0, 1) on documents without the label and
N(μ, 1) on those with it; the numbers are ours. Three panels need no sampling: with r and f the shares of the two
kinds of documents above the threshold,

    F1ᶜ = 2r / (r + 1 + f·(1 − π₀)/π₀),

whatever the label's share π. The fourth draws counts of documents and scores them with `calibrated_f1`.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.stats import norm

from tagsteer.label.calibration import calibrated_f1
from tagsteer.report.figures import FAINT, GRID, INK

TARGET = Path(__file__).resolve().parents[1] / "docs" / "figures" / "calibrated-f1.png"
MEAN = 3.0  # of the readings on documents with the label, in deviations
PRIORS = {0.5: "#e08214", 0.1: "#c2517a", 0.01: "#7a4bb0", 0.001: "#0b5fa5"}
THRESHOLDS = (0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0)
HYPERACTIVE, HYPOACTIVE, GREEN = "#b4480f", "#0b5fa5", "#157a5a"
DOCUMENTS, DRAWS, FIXED = 10_000, 20_000, 3.0
STYLE = {
    "font.family": "sans-serif", "font.size": 9.5, "axes.edgecolor": GRID, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.linewidth": 0.8,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlepad": 10,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "legend.frameon": False,
}  # fmt: skip


def expected_f1(threshold: np.ndarray | float, prior: np.ndarray | float, mean: float = MEAN) -> np.ndarray:
    """F1ᶜ of very many documents (module docstring); threshold and prior broadcast."""
    r, f = norm.sf(np.asarray(threshold) - mean), norm.sf(np.asarray(threshold))
    prior = np.asarray(prior, float)
    return 2 * r / (r + 1 + f * (1 - prior) / prior)


def best(prior: np.ndarray | float, mean: float = MEAN) -> tuple[np.ndarray, np.ndarray]:
    """(F1ᶜ, threshold) at the best threshold for each prior."""
    t = np.linspace(-3, 9, 4801)
    f1 = expected_f1(t, np.atleast_1d(prior)[:, None], mean)
    return f1.max(axis=1), t[f1.argmax(axis=1)]


def readings(axes: Axes) -> None:
    """The two distributions, and where each prior puts the best threshold."""
    x = np.linspace(-3.4, 6.6, 500)
    for mean, colour, name, side in (
        (0.0, FAINT, "without\nthe label", -1),
        (MEAN, GREEN, "with\nthe label", 1),
    ):
        density = norm.pdf(x - mean)
        axes.fill_between(x, density, color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, density, color=colour, linewidth=1.6)
        axes.annotate(name, (mean + 1.1 * side, norm.pdf(1.1)), xytext=(7 * side, 2), color=colour,
                      textcoords="offset points", ha="right" if side < 0 else "left", va="center")  # fmt: skip
    for level, (prior, colour) in enumerate(PRIORS.items()):
        at = float(best(prior)[1][0])
        top = 0.53 - 0.035 * level
        axes.plot([at, at], [0, top], color=colour, linewidth=1.6)
        axes.annotate(f"π₀ = {prior:g}", (at, top), xytext=(4, -3), textcoords="offset points", color=colour)
    axes.set(xlim=(-3.4, 6.6), ylim=(0, 0.57), yticks=[], xlabel="reading of the probe (deviations)")
    axes.grid(False)
    axes.set_title("a  A lower prior moves the best threshold up")


def over_thresholds(axes: Axes) -> None:
    t = np.linspace(-2, 6, 400)
    for prior, colour in PRIORS.items():
        axes.plot(t, expected_f1(t, prior), color=colour, linewidth=1.8)
        f1, at = (float(v[0]) for v in best(prior))
        axes.plot([at], [f1], "o", color=colour, markersize=6)
        said = f"π₀ = {prior:g}: {f1:.2f} at {at:.1f}"
        axes.annotate(said, (at, f1), xytext=(9, 5), textcoords="offset points", color=colour)
    axes.set(xlim=(-2, 6), ylim=(0, 1.03), xlabel="threshold t", ylabel="calibrated F1")
    axes.set_title("b  The prior decides what a false positive costs")


def over_priors(axes: Axes) -> None:
    """One curve per threshold and their envelope, the score that is reported."""
    priors = np.logspace(-4, np.log10(0.9), 300)
    optimum = MEAN / 2  # of the plain F1 with as many documents of one kind as of the other
    for t in THRESHOLDS:
        colour = HYPOACTIVE if t > optimum else HYPERACTIVE
        curve = expected_f1(t, priors)
        axes.plot(priors, curve, color=colour, linewidth=1.4)
        # Those that end apart are named at their end, the others where they are apart.
        at = len(priors) - 1 if curve[-1] < 0.95 else int(np.abs(curve - (0.2 if t < 1 else 0.55)).argmin())
        on_curve = t == 1
        axes.annotate(
            f"t = {t:g}", (priors[at], curve[at]), xytext=(0 if on_curve else 6, 0), textcoords="offset points",
            color=colour, va="center", ha="center" if on_curve else "left", annotation_clip=False,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 1.0} if on_curve else None,
        )  # fmt: skip
    axes.plot(priors, best(priors)[0], color=INK, linewidth=2.2, linestyle=(0, (1, 1.2)))
    axes.annotate(
        "the best threshold\nat each prior", (4e-3, float(best(4e-3)[0][0])), xytext=(-22, 34), color=INK,
        textcoords="offset points", ha="center", arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
    )  # fmt: skip
    axes.axvline(1e-3, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.annotate(
        "the default",
        (1e-3, 1),
        xytext=(-4, -2),
        textcoords="offset points",
        va="top",
        ha="right",
        color=FAINT,
    )
    axes.set(xscale="log", xlim=(1e-4, 0.9), ylim=(0, 1.03), xlabel="prior π₀", ylabel="calibrated F1")
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["0.0001", "0.001", "0.01", "0.1"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("c  Low thresholds lose first as the prior falls")


def over_support(axes: Axes) -> None:
    """Central 95 % of the scores of one probe, over samples of documents in which the label's support varies."""
    rng = np.random.default_rng(0)
    supports = np.unique(np.round(np.logspace(np.log10(2), np.log10(5000), 120)).astype(int))
    r, f = norm.sf(FIXED - MEAN), norm.sf(FIXED)
    tp = rng.binomial(supports[:, None], r, (len(supports), DRAWS))
    fp = rng.binomial((DOCUMENTS - supports)[:, None], f, (len(supports), DRAWS))
    fn, tn = supports[:, None] - tp, (DOCUMENTS - supports)[:, None] - fp
    for prior in (0.5, 0.001):
        colour = PRIORS[prior]
        low, high = np.percentile(calibrated_f1(tp, fp, fn, tn, prior=prior), [2.5, 97.5], axis=1)
        axes.fill_between(supports, low, high, color=colour, alpha=0.22, linewidth=0)
        expected = float(expected_f1(FIXED, prior))
        axes.plot([supports[0], supports[-1]], [expected, expected], color=colour, linewidth=1.8)
        axes.annotate(f"π₀ = {prior:g}", (supports[-1], expected), xytext=(5, 4 if prior == 0.5 else 0), color=colour,
                      textcoords="offset points", va="center", annotation_clip=False)  # fmt: skip
    plain = calibrated_f1(tp, fp, fn, tn, prior=None).mean(axis=1)
    axes.plot(supports, plain, color=INK, linewidth=1.6, linestyle=(0, (4, 2)))
    axes.annotate("plain F1 (mean)", (58, 0.515), va="center", color=INK)
    axes.axvline(50, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.annotate(
        "the filter: 50", (50, 1), xytext=(4, -2), textcoords="offset points", va="top", color=FAINT
    )
    axes.set(xscale="log", xlim=(2, 5000), ylim=(0, 1.03), ylabel="calibrated F1 at t = 3",
             xlabel=f"documents with the label, of {DOCUMENTS:,}")  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("d  Few positives scatter the score (95 % of samples)")


def draw() -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        grid = figure.subplots(2, 2).ravel()
        for axes, panel in zip(grid, (readings, over_thresholds, over_priors, over_support), strict=True):
            panel(axes)
    return figure


def main() -> None:
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        draw().savefig(TARGET, dpi=150, facecolor="white", metadata={"Software": None})
    print(f"wrote {TARGET.relative_to(TARGET.parents[2])}")


if __name__ == "__main__":
    main()
