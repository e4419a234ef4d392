# Every target works on a fresh clone; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.locked
CODE := coditect dispatcher agents benchmarks examples scripts tests
TYPED := coditect agents dispatcher benchmarks examples tests
UV ?= uv

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup servers lock format lint types unit test test-fdb up down demo bench docs check clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(STAMP) servers ## Create .venv from the lock file; install RabbitMQ and Redis if they are missing

$(STAMP): requirements.lock requirements-dev.lock pyproject.toml scripts/create-venv.sh
	@scripts/create-venv.sh $(VENV)
	@touch $@

servers:
	@scripts/install-servers.sh

lock: ## Write the lock files anew from pyproject.toml (needs uv)
	@UV="$(UV)" scripts/lock.sh

format: $(STAMP) ## Format the code
	@$(PYTHON) -m ruff format $(wildcard $(CODE))
	@$(PYTHON) -m ruff check --fix --quiet $(wildcard $(CODE))

lint: $(STAMP) ## Check style, format and the walls between the packages
	@$(PYTHON) -m ruff check $(wildcard $(CODE))
	@$(PYTHON) -m ruff format --check $(wildcard $(CODE))
	@$(VENV)/bin/lint-imports

types: $(STAMP) ## Check the types, strictly
	@$(PYTHON) -m mypy $(wildcard $(TYPED))

unit: $(STAMP) ## Unit and contract tests on the in-memory twins: no servers, under 30 s
	@$(PYTHON) -m pytest -n 2 -m "not servers and not slow" $(wildcard tests/unit tests/contract)

test: setup ## Every test, on a private RabbitMQ and Redis that the run starts itself
	@$(PYTHON) -m pytest --cov --cov-report=term

test-fdb: $(STAMP) ## The store's contract on a real FoundationDB (FDB_CLUSTER_FILE, or Docker)
	@scripts/test-fdb.sh $(PYTHON)

up: setup ## Start private servers and the reference fleet in the foreground
	@$(VENV)/bin/coditect up

down: $(STAMP) ## Stop exactly what `coditect up` started
	@$(VENV)/bin/coditect down

demo: setup ## Watch a fleet of agents review real code through RabbitMQ
	@$(PYTHON) -m agents.demo

bench: setup ## Measure throughput and latency; JSON and a table
	@$(PYTHON) -m benchmarks

docs: setup ## Check the documentation: links, snippets, schemas
	@$(PYTHON) -m pytest $(wildcard tests/docs)

check: lint types unit ## Lint, types, unit

clean: ## Remove the environment and every cache (stops what `coditect up` started)
	@if [ -x $(VENV)/bin/coditect ]; then $(VENV)/bin/coditect down || true; fi
	@rm -rf $(VENV) .coditect .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
