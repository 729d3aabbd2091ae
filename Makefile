# Needs Python 3.11+, make and the package registries; everything else is fetched.
# A second `make` does nothing that the first has done: set-up is guarded by a stamp.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv-bench
UV_VERSION := 0.13.9

# One file to a process, for what a file starts (a broker, a product) its tests share.
SPREAD := $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

# Every message of pip is either an error or in the way.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-faults test-long check format schemas bench bench-all bench-quick \
  screenshots audit lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

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

test: setup  ## all tests but those of faults and the long ones
	@$(SPREAD) tests/unit tests/property tests/integration

# The harness runs by itself: its faults are timed against a load that never lets up.
test-faults: setup  ## faults and upgrades under load, and the fault harness's short form
	@$(SPREAD) tests/fault
	@$(BIN)/pytest -q -m faults tests/fault

test-long: setup  ## the tests that take many minutes, and ten times the examples of properties
	@$(BIN)/pytest -q -m long tests
	@HYPOTHESIS_PROFILE=search $(SPREAD) --timeout 3000 tests/property

check: setup  ## format, lint, types, layering
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup  ## rewrite the sources in the one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

schemas: setup  ## write docs/schemas, docs/asyncapi.yaml and docs/settings.md from the code
	@$(BIN)/python -m pipeline.cli.contract_files docs

bench: setup $(PEERS)/.installed  ## the speed figures beside the peers', into docs/performance.md
	@$(BIN)/python -m bench --peers-python $(PEERS)/bin/python

bench-all: bench  ## those, and latency, scale and state
	@$(BIN)/python -m bench latency
	@$(BIN)/python -m bench scale
	@$(BIN)/python -m bench state

bench-quick: setup  ## the engine against a fixed loop: fails where it has become slower
	@$(BIN)/python -m bench quick

# An environment of their own: Quix Streams pins versions that the product cannot use. Where it
# cannot be made, the table says that the peers did not run.
$(PEERS)/.installed: bench/peers/requirements.lock
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes -r $< \
	  && touch $@ || echo "the peers' packages could not be installed: measuring without" >&2

screenshots: setup  ## docs/screenshots, by the dashboard's tests (needs chromium)
	@PIPELINE_TEST_SCREENSHOTS=$(CURDIR)/docs/screenshots $(BIN)/pytest -q \
	  tests/integration/ops/test_dashboard_pages.py

audit:  ## known vulnerabilities in what is installed (asks a vulnerability service)
	@test -x .venv-lock/bin/pip-audit || { $(PYTHON) -m venv .venv-lock; \
	  .venv-lock/bin/python -m pip install --quiet pip-audit==2.10.1; }
	@$(PYTHON) .ci/audit.py $(AUDIT_FLAGS) .venv-lock/bin/pip-audit requirements.lock

lock:  ## resolve pyproject.toml anew into requirements.lock
	@test -x .venv-lock/bin/uv || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet uv==$(UV_VERSION)
	@.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" \
	  --extra local --extra sim --extra dev pyproject.toml --output-file requirements.lock
	@# What a production image installs: no extras, and the same versions.
	@.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" \
	  --constraint requirements.lock pyproject.toml --output-file deploy/requirements.lock
	@.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" \
	  bench/peers/requirements.in --output-file bench/peers/requirements.lock

clean:  ## remove what make made (data/ is kept)
	rm -rf .venv .venv-lock $(PEERS) bench/peers/kafka_streams/target build dist *.egg-info \
	  .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
