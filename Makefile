# Everything here works on a fresh clone: the first target that needs it sets up .venv (Python 3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests run beside each other, a file each in the order of their names (the longest files have few tests, so they must not
# come last), one thread to a process; more than four processes fill a laptop's memory.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4)))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15

.PHONY: help setup demo test test-all lint bench clean
.DEFAULT_GOAL := help

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## set up .venv

# torch first and by its exact version: the others' requirements must not choose another one. Not compiled to bytecode: most
# of torch's and transformers' modules are never loaded, and those that are leave theirs at the first import.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## train on the shipped novels for three minutes, and have the model write
	$(BIN)/python -m zhixing demo

lint: $(READY) ## ruff, mypy and the contracts between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## every fast test
	@CHROMIUM=$$(command -v chromium || command -v chromium-browser || command -v google-chrome || true); \
	if [ -z "$$CHROMIUM" ] && [ -z "$$CI" ]; then \
	  echo "Left out: browser tests (no chromium found; on Debian: apt-get install chromium)."; \
	  select="not browser and not slow and not release and not network"; \
	else select="not slow and not release and not network"; fi; \
	echo "Left out: tests marked slow, release and network (make test-all runs slow; pytest -m release or -m network the others)."; \
	$(PYTEST) -m "$$select"

test-all: $(READY) ## the slow tests too
	$(PYTEST) -m "not release and not network"

bench: $(READY) ## speed beside the peers (benchmarks/peers.py says what it needs)
	$(BIN)/python benchmarks/gpt_train.py
	$(BIN)/python benchmarks/gpt_decode.py

clean: ## remove what was built and cached; .venv and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
