"""What the docs claim and a test can check: worked numbers, formulas of figures, columns, links."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tagsteer.judge.replies import RecordedJudge
from tagsteer.run import Run
from tagsteer.stages import steering
from tests import test_run

run_inputs = test_run.files
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def rows_of_numbers() -> list[tuple[str, ...]]:
    """The table of worked F1 values in scores.md: TP, FP, FN, TN, π₀, c, F1ᶜ."""
    text = (DOCS / "scores.md").read_text("utf-8")
    return re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.M
    )


def decimals(text: str) -> int:
    return len(text.partition(".")[2])


def test_the_worked_numbers_are_those_of_the_code():
    import tagsteer as ts
    from tagsteer.label.calibration import false_positive_weight

    rows = rows_of_numbers()
    assert len(rows) >= 5
    for *counts, prior, c, f1 in rows:
        tp, fp, fn, tn = (int(count) for count in counts)
        assert round(float(ts.calibrated_f1(tp, fp, fn, tn, prior=float(prior))), decimals(f1)) == float(f1)
        weight = float(false_positive_weight(tp + fn, tp + fp + fn + tn, float(prior)))
        assert round(weight, decimals(c)) == float(c)


def test_the_worked_numbers_of_the_design_are_among_them():
    """Numbers that the project was asked to reproduce, whatever the code says."""
    found = {(*row[:5],): float(row[6]) for row in rows_of_numbers()}
    assert found["30", "20", "20", "930", "0.001"] == 0.053023
    assert found["30", "20", "20", "930", "0.5"] == 0.740260
    assert found["30", "20", "20", "930", "0.05"] == 0.6
    assert found["50", "0", "50", "9900", "0.001"] == 0.666667
    assert found["1", "0", "49", "950", "0.001"] == 0.039216


def test_the_formula_of_the_figure_is_the_calibrated_f1_at_any_share_of_the_label():
    from benchmarks.figure_scores import MEAN, expected_f1
    from scipy.stats import norm

    import tagsteer as ts

    t = np.array([0.5, 2.0, 3.5])
    r, f = norm.sf(t - MEAN), norm.sf(t)
    for prior in (0.5, 0.01, 0.001):
        for share in (0.3, 0.004):
            counts = share * r, (1 - share) * f, share * (1 - r), (1 - share) * (1 - f)
            np.testing.assert_allclose(
                expected_f1(t, prior), ts.calibrated_f1(*counts, prior=prior), rtol=1e-9
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:tests|examples|benchmarks|src)/[\w./-]+)`", page.read_text("utf-8")):
        assert (ROOT / name).exists(), name


def test_rooms_of_the_architecture_are_those_of_the_package():
    text = (DOCS / "architecture.md").read_text("utf-8")
    listed = set(re.findall(r"`(\w+)/`", text.partition("## Rooms")[2].partition("## Where")[0]))
    rooms = {p.parent.name for p in (ROOT / "src/tagsteer").glob("*/__init__.py")}
    assert rooms == listed & rooms


def columns_of(page: str) -> dict[str, list[str]]:
    """stage/table.parquet -> columns, from the paragraphs of run-folder.md that begin with the table's name."""
    found = {}
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        stage = section.partition("/")[0]
        for name, columns in re.findall(
            r"^`(\w+\.parquet)`: (.+?)(?=\n\n|\n`\w+\.|\.\n|\Z)", section, re.M | re.S
        ):
            bare = re.sub(r"\([^)]*\)", "", columns)
            found[f"{stage}/{name}"] = re.findall(r"`(\w+)`", bare)
    return found


def documented_columns() -> dict[str, list[str]]:
    tables = columns_of((DOCS / "run-folder.md").read_text("utf-8"))
    pairs = tables["select/pairs.parquet"]
    tables["select/pairs.parquet"] = [pairs[0], *tables["score/matches.parquet"], *pairs[1:]]
    return tables


@pytest.fixture(scope="module")
def finished_run(run_inputs, tmp_path_factory) -> Path:
    """The folder of a whole run on a tiny random model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering, "choose_judge", lambda *_: RecordedJudge(test_run.replies))
        run = Run(test_run.config(run_inputs), tmp_path_factory.mktemp("docs") / "run")
        run.execute()
    return run.folder


def test_the_columns_of_a_run_are_those_of_the_page(finished_run):
    import polars as pl

    documented = documented_columns()
    written = {p.relative_to(finished_run).as_posix(): p for p in finished_run.glob("*/*.parquet")}
    assert set(written) == set(documented)
    for name, path in written.items():
        assert sorted(pl.read_parquet_schema(path)) == sorted(documented[name]), name


def test_every_file_of_a_run_is_on_the_page(finished_run):
    page = (DOCS / "run-folder.md").read_text("utf-8")
    for path in finished_run.rglob("*"):
        # Shards and figures are described by their kind.
        if path.is_file() and path.parent.name not in ("shards", "figures"):
            assert path.name in page, path.relative_to(finished_run)
