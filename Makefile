# What a newcomer runs, what a developer runs, and what CI runs: three names, one environment.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two processes: most tests use one core.  A file's tests share what it makes once, and the longest
# files come first (tests/conftest.py).
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
# Else each of the many processes that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# The committed reference and what is compared with it are the same command line: this one.
REGRESSION_RUN   := results/reference/regression
REGRESSION_FLAGS := --device cpu --dtype float32 --limit 3 --max-new-tokens 32 \
	--method kangaroo --method medusa --method token_recycling --method lookahead \
	--method prompt_lookup --method layer_skip
# Another processor adds in another order, which may turn a near tie of two tokens round: one
# answer of 21 may differ.  On the machine of the reference none should.
REGRESSION_TOLERANCES := --tolerance-tokens 0.05

# All that is to be measured on a GPU; QUESTIONS may be a file where nothing can be downloaded.
SPECBENCH ?= $(BIN)/specbench
QUESTIONS ?= spec-bench
GPU_RUN   := --device cuda --questions $(QUESTIONS) --max-new-tokens 1024
GPU_ALL   := --method kangaroo --method medusa --method lookahead --method prompt_lookup \
	--method token_recycling --method layer_skip --method chain=kangaroo --option chain.tree_width=1
GPU_PROFILE := --device cuda --backend eager --backend graph --format json

.DEFAULT_GOAL := check
.PHONY: bench check lint types fast test venv reference regression reference-regression gpu

# Not compiled: that takes a minute, and most modules of torch and Ray are never imported.
venv: $(VENV)/installed  ## install the project with pinned constraints; done once

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile \
		-c constraints.txt torch -e ".[dev]"
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
	$(PYTEST) -m "not real" tests

test: venv lint types  ## all that CI runs
	$(PYTEST) tests

reference: venv  ## the page of all commands and flags, after a change of one
	$(BIN)/python -m typer specbench_kangaroo.cli.main utils docs --name specbench \
		--title "The command line, written by make reference" \
		--output specbench_kangaroo/cli/README.md

regression: venv  ## the default model against its committed reference, by the gates that need no clock
	folder=$$(mktemp -d) && $(BIN)/specbench run $(REGRESSION_FLAGS) --output "$$folder/run" && \
	$(BIN)/specbench compare $(REGRESSION_RUN) "$$folder/run" $(REGRESSION_TOLERANCES) && \
	rm -r "$$folder"

reference-regression: venv  ## make that reference again: only where it is meant to change
	rm -rf $(REGRESSION_RUN)
	$(BIN)/specbench run $(REGRESSION_FLAGS) --output $(REGRESSION_RUN)

gpu:  ## profiles and the 480 questions by both backends, into results/reference/gpu-*
	$(SPECBENCH) profile $(GPU_PROFILE) --output results/reference/gpu-profile.json
	$(SPECBENCH) profile $(GPU_PROFILE) --shape vicuna-7b --dtype float16 \
		--output results/reference/gpu-profile-vicuna-7b.json
	for backend in eager graph; do \
		$(SPECBENCH) run $(GPU_RUN) $(GPU_ALL) --backend $$backend \
			--output results/reference/gpu-$$backend || exit; \
	done
