"""The baselines that a configuration asks for, in a whole run of a tiny model: who is steered, with what, how far."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.judge.replies import RecordedJudge
from tagsteer.label.frequencies import Frequencies
from tagsteer.label.scoring import DEFAULT_THRESHOLDS
from tagsteer.label.statistics import split_documents
from tagsteer.run import Run
from tagsteer.stages import methods as stage
from tagsteer.stages import steering
from tagsteer.steer.instructions import load_instructions
from tests.tiny import D_MODEL
from tests.tiny_run import D_SAE, tiny_config, write_inputs


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def selected(files, tmp_path_factory) -> Run:
    """A run up to `select`, to which the tests add baselines."""
    run = Run(tiny_config(files), tmp_path_factory.mktemp("run"))
    run.execute("select")
    return run


def with_baselines(selected: Run, **steer) -> Run:
    run = Run(tiny_config(Path(selected.config.sae.name).parent, **steer), selected.folder)
    run.__dict__.update(model=selected.model, sae=selected.sae)
    return run


def method(run: Run, name: str):
    [found] = [m for m in stage.methods_of(run) if m.name == name]
    return found


def test_baselines_are_off_unless_asked_for(selected):
    assert [m.name for m in stage.methods_of(selected)] == ["steered", "unsteered", "random", "prompt"]


def test_plain_f1_is_the_best_over_all_features_and_thresholds(selected):
    """Against a slow loop over features and thresholds, on the part that our pairs were found on."""
    found = {
        pair.label: pair.feature for pair in method(with_baselines(selected, plain_f1=True), "plain F1").pairs
    }
    frequencies = Frequencies.load(selected.path("extract"))
    rows = split_documents(80, heldout=0.3, seed=0).selection
    z = frequencies.matrix[rows].toarray()
    assert set(found) == {"bread", "wine"}
    for label, feature in found.items():
        y = selected.corpus.label_matrix[rows][:, selected.corpus.label_index(label)].toarray()[:, 0] == 1
        best = np.zeros(D_SAE)
        for i in range(D_SAE):
            for t in np.asarray(DEFAULT_THRESHOLDS, np.float32):
                on = z[:, i] > t
                counts = ((on & y).sum(), (on & ~y).sum(), (~on & y).sum())
                best[i] = max(best[i], 2 * counts[0] / max(1, 2 * counts[0] + counts[1] + counts[2]))
        usable = np.isfinite(frequencies.robust_max)
        assert best[feature] == pytest.approx(best[usable].max(), abs=1e-6)


def test_directions_are_added_in_multiples_of_their_largest_projection(selected):
    run = with_baselines(selected, difference_of_means=True)
    found = method(run, "difference of means")
    vector = found.vectors["mean:wine"]
    assert vector.norm() == pytest.approx(1.0, abs=1e-5)
    assert set(stage.vectors_of(stage.methods_of(run))) == {"mean:bread", "mean:wine"}
    # Two labels that share the documents out between them: opposite directions.
    torch.testing.assert_close(vector, -found.vectors["mean:bread"], atol=1e-4, rtol=0)
    instruction = load_instructions().sample(1)[0]
    for pair in found.pairs:
        [term] = found.item(pair, 2.0, instruction).intervention.terms
        assert term.operation == "addition"
        assert (
            term.value == pytest.approx(2 * found.settings.max_activations[pair.feature]) and term.value > 0
        )


def test_another_direction_under_the_same_name_is_another_text(selected):
    run = with_baselines(selected, difference_of_means=True)
    found = method(run, "difference of means")
    item = found.item(found.pairs[0], 2.0, load_instructions().sample(1)[0])
    turned = {name: vector.flip(0) for name, vector in found.vectors.items()}
    first, second = (steering._digest(item, run, vectors) for vectors in (found.vectors, turned))
    assert first != second and first == steering._digest(item, run, dict(found.vectors))


def test_directions_are_fitted_once_for_the_same_documents(selected, monkeypatch):
    from tagsteer.steer.baselines import difference_of_means

    run = with_baselines(selected, difference_of_means=True)
    first = method(run, "difference of means").vectors
    monkeypatch.setattr(difference_of_means, "fit_directions", lambda *_, **__: pytest.fail("fitted again"))
    again = method(run, "difference of means").vectors
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_label_without_a_positive_projection_is_left_out(selected, monkeypatch, caplog):
    from tagsteer.steer.baselines.difference_of_means import Direction

    fitted = {"bread": Direction(torch.eye(D_MODEL)[0], -1.0), "wine": Direction(torch.eye(D_MODEL)[1], 3.0)}
    monkeypatch.setattr(stage, "_directions", lambda *_: fitted)
    found = method(with_baselines(selected, difference_of_means=True), "difference of means")
    assert [p.label for p in found.pairs] == ["wine"] and "1 labels without" in found.provenance
    assert "left out" in caplog.text
    absolute = method(
        with_baselines(selected, difference_of_means=True, unit="absolute"), "difference of means"
    )
    assert len(absolute.pairs) == 2


def exported(path: Path, features) -> Path:
    rows = [{"index": str(f), "description": f"things like {f}"} for f in features]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_np_random_draws_from_those_that_fire(selected, tmp_path):
    frequencies = Frequencies.load(selected.path("extract"))
    alive = np.flatnonzero((frequencies.n_docs_active >= 10) & np.isfinite(frequencies.robust_max))
    path = exported(tmp_path / "export.jsonl", range(D_SAE))
    found = method(with_baselines(selected, neuronpedia=str(path), neuronpedia_features=3), "NP random")
    assert len(found.pairs) == 3 and {p.feature for p in found.pairs} <= set(alive.tolist())
    assert all(p.label == f"things like {p.feature}" for p in found.pairs)
    assert "export.jsonl" in found.provenance


@pytest.mark.parametrize(
    ("features", "message"), [([D_SAE + 1, 2], "exactly this SAE"), ([0], "neuronpedia_features")]
)
def test_labels_of_another_sae_or_too_few_are_refused(selected, tmp_path, features, message):
    path = exported(tmp_path / "export.jsonl", features)
    with pytest.raises(TagsteerError, match=message):
        stage.methods_of(with_baselines(selected, neuronpedia=str(path), neuronpedia_features=9))


@pytest.mark.shared
def test_axbench_metadata_names_features_of_an_sae_that_is_not_ours(selected, shared):
    path = shared / "axbench/concept500/prod_2b_l20_v1/metadata.jsonl"
    with pytest.raises(TagsteerError, match="does not have"):
        stage.methods_of(with_baselines(selected, neuronpedia=str(path)))


def test_a_whole_run_with_every_baseline(selected, tmp_path, monkeypatch):
    """Every stage takes vectors, and pairs that are not the run's; the same run again does nothing."""
    monkeypatch.setattr(steering, "choose_judge", lambda *_: RecordedJudge(rated))
    path = exported(tmp_path / "export.jsonl", range(D_SAE))
    changes = {
        "plain_f1": True, "difference_of_means": True, "neuronpedia": str(path), "neuronpedia_features": 3
    }  # fmt: skip
    run = with_baselines(selected, **changes)
    run.execute()
    cells = pl.read_parquet(run.path("steer") / "generations.parquet")
    counts = dict(cells.group_by("method").len().iter_rows())
    assert (
        counts["plain F1"] == counts["difference of means"] == 2 * 2 * 4 and counts["NP random"] == 3 * 2 * 4
    )
    named = cells.filter(pl.col("method") == "NP random")
    assert sorted(set(named["pair"])) == [2, 3, 4] and named["feature"].null_count() == 0
    means = cells.filter(pl.col("method") == "difference of means")
    assert means["feature"].null_count() == means.height and means["value"].null_count() == 0
    summary = pl.read_parquet(run.path("evaluate") / "methods.parquet")
    assert dict(summary.select("method", "n_pairs").iter_rows())["NP random"] == 3
    against = pl.read_parquet(run.path("evaluate") / "comparisons.parquet")
    assert {"plain F1", "difference of means", "random", "prompt"} <= set(against["baseline"])
    page = (run.path("report") / "report.html").read_text("utf-8")
    assert "difference of means" in page and "NP random" in page
    said: list[str] = []
    run.execute(on_stage=lambda _, text: said.append(text))
    assert all(text.startswith("done before") for text in said)


def rated(_part: str, item) -> str:
    return f"Rating: [[{len(item.generation) % 3}]]"
