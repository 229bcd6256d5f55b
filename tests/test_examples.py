"""The experiment files in examples/ load, name what exists, and keep what the paper says. They are not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tagsteer.config import RunConfig, load_config

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_example_loads(path):
    config = load_config(path)
    assert isinstance(config, RunConfig) and config.name.startswith(path.stem)
    # Relative paths are those of the file, wherever tagsteer is called from.
    for found in (getattr(config.corpus, "path", None), config.steer.instructions_file):
        assert found is None or found.is_absolute()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_embedded_names_are_shipped(path):
    from tagsteer.sae.loading import embedded_saes

    name = load_config(path).sae.name
    assert "/" in name or embedded_saes()[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commented_settings_are_settings(path):
    """A line that a user may uncomment is a setting of its section, not one of an older version."""
    section = ""
    for line in path.read_text("utf-8").splitlines():
        if found := re.match(r"\[(\w+)\]", line):
            section = found[1]
        elif found := re.match(r"# (\w+)( = |  +# )", line):
            assert found[1] in RunConfig.model_fields[section].annotation.model_fields, line


def test_the_papers_experiment_has_the_papers_figures():
    """arXiv 2605.31183, sections 3 and 4; π₀ and the output score's threshold as reported by others."""
    config = load_config(EXAMPLES / "gemma-2-9b.toml")
    assert config.model.name.startswith("google/gemma-2-9b")
    assert "gemma-scope-9b-pt-res/layer_32/" in config.sae.name
    assert config.score.min_support == 50 and config.score.prior == 1e-3
    assert config.select.min_output_score == 1e-3
    assert config.steer.intervention == "clamp" and config.steer.instructions == 20
    assert config.judge.kind == "server" and config.judge.model == "gpt-4o-mini"
    assert (config.evaluate.protocol, config.evaluate.repeats, config.evaluate.splits) == ("paper", 10, 4)
    # No filter that the paper does not have.
    s = config.select
    assert s.max_q is None and not (s.representatives_only or s.one_per_label or s.one_per_feature)


def test_every_entry_of_the_papers_experiment_says_where_it_is_from():
    origin = re.compile(r"#.*\b(paper|reported|AxBench|ours)\b")
    section, above, silent = "", "", []
    for line in (EXAMPLES / "gemma-2-9b.toml").read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line
        if re.match(r"\w+ = ", line) and not origin.search(line) and not origin.search(above):
            silent.append(f"{section} {line}")
        above = above + line if line.startswith("#") else ""
    # Whose judge it is stands at its model; the protocol's name is the paper.
    assert silent == ['[judge] kind = "server"', '[evaluate] protocol = "paper"']


@pytest.mark.shared
@pytest.mark.parametrize("name", ["beer.toml", "cooking.toml"])
def test_the_data_of_our_checks_is_where_the_file_says(shared, name):
    path = load_config(EXAMPLES / name).corpus.path
    assert path.is_file() and shared.resolve() in path.resolve().parents


def test_the_list_of_examples_is_complete():
    text = (EXAMPLES / "README.md").read_text("utf-8")
    for path in (*FILES, *EXAMPLES.glob("*.py")):
        assert f"[{path.name}]({path.name})" in text
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (EXAMPLES / name).exists(), name
