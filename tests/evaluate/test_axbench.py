"""Real AxBench folders against the goldens, and written ones of every kind against closed formulas."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import polars as pl
import pytest

from tagsteer.errors import TagsteerError
from tagsteer.evaluate.axbench import evaluate_axbench
from tagsteer.evaluate.axbench_files import read_axbench
from tagsteer.evaluate.protocols import axbench_score, dev_test, first_maximum
from tagsteer.evaluate.scores import pair_ratings
from tests.evaluate.tables import axbench_folder, hm, ratings_table

RENAMED = {"max_all10_mean": "max_over_all_mean", "max_over_factor_all10": "max_over_all"}


def judged(**changes) -> pl.DataFrame:
    options = {
        "method": "GemmaScopeSAE",
        "pairs": (0, 1, 2),
        "strengths": (0.2, 0.4, 0.6),
        "instructions": 10,
        "seed": 4,
    }
    return ratings_table(**(options | changes))


def golden(shared) -> dict:
    return json.loads((shared / "axbench/derived/golden.json").read_text("utf-8"))["steering"]


@pytest.mark.shared
@pytest.mark.parametrize(
    "run", ["output_llama/test_gating/lsreft_200_factor_shuffle_1_20", "output/addition_20"]
)
def test_golden_scores_are_reproduced_to_the_bit(shared, run):
    wanted = golden(shared)[run]
    report = evaluate_axbench(shared / "axbench/runs" / run)
    [summary] = report.tables["summary"].to_dicts()
    for name, value in wanted["summary"].items():
        if name != "run":
            assert summary[RENAMED.get(name, name)] == value, name
    concepts = report.tables["concepts"].to_dicts()
    assert len(concepts) == len(wanted["per_concept"]) == 10
    for ours, theirs in zip(concepts, wanted["per_concept"], strict=True):
        for name, value in theirs.items():
            assert ours[RENAMED.get(name, name)] == value, (theirs["concept_id"], name)
    assert summary["family"] == "A" and summary["n_duplicates"] == summary["n_absent"] == 0
    assert any("means in steering.jsonl agree" in note for note in report.notes)
    assert "per concept and method" in report.protocol and "dev = first" in report.protocol


@pytest.mark.shared
def test_failed_replies_are_counted_beside_axbenchs_zero(shared):
    report = evaluate_axbench(shared / "axbench/runs/output/addition_20")
    failures = dict(report.tables["failures"].select("rating", "n_failed").iter_rows())
    assert failures == {"concept": 0, "instruction": 0, "fluency": 4}
    missing = evaluate_axbench(shared / "axbench/runs/output/addition_20", failures="missing")
    assert missing.tables["summary"]["n_missing"][0] == 4
    assert "failed replies: missing" in missing.protocol
    assert report.tables["summary"]["factor_0_overall"][0] == pytest.approx(0.623)  # the unsteered floor


@pytest.mark.shared
def test_duplicates_of_a_rerun_are_found(shared):
    report = evaluate_axbench(shared / "axbench/runs/output/clamping_20_more")
    duplicates = report.tables["duplicates"]
    assert duplicates.height == 100
    assert set(duplicates["factor"]) == {-5.0} and set(duplicates["rows"]) == {2}
    assert report.tables["summary"]["rows"][0] == 800 and report.tables["absent"].height == 0
    first = evaluate_axbench(shared / "axbench/runs/output/clamping_20_more", duplicates="first")
    assert first.tables["summary"]["rows"][0] == 700
    with pytest.raises(TagsteerError, match="100 keys"):
        evaluate_axbench(shared / "axbench/runs/output/clamping_20_more", duplicates="refuse")


@pytest.mark.shared
def test_golden_concepts_of_a_run_known_by_its_ratings(shared):
    # Of this run only the parsed ratings of some concepts are at hand; a failed reply is 0 in AxBench.
    run = "output_llama/test_gating_2/lsreft_200_factor_shuffle_1_20"
    grids = {grid.pair: grid for grid in pair_ratings(judged_runs(shared, run))}
    wanted = {entry["concept_id"]: entry for entry in golden(shared)[run]["per_concept"]}
    assert len(grids) == 3
    for concept, grid in grids.items():
        ours = vars(axbench_score(grid))
        for name, value in wanted[concept].items():
            if name != "concept_id":
                assert ours[RENAMED.get(name, name)] == value


def judged_runs(shared, run: str | None = None) -> pl.DataFrame:
    table = pl.read_parquet(shared / "axbench/judged_generations.parquet")
    if run is not None:
        table = table.filter(pl.col("run") == run)
    return table.select(
        (pl.col("run") + " " + pl.col("method")).alias("method"),
        pl.col("concept_id").alias("pair"),
        pl.col("factor").alias("strength"),
        pl.col("input_id").alias("instruction_id"),
        pl.col("relevance_concept").fill_null(0.0).alias("concept"),
        pl.col("relevance_instruction").fill_null(0.0).alias("instruction"),
        pl.col("fluency").fill_null(0.0),
    )


@pytest.mark.shared
def test_selection_equals_exact_fractions_on_every_real_run(shared):
    grids = pair_ratings(judged_runs(shared), "keep")
    assert len(grids) > 400
    for grid in grids:
        dev, _ = dev_test(grid.instruction_ids)
        exact = []
        for row in grid.overall[:, dev]:
            known = row[~np.isnan(row)]
            total = sum((Fraction(float(x)).limit_denominator(1000) for x in known), Fraction(0))
            exact.append(total / len(known) if len(known) else Fraction(-1))
        assert axbench_score(grid).best_factor == grid.strengths[exact.index(max(exact))]


@pytest.mark.parametrize("kind", ["A", "B", "C"])
@pytest.mark.parametrize("suppression", [False, True])
def test_every_kind_is_recognised_and_scored_alike(tmp_path, kind, suppression):
    table = judged()
    report = evaluate_axbench(axbench_folder(tmp_path, table, kind), suppression)
    [summary] = report.tables["summary"].to_dicts()
    assert summary["family"] == kind
    scores = {}
    for row in table.iter_rows(named=True):
        c = 2 - row["concept"] if suppression else row["concept"]
        score = hm(c, row["instruction"], row["fluency"])
        scores.setdefault((row["pair"], row["strength"]), []).append(score)
    assert summary["mean_all_rows"] == pytest.approx(np.mean(list(scores.values())))
    tests = []
    for pair in (0, 1, 2):
        curve = [np.mean(scores[pair, s][:5]) for s in (0.2, 0.4, 0.6)]
        best, _ = first_maximum(np.round(curve, 12))
        tests.append(np.mean(scores[pair, (0.2, 0.4, 0.6)[best]][5:]))
    assert summary["test_overall_mean"] == pytest.approx(np.mean(tests))
    noted = any("was scored as" in note for note in report.notes)
    assert noted == ((kind != "A") != suppression)
    assert ("2 - concept" in report.protocol) == suppression


def test_a_failed_reply_never_becomes_the_best_suppression(tmp_path):
    table = judged().with_columns(
        concept=pl.when(pl.col("instruction_id") < 8).then(None).otherwise(2.0),
        instruction=pl.lit(2.0),
        fluency=pl.lit(2.0),
    )
    for kind in "BC":
        folder = axbench_folder(tmp_path / kind, table, kind)
        [summary] = evaluate_axbench(folder, suppression=True, family=kind).tables["summary"].to_dicts()
        assert summary["n_failed"] == summary["n_missing"] == 72
        assert summary["mean_all_rows"] == 0.0  # what is known is not suppressed at all
        [as_axbench] = evaluate_axbench(folder, True, kind, failures="zero").tables["summary"].to_dicts()
        assert as_axbench["mean_all_rows"] == pytest.approx(0.8 * 2)


def test_without_replies_kinds_a_and_c_are_not_guessed(tmp_path):
    folder = axbench_folder(tmp_path, judged(), "A", replies=False)
    with pytest.raises(TagsteerError, match='family="A" or family="C"'):
        evaluate_axbench(folder)
    report = evaluate_axbench(folder, family="A")
    assert report.tables["failures"]["n_replies"].sum() == 0
    assert any("cannot be told" in note for note in report.notes)
    assert read_axbench(axbench_folder(tmp_path / "b", judged(), "B", replies=False)).families == {
        "GemmaScopeSAE": "B"
    }


def test_mixed_kinds_are_refused(tmp_path):
    parts = [axbench_folder(tmp_path / kind, judged(seed=3), kind) for kind in "AB"]
    files = [part / "evaluate" / "steering_data.parquet" for part in parts]
    pl.concat([pl.read_parquet(file) for file in files]).write_parquet(files[0])
    with pytest.raises(TagsteerError, match="mixes kinds"):
        evaluate_axbench(parts[0])


def test_absent_cells_and_concepts_are_reported(tmp_path):
    table = judged().filter(
        ~((pl.col("pair") == 1) & (pl.col("strength") == 0.4) & (pl.col("instruction_id") > 6))
    )
    report = evaluate_axbench(axbench_folder(tmp_path, table, "A", metadata=range(4)))
    absent = {tuple(row[1:3]): row[3] for row in report.tables["absent"].iter_rows()}
    assert absent == {(1, 0.4): 3, (3, 0.2): 10, (3, 0.4): 10, (3, 0.6): 10}
    assert report.tables["summary"]["n_absent"][0] == 33
    concept = report.tables["concepts"].filter(pl.col("concept_id") == 1)
    assert concept["n_absent"][0] == 3


def test_the_test_half_may_lie_in_a_file_of_its_own(tmp_path):
    whole = evaluate_axbench(axbench_folder(tmp_path / "whole", judged(), "A")).tables["concepts"]
    best = dict(whole.select("concept_id", "best_factor").iter_rows())
    folder = axbench_folder(tmp_path / "halves", judged(), "A")
    file = folder / "evaluate" / "steering_data.parquet"
    rows = pl.read_parquet(file)
    rows.filter(pl.col("input_id") < 5).write_parquet(file)
    chosen = pl.col("factor") == pl.col("concept_id").replace_strict(best)
    rows.filter((pl.col("input_id") >= 5) & chosen).write_parquet(
        file.with_name("steering_test_data.parquet")
    )
    report = evaluate_axbench(folder)
    columns = ["best_factor", "dev_max", "test_overall", "hm_of_means"]
    assert report.tables["concepts"].select(columns).equals(whole.select(columns))
    assert report.tables["absent"].height == 0 and any("mixes halves" in note for note in report.notes)


def test_several_methods_are_compared_with_the_sae(tmp_path):
    folder = axbench_folder(tmp_path, judged(), "A")
    file = folder / "evaluate" / "steering_data.parquet"
    other = pl.read_parquet(
        axbench_folder(tmp_path / "o", judged(seed=9), "A", "PromptSteering") / "evaluate" / file.name
    )
    own = pl.read_parquet(file)
    own.hstack(other.select(name for name in other.columns if name not in own.columns)).write_parquet(file)
    report = evaluate_axbench(folder / "evaluate")
    [rates] = report.tables["win_rates"].to_dicts()
    assert (rates["method"], rates["baseline"], rates["n"]) == ("PromptSteering", "GemmaScopeSAE", 3)
    scores = report.tables["concepts"].pivot("method", index="concept_id", values="test_overall")
    d = (scores["PromptSteering"] - scores["GemmaScopeSAE"]).to_numpy()
    assert rates["win_rate"] == pytest.approx(np.mean((d > 0) + (d == 0) / 2))
    assert any("ignores the factor" in note for note in report.notes)


def test_folders_that_hold_no_run_are_refused(tmp_path):
    with pytest.raises(TagsteerError, match="not a folder"):
        evaluate_axbench(tmp_path / "absent")
    axbench_folder(tmp_path / "runs" / "one", judged(), "A")
    with pytest.raises(TagsteerError, match="runs/one"):
        evaluate_axbench(tmp_path)
    broken = tmp_path / "broken" / "evaluate"
    broken.mkdir(parents=True)
    (broken / "steering_data.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TagsteerError, match="cannot be read"):
        evaluate_axbench(broken)
    pl.DataFrame({"x": [1]}).write_parquet(broken / "steering_data.parquet")
    with pytest.raises(TagsteerError, match="lacks concept_id, input_id, factor"):
        evaluate_axbench(broken)
    for wrong in ({"family": "D"}, {"failures": "never"}, {"duplicates": "all"}):
        with pytest.raises(TagsteerError):
            evaluate_axbench(tmp_path / "runs" / "one", **wrong)
