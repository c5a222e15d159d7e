# Needs python3 (3.11 or later), make and a package index. Start with `make serve` or `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check install $(if $(CI),--quiet) --constraint requirements.lock
# Options for `frcnn serve`, for example: make serve ARGS='--port 9000'
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint format types check lock docs image-test clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.dev ## Make .venv with everything a developer needs (quick when nothing has changed)
	@:

serve: $(VENV)/.runtime ## Install what the service needs, and serve on http://localhost:8000
	$(BIN)/frcnn serve $(ARGS)

# One process for each core, up to four, each with a file of tests; with one torch thread each, or they would compete for the cores.
test: setup ## Install what the tests need, and run them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: setup ## Style, formatting, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: setup ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy --strict on model/ and service/
	$(BIN)/mypy

check: lint types test ## All that .ci/run checks

lock: $(BIN)/python ## Choose the newest versions that pyproject.toml allows, and write them to requirements.lock
	$(BIN)/python tools/lock.py

docs: setup ## Write the generated tables of docs/operations.md and docs/scaling.md
	$(BIN)/python -m tools.docs

image-test: ## Build the Dockerfile and run the result, on Debian as root with buildah and debootstrap; takes gigabytes
	tools/image-test

clean: ## Remove .venv and every cache
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Stamps: each is made again when a file that it depends on is newer. The developer's install includes the runtime.
$(VENV)/.runtime: pyproject.toml requirements.lock | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.runtime $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # remove a venv that is only half made
