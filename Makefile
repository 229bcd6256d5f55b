# The two commands of the README are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.PHONY: saes-page results setup demo test lint types unit test-peers bench clean help

help:
	@echo "make setup | demo | test | lint | types | test-peers | bench | results | saes-page | clean"

setup: $(STAMP)

# torch comes first and alone: asked for by another package it could arrive as a CUDA build of gigabytes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tagsteer needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(PY) -m pip install --quiet -c constraints.txt torch
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

demo: setup
	$(VENV)/bin/tagsteer demo

test: lint types unit

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup
	$(VENV)/bin/mypy

unit: setup
	$(PY) -m pytest

test-peers: setup
	$(PY) tests/peers/run.py

bench: setup
	$(PY) -m benchmarks

# The README's table and texts, from the last demo run.
results: setup
	$(PY) docs/make_results.py

# docs/saes.md, from the cards of the shipped SAEs.
saes-page: setup
	$(PY) docs/make_saes.py

clean:
	rm -rf $(VENV) .venv-peers build dist .pytest_cache .ruff_cache .mypy_cache
