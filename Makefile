# make run    the whole job on the generated data set; make run DATASET=cifar10 on another
# make test   what CI runs; as root it installs Chromium by apt, for the tests of the pages (else those are skipped).
#             Both need Python 3.11 or later, git and make, and nothing else.
# make test-ceph   the storage tests against a real Ceph gateway, which it installs by apt, as root (docs/object-stores.md)

SHELL := /bin/bash
.DEFAULT_GOAL := help

DATASET ?= sample
PRESET ?= quick
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Nothing calls home, and threads that wait do not spin.
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export OMP_WAIT_POLICY ?= PASSIVE
# A run starts dozens of processes; without compiled modules each takes some ten seconds to import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run evidence test test-ceph lint bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) selection.yaml ## Build .venv from requirements.lock, and select the data set `sample`

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv what requirements.lock names (about 5 GB, a minute or more) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --requirements requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	@touch $@

# DVC's templates read it; `make run` and `dmcp run` write it anew.
selection.yaml: | $(STAMP)
	@test -e $@ || $(BIN)/python -c 'from flows.graph import select_dataset; select_dataset("sample")'

run: setup ## Run the whole job: make run DATASET=sample (or cifar10, tinyimagenet, imagefolder)
	$(BIN)/dmcp run --dataset $(DATASET)

evidence: setup ## Evaluate the protection: make evidence DATASET=cifar10 PRESET=quick (or full, for a GPU)
	$(BIN)/dmcp evaluate-protection --dataset $(DATASET) --preset $(PRESET)

test: setup lint ## Lint, type check, import contracts, tests (a process more than there are cores)
	@tests/install-chromium
	$(BIN)/python -m tests.run

# Not part of `make test`: installing and starting Ceph, and these tests, take minutes.
test-ceph: setup ## The storage tests against a real Ceph gateway; as root it installs Ceph (apt)
	@tests/install-ceph
	$(BIN)/python -m pytest tests/storage -k ceph -rs

lint: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Time each step of protect and restore, beside Pillow and Stegano (GPL, installed for this alone)
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --target .bench stegano crayons piexif opencv-python-headless
	$(BIN)/python -m benchmarks.bench_method
	PYTHONPATH=.bench $(BIN)/python -m benchmarks.bench_exact

clean: ## Remove built and cached files; data, keys and models stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find flows tasks storage tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
