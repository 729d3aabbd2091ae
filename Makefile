# Needs Python 3.11+, make and the package registries; everything else is fetched.
# A second `make` does nothing that the first has done: set-up is guarded by a stamp.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
UV_VERSION := 0.13.9

# Every message of pip is either an error or in the way.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-long check format schemas bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## the virtual environment, from the lock file

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv (once; a few hundred MB to fetch) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## the main job end to end on the embedded Kafka and ClickHouse
	@$(BIN)/pipeline demo

test: setup  ## all tests but the long ones
	@$(BIN)/pytest -q tests/unit tests/property tests/integration tests/fault

test-long: setup  ## the tests that take minutes
	@$(BIN)/pytest -q -m long tests

check: setup  ## format, lint, types, layering
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict pipeline
	@$(BIN)/lint-imports --no-logo

format: setup  ## rewrite the sources in the one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

schemas: setup  ## write docs/schemas, docs/asyncapi.yaml and docs/settings.md from the code
	@$(BIN)/python -m pipeline.cli.contract_files docs

bench: setup  ## the speed figures
	@$(BIN)/python -m bench

lock:  ## resolve pyproject.toml anew into requirements.lock
	@test -x .venv-lock/bin/uv || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet uv==$(UV_VERSION)
	@.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" \
	  --extra local --extra dev pyproject.toml --output-file requirements.lock

clean:  ## remove what make made (data/ is kept)
	rm -rf .venv .venv-lock build dist *.egg-info .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
