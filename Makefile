# make setup | run | test | test-all | test-faults | simulate | check | docs | format | clean
PYTHON ?= python3
TORCH ?= torch==2.13.0
EXTRAS ?= dev
FAULT_SEEDS ?= 5
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src tests docs run_local.py start_trainer_client.py start_servers.py test_failover.py benchmarks examples

.PHONY: setup run test test-all test-faults simulate check docs format clean

setup: $(STAMP)

# Made again only when the dependencies or TORCH's pin here change.
$(STAMP): pyproject.toml Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]" "$(TORCH)"
	@touch $@

run: setup
	$(BIN)/python run_local.py

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

# Every row of the fault table, with processes that are really killed: docs/faults.md. About an hour.
test-faults: setup
	$(BIN)/python -m pytest tests -m faults --fault-seeds $(FAULT_SEEDS)

SEEDS ?= 10000

# Bad days by the thousand over all cores; prints the seeds that break an invariant.
simulate: setup
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

check: setup
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/mypy --python-version 3.10
	$(BIN)/mypy --python-version 3.11
	$(BIN)/mypy --python-version 3.12
	$(BIN)/lint-imports

# The site in build/docs; any warning fails. Needs no network.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees -b html docs build/docs

format: setup
	$(BIN)/ruff format $(wildcard $(SOURCES))
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
