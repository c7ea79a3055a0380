# `make quickstart` trains a small model here and now; `make test` is what CI runs. Both start from nothing but Python.
# The local backend's SDK and constraints.txt need Python 3.11 or 3.12.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# A stamp says which extras .venv holds and is older than what it was made from as soon as that changes.
RUNTIME := $(VENV)/.installed-runtime
ALL := $(VENV)/.installed-all

.PHONY: help venv quickstart test soak lint clean

help:
	@echo "make quickstart  train a small model on this machine, from nothing, and report its accuracy before and after"
	@echo "make venv        make $(VENV) with everything that the tests, the lab and the benchmarks need"
	@echo "make test        make venv, then lint, then every test"
	@echo "make soak        the long versions of the reliability tests: hours of faults and of bad input"
	@echo "make lint        ruff check, ruff format --check and mypy"
	@echo "make clean       remove $(VENV) and the caches (runs/ stays)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[local]'
	touch $@

$(ALL): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[local,lab,dev]'
	touch $(RUNTIME) $@

venv: $(ALL)

quickstart: $(RUNTIME)
	$(BIN)/trinity-rec quickstart

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

# A test that soaks sets its own time limit by pytest.mark.timeout; faulthandler's look at a long test can crash it.
soak: $(ALL)
	$(INSTALL) --editable '.[soak]'
	$(BIN)/pytest -m soak -o faulthandler_timeout=0

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
