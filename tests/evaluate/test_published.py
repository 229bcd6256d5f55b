"""Published figures against their own averages and against the reference text they were taken from."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.published import METRICS, PUBLISHED, SITES, VERIFIED, published, published_table


def test_every_figure_has_a_source_and_says_how_it_was_verified():
    for figure in PUBLISHED:
        assert figure.source and figure.verified in VERIFIED and figure.metric in METRICS
        assert 0 <= figure.value <= 2
    keys = [(f.method, f.metric, f.site) for f in PUBLISHED]
    assert len(keys) == len(set(keys)) == published_table().height


def test_averages_are_the_means_of_their_rows():
    for method in {figure.method for figure in published("overall")}:
        by_site = {f.site: f.value for f in published("overall", method)}
        cells = [by_site[site] for site in SITES if site in by_site]
        assert by_site["average"] == pytest.approx(np.mean(cells), abs=0.0011), method


def test_figures_from_memory_are_marked():
    recalled = {(f.method, f.site) for f in PUBLISHED if f.verified == "memory"}
    assert recalled == {(m, s) for m in ("LoReFT", "LoRA") for s in SITES[2:]}


def test_unknown_questions_are_refused():
    assert published("overall", "SAE", SITES[0])[0].value == 0.177
    assert [f.value for f in published("overall_reproduced", "SAE")] == [0.329, 0.296]
    for wrong in ({"metric": "overal"}, {"method": "SAEE"}, {"site": "gemma"}):
        with pytest.raises(TagsteerError, match="unknown"):
            published(**wrong)


@pytest.mark.shared
def test_figures_equal_the_reference_text(shared):
    text = (shared.parent / "reference/axbench_and_output_score.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w() ,-]+?) \|((?: [.\d*-]+ \|){4} [.\d]+.*?)\|$", text, re.MULTILINE)
    assert len(rows) == 15
    for method, cells in rows:
        values = [cell.strip().split()[0].rstrip("*") for cell in cells.split("|")]
        by_site = {f.site: f.value for f in published("overall", method)}
        for site, value in zip((*SITES, "average"), values, strict=True):
            assert by_site.get(site) == (None if value == "-" else float(value)), (method, site)
