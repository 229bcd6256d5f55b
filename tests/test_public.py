"""The public names exist, are documented, and importing the package stays light."""

from __future__ import annotations

import inspect
import subprocess
import sys

import tagsteer

PUBLIC = [
    "Corpus", "SAE", "Steerer", "TagsteerError", "calibrated_f1", "extract_frequencies", "load_model", "load_sae",
    "output_scores", "overall_score", "parse_rating", "sample_instructions", "score_features", "select_pairs",
]  # fmt: skip


def test_the_list_of_public_names_is_kept():
    assert sorted(tagsteer.__all__) == PUBLIC


def test_every_public_name_is_there_and_documented():
    for name in PUBLIC:
        value = getattr(tagsteer, name)
        assert inspect.getdoc(value), name
        assert name in dir(tagsteer)


def test_importing_the_package_or_the_help_loads_nothing_heavy():
    code = (
        "import sys, tagsteer, tagsteer.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'polars', 'numba', 'pydantic', 'matplotlib', 'openai'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_of_the_design():
    import tagsteer as ts

    assert round(ts.calibrated_f1(30, 20, 20, 930, prior=1e-3), 6) == 0.053023
    assert ts.parse_rating("Rating: [[1]]") == 1.0 and ts.parse_rating("no rating") is None
    assert ts.overall_score(2, 1, 1) == 1.2
    assert ts.sample_instructions(0, 3) == [8, 258, 172]
