"""Figures that others published, each with its source and how far it was verified; never our own results.

They were reached with other models, SAEs, judges and protocols than a run of tagsteer: draw them as lines
beside our figures, do not mix or average them with ours. Knows nothing but these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tagsteer.errors import one_of

if TYPE_CHECKING:
    import polars as pl

VERIFIED = {
    "data": "recomputed by us from the published outputs",
    "lookup": "read off a public page",
    "notebook": "read off the output of a published notebook",
    "memory": "not verified: recalled, consistent with the looked-up average of its row",
}
"""How a figure was verified; "memory" figures have to be marked wherever they are shown."""


@dataclass(frozen=True)
class Published:
    """One published figure."""

    method: str
    metric: str  # see METRICS
    site: str  # model and layer, or "average"
    value: float
    source: str
    verified: str  # a key of VERIFIED
    note: str = ""


METRICS = {
    "overall": "mean overall steering score, 0 to 2, Concept500, judge gpt-4o-mini",
    "overall_reproduced": "the same, as somebody else found it with AxBench's code",
    "win_rate": "share of concepts on which the method beats SAE, ties half",
    "auroc": "concept detection, mean AUROC",
    "f1_balanced": "concept detection, F1 with as many negatives as positives",
    "f1_imbalanced": "concept detection, F1 with 3600 added negatives",
    "judge_agreement": "share of texts that the same judge rates alike twice",
    "judge_difference": "mean absolute difference of the overall score of texts judged twice",
}

SITES = (
    "gemma-2-2b-it layer 10",
    "gemma-2-2b-it layer 20",
    "gemma-2-9b-it layer 20",
    "gemma-2-9b-it layer 31",
)
_AXBENCH = "Wu et al., arXiv 2501.17148 (AxBench), README leaderboard"
_OVERALL = """
HyperSteer              -     .742  1.091   -     .917
Prompt                  .698  .731  1.075   1.072 .894
LoReFT                  .701  .722  .777*   .764* .741
RePS (rank-1 SV)        .756  .606  .892    .624  .720
SFT                     .637  .714  -       -     .676
LoRA                    .637  .641  .602*   .580* .615
ReFT-r1                 .633  .509  .630    .401  .543
SAE (filtered, Arad)    -     -     .546    .470  .508
DiffMean                .297  .178  .322    .158  .239
SAE                     .177  .151  .191    .140  .165
SAE-A                   .166  .132  .186    .143  .157
LAT                     .117  .130  .127    .134  .127
PCA                     .107  .083  .128    .104  .105
Probe                   .095  .091  .108    .099  .098
SSV                     .072  .001  .024    .008  .026
"""
"""Method, the four sites, average; * = recalled, not looked up."""

_NOTES = {
    "PCA": "the average is .106 in one copy of the leaderboard",
    "SAE (filtered, Arad)": "Arad et al., arXiv 2505.20063; not comparable: other instructions, no chat "
    "template, one sentence, another judge, harmonic mean of means",
}

_REPRODUCTION = "independent reproduction, stanfordnlp/axbench issue 149 (open)"
_REPRODUCED = {
    "Prompt": (0.676, 0.724),
    "SFT": (0.667, 0.703),
    "LoReFT": (0.418, 0.446),
    "LoRA": (0.493, 0.500),
    "ReFT-r1": (0.208, 0.285),
    "SAE": (0.329, 0.296),
}
_AUROC = {
    "DiffMean": 0.942,
    "Probe": 0.940,
    "ReFT-r1": 0.938,
    "Prompt": 0.929,
    "SAE-A": 0.917,
    "BoW": 0.914,
    "SSV": 0.912,
    "LAT": 0.712,
    "SAE": 0.695,
    "PCA": 0.652,
}

CLAIMS = (
    "steering with selected features on par with AxBench's LoRA for several fora, below prompting",
    "prompting improves too with simple tag labels",
    "a low L0 is not crucial",
    "the output score gives a modest gain",
    "plain F1 also works",
    "Llama-Scope features did not steer well",
)
"""What Jørgensen & Hansen (arXiv 2605.31183 v1) claim; their results are drawn, no numbers can be quoted."""


def _figures() -> Iterator[Published]:
    for line in _OVERALL.strip().splitlines():
        method, cells = line[:24].strip(), line[24:].split()
        for site, cell in zip((*SITES, "average"), cells, strict=True):
            if cell != "-":
                verified = "memory" if cell.endswith("*") else "lookup"
                yield Published(
                    method,
                    "overall",
                    site,
                    float(cell.rstrip("*")),
                    _AXBENCH,
                    verified,
                    _NOTES.get(method, ""),
                )
    for method, values in _REPRODUCED.items():
        for site, value in zip(SITES, values, strict=False):  # the two sites of the 2B model
            yield Published(method, "overall_reproduced", site, value, _REPRODUCTION, "lookup")
    for method, value in (("ReFT-r1", 0.880), ("DiffMean", 0.616)):
        yield Published(method, "win_rate", "average", value, _AXBENCH, "lookup")
    for method, value in _AUROC.items():
        yield Published(method, "auroc", "average", value, _AXBENCH, "lookup")
    for site, balanced, imbalanced in ((SITES[0], 0.918, 0.711), (SITES[1], 0.926, 0.789)):
        yield Published("DiffMean", "f1_balanced", site, balanced, "AxBench's notebook", "notebook")
        yield Published("DiffMean", "f1_imbalanced", site, imbalanced, "AxBench's notebook", "notebook")
    judged = "62 texts judged twice in stanfordnlp/axbench@f9a6a599 (branch qinan), gpt-4o-mini, T = .7"
    # Concept is 0 in all 62, so its agreement says nothing of texts that have the concept, and the overall
    # score is on the suppression scale, hm(2 - c, i, f); on the steering scale it is 0 throughout.
    for rating, value, note in (
        ("concept", 1.0, "all 62 lack the concept"),
        ("instruction", 60 / 62, ""),
        ("fluency", 53 / 62, ""),
        ("overall", 52 / 62, "suppression scale"),
    ):
        yield Published(rating, "judge_agreement", "Gemma-2 and Llama-3.1 texts", value, judged, "data", note)
    yield Published(
        "overall",
        "judge_difference",
        "Gemma-2 and Llama-3.1 texts",
        7.3 / 62,
        judged,
        "data",
        "suppression scale",
    )


PUBLISHED: tuple[Published, ...] = tuple(_figures())


def published(metric: str = "overall", method: str | None = None, site: str | None = None) -> list[Published]:
    """The published figures of one metric, of one method and site where given."""
    if metric not in METRICS:
        raise one_of(metric, list(METRICS), "metric")
    found = [figure for figure in PUBLISHED if figure.metric == metric]
    for name, wanted in (("method", method), ("site", site)):
        if wanted is not None:
            known = list(dict.fromkeys(getattr(figure, name) for figure in found))
            if wanted not in known:
                raise one_of(wanted, known, f"{name} with a published {metric}")
            found = [figure for figure in found if getattr(figure, name) == wanted]
    return found


def published_table() -> pl.DataFrame:
    """All published figures as a table."""
    import polars as pl

    return pl.DataFrame([asdict(figure) for figure in PUBLISHED])
