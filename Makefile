# All targets use .venv, which is created on first use. PYTHON selects the interpreter (3.11 or newer).
PYTHON ?= python3
PBTRL := .venv/bin/pbtrl

.PHONY: train test test-all chaos scores lint check docs install clean

train: install
	$(PBTRL) train configs/quickstart.yaml --suffix

test: install
	.venv/bin/python -m pytest -n 2 --dist worksteal

test-all: install
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[ray]"
	.venv/bin/python -m pytest -m "slow or not slow" --timeout 3000

chaos: install
	.venv/bin/python -m tests.chaos

# Trains every shipped config, which takes hours; what is finished is skipped, and an interrupted run continues.
# The results go to docs/results.md.
scores: install
	$(PBTRL) sweep $(filter-out reference,$(basename $(notdir $(wildcard configs/*.yaml)))) --unequal --seeds 1 --name scores
	.venv/bin/python benchmarks/results.py runs/scores

lint: install
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

check: test lint

docs: install
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict -q -d site

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev,fast]"
	touch $@

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache
