# What a newcomer runs, what a developer runs, and what CI runs: three names, one environment.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := check
.PHONY: bench check lint types fast test venv

venv: $(VENV)/installed  ## install the project with pinned constraints; done once

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

bench: venv  ## Kangaroo against vanilla on the default model, four built-in questions a task
	$(BIN)/specbench run --method kangaroo --limit 4

check: lint types fast  ## before every commit

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

fast: venv
	$(BIN)/pytest -m "not real" tests

test: venv lint types  ## all that CI runs
	$(BIN)/pytest tests
