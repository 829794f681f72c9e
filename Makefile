# Everything runs in .venv, which is made on first use. Another interpreter: make PYTHON=python3.13 …
# (Python 3.11 to 3.13.)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults test-long test-shapes test-cluster check format protos bench clean

help:  ## Show this list.
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/.run  ## Train three replicas on this machine (a few minutes) and show what they sent.
	$(BIN)/dist-train launch examples/demo.toml
	$(BIN)/dist-train report runs/demo

test: $(VENV)/.dev  ## Run the tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not full_matrix and not cluster" $(PYTEST_ARGS)

test-faults: $(VENV)/.dev  ## Run every fault at every point of a round (about 16 minutes).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

test-long: $(VENV)/.dev  ## Run what else takes long: ranks, pipelines, joins, chaos, virtual against real (about 7 minutes).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m full_matrix tests/launcher tests/benchmarks tests/dist_train/test_virtual.py $(PYTEST_ARGS)

test-shapes: $(VENV)/.dev  ## Run a step in every partition of eight ranks (some minutes).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/dist_train/sequence -m full_matrix $(PYTEST_ARGS)

test-cluster: $(VENV)/.dev  ## Run over real ssh and a real Slurm (apt-get install openssh-server slurm-wlm munge).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster tests/launcher $(PYTEST_ARGS)

check: $(VENV)/.dev  ## Formatting, lint, types, import rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Format the code, and mend what can be mended by itself.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(VENV)/.dev  ## Generate the Python code of protos/*.proto.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m protos.generate

bench: $(VENV)/.dev  ## Measure the codec beside torch.topk.
	$(BIN)/python -m benchmarks.codec

clean:  ## Remove .venv and caches; runs/ stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "dist-train needs Python 3.11 to 3.13, and $(PYTHON) is another: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), about a minute …"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), about a minute …"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.run
