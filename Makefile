# Every target works on a fresh clone. `make` alone lists the main ones, CONTRIBUTING.md all.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.locked
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.locked
PACKAGE_VENV := .venv-package
# A developer has more than what the demo runs.
DEMO_VENV := $(if $(wildcard $(STAMP)),$(VENV),.venv-demo)
DEMO_STAMP := $(DEMO_VENV)/.locked
PACKAGE_STAMP := $(PACKAGE_VENV)/.locked
CODE := coditect dispatcher agents chaos benchmarks examples scripts tests
TYPED := coditect agents dispatcher chaos benchmarks examples tests
UV ?= uv
PYTHONS ?= 3.11 3.12 3.13 3.14
SEED ?= 1
OBSERVE_SECONDS ?= 20
MINUTES ?= 5
FUZZ_SECONDS ?= 90

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start Python a thousand times: what one process has compiled, the others only read.
export PYTHONDONTWRITEBYTECODE :=

RABBITMQ4 := .coditect/rabbitmq-4.0.5

.PHONY: help setup collector-test servers tools bare-test lock format lint types unit test prove collect coverage test-rabbitmq4 test-fdb endure kills autonomy healing chaos simulate mutants cluster-test up down
.PHONY: demo browser screenshots observe dashboards diagrams bench bench-workflows profile docs package languages k8s-test topology digests check clean pythons image api-fuzz slow

help: ## List the main targets
	@show() { echo "$$1:"; shift; for name; do \
		printf '  make %-9s %s\n' "$$name" "$$(sed -n "s/^$$name:.*## //p" $(firstword $(MAKEFILE_LIST)))"; done; }; \
	show "Use it" demo up down; \
	show "Work on it" setup format check test docs package clean; \
	show "Prove it" prove simulate chaos bench slow; \
	echo "CONTRIBUTING.md lists all targets."

setup: $(STAMP) tools ## Create .venv from the lock file; install RabbitMQ and Redis if they are missing

$(STAMP): requirements/runtime.lock requirements/dev.lock pyproject.toml scripts/create-venv.sh
	@scripts/create-venv.sh $(VENV)
	@touch $@

$(BENCH_STAMP): requirements/bench.lock pyproject.toml scripts/create-venv.sh
	@scripts/create-venv.sh $(BENCH_VENV) requirements/bench.lock
	@touch $@

.venv-demo/bin/python:
	@scripts/create-venv.sh .venv-demo ""

.venv-demo/.locked: requirements/demo.lock pyproject.toml scripts/create-venv.sh
	@scripts/create-venv.sh .venv-demo requirements/demo.lock
	@touch $@

$(PACKAGE_STAMP): requirements/package.lock pyproject.toml scripts/create-venv.sh
	@scripts/create-venv.sh $(PACKAGE_VENV) requirements/package.lock
	@touch $@

servers:
	@scripts/install-servers.sh

# The documentation's examples use them.
tools:
	@scripts/install-servers.sh amqp-tools curl

lock: ## Write the lock files again from pyproject.toml (needs uv)
	@UV="$(UV)" scripts/lock.sh

format: $(STAMP) ## Format the code
	@$(PYTHON) -m ruff format $(wildcard $(CODE))
	@$(PYTHON) -m ruff check --fix --quiet $(wildcard $(CODE))

lint: $(STAMP) ## Check style, format, and the walls between the packages
	@$(PYTHON) -m ruff check $(wildcard $(CODE))
	@$(PYTHON) -m ruff format --check $(wildcard $(CODE))
	@$(VENV)/bin/lint-imports

types: $(STAMP) ## Check the types, strictly
	@$(PYTHON) -m mypy $(wildcard $(TYPED))

# Whole processes, workflows and state machines: `make test` has them.
UNHURRIED := tests/unit/agents tests/unit/chaos tests/unit/examples tests/unit/sync tests/unit/testing \
	tests/unit/agent tests/unit/dispatcher tests/contract/store

unit: $(STAMP) ## The quick unit and contract tests on the in-memory twins: no servers, less than a minute
	@$(PYTHON) -m pytest -n 2 -m "not servers and not proof and not endurance" --hypothesis-profile=quick \
		$(wildcard tests/unit tests/contract) $(addprefix --ignore=,$(UNHURRIED))

pythons: ## `make unit` on each Python of PYTHONS="3.11 3.12 3.13 3.14" that is on PATH (two minutes each)
	@scripts/pythons.sh $(PYTHONS)

# What these test is not the library, whose coverage is measured.
UNTRACED := tests/docs tests/contract/graph tests/contract/store \
	tests/unit/agents tests/unit/benchmarks tests/unit/chaos tests/unit/dispatcher tests/unit/graph tests/unit/layers \
	tests/unit/store

# Tests with servers wait most of the time, the others hardly ever: mixed, they leave no processor idle. Each process has
# a broker and a Redis of its own.
SERVERS ?= $(or $(CODITECT_TEST_SERVERS),private)
SIDE_BY_SIDE := -n 4 --dist worksteal

test: setup ## Show each behavior once, on servers that the run starts itself (fifteen minutes on two cores)
	@CODITECT_TEST_SERVERS=$(SERVERS) $(PYTHON) -m pytest $(SIDE_BY_SIDE) -m "not proof and not endurance"
	@if [ "$(SERVERS)" = containers ]; then CODITECT_TEST_SERVERS=containers scripts/test-fdb.sh $(PYTHON); fi

prove: setup ## Prove by volume: the simulation, faults under load, the demo killed, every page as a program (ten minutes)
	@CODITECT_TEST_SERVERS=$(SERVERS) $(PYTHON) -m pytest $(SIDE_BY_SIDE) -m "proof and not endurance" \
		$$(grep -rl --include=test_*.py 'mark\.proof' tests)

# What it compiles, the four processes of `make test` read; otherwise each of the four would compile it.
collect: $(STAMP) ## Collect every test, which compiles them all
	@found="$$($(PYTHON) -m pytest --collect-only -q)" || { tail -n 100 <<<"$$found"; exit 1; }

coverage: setup ## The library's tests without servers again, by branch coverage: at least 90 % (eight minutes)
	@$(PYTHON) -m pytest -n 2 -m "not servers and not endurance" --cov --cov-report=term:skip-covered \
		$(addprefix --ignore=,$(UNTRACED))

test-rabbitmq4: setup ## Every test that needs servers, on RabbitMQ 4.0.5 unpacked from Debian's packages
	@sbin="$$(scripts/unpack-rabbitmq.sh 4.0.5 trixie $(RABBITMQ4))"; \
	env -u CODITECT_TEST_SERVERS CODITECT_RABBITMQ_SBIN="$$sbin" $(PYTHON) -m pytest $(SIDE_BY_SIDE) -m "servers and not endurance" --ignore=tests/unit

api-fuzz: setup ## Ask the HTTP API strange things by its schema, on a private fleet (FUZZ_SECONDS=90)
	@scripts/api-fuzz.sh $(VENV)/bin $(FUZZ_SECONDS)

endure: setup ## The long proofs: servers killed and wiped under load (half an hour)
	@$(PYTHON) -m pytest -m endurance -s tests

test-fdb: setup ## Contract, workflows, chaos and benchmarks on a real FoundationDB (PARTS=contract for one)
	@CODITECT_TEST_SERVERS=$(SERVERS) scripts/test-fdb.sh $(PYTHON) $(PARTS)

kills: setup ## Kill an agent, the broker and Redis amid 2,000 tasks, by twenty seeds (seven minutes)
	@$(PYTHON) -m pytest -m endurance -s -p no:randomly tests/acceptance/test_kills.py

autonomy: setup ## Measure how many of 1,000 mixed workflows need no person, with one fault a second (half an hour)
	@$(PYTHON) -m chaos.autonomy --workflows $(or $(WORKFLOWS),1000) --seed $(SEED)

healing: setup ## Break services a hundred times and have a fleet heal them: fixed and time to repair by fault (five minutes; RUNS=100)
	@$(PYTHON) -m agents.demo.healing --runs $(or $(RUNS),100) --seed $(SEED)

chaos: setup ## Break a private fleet and check every promise (twenty minutes)
	@$(PYTHON) -m chaos --seed $(SEED) --seeds 3 --minutes $(MINUTES)

simulate: setup ## Check the promises in three hundred seeds of the simulation (two minutes)
	@$(PYTHON) -m chaos --simulate --seed $(SEED) --seeds 300

mutants: setup ## Catch every mutant by the simulation (ten minutes; a mutant that was caught is not hunted again)
	@$(PYTHON) -m chaos.mutants $(MUTANTS)

up: setup ## Start private servers and the reference fleet in the foreground
	@$(VENV)/bin/coditect up

down: $(STAMP) ## Stop exactly what `coditect up` started
	@$(VENV)/bin/coditect down

# Python's packages and the servers are fetched at the same time, when apt has installed what the former need.
demo: ## Watch agents do tasks, a workflow and a goal while one of them and RabbitMQ are killed (KEEP=1 keeps the fleet)
	@$(MAKE) -s --no-print-directory $(DEMO_VENV)/bin/python
	@$(MAKE) -s --no-print-directory -j 2 $(DEMO_STAMP) servers
	@$(DEMO_VENV)/bin/python -m agents.demo $(if $(KEEP),--keep)

observe: setup ## See a fleet under load by a real Prometheus: every dashboard's queries, every alert (four minutes; KEEP=1: stay)
	@CODITECT_OTELCOL="$$(scripts/otel-collector.sh $(COLLECTOR) || true)" \
	CODITECT_OBSERVE_SECONDS=$(OBSERVE_SECONDS) CODITECT_OBSERVE_KEEP=$(KEEP) \
		$(PYTHON) -m pytest -m endurance -s -p no:randomly tests/observability/test_observe.py

dashboards: $(STAMP) ## Write the Grafana dashboards, and the manifests of Kubernetes that have them and the alerts
	@$(PYTHON) scripts/dashboards.py
	@$(PYTHON) scripts/observability_manifests.py

browser: setup ## Drive every page of the dashboard in a headless Chromium, which apt installs (a minute)
	@scripts/install-chromium.sh
	@$(PYTHON) -m pytest -n 2 tests/browser

screenshots: setup ## Take the pictures of the dashboard for README and docs, of a demo that stays (a minute)
	@scripts/install-chromium.sh
	@$(PYTHON) -m tests.browser.pictures

bench: $(BENCH_STAMP) servers ## Measure speed beside aio-pika, Celery, Taskiq, RQ and Dask (half an hour)
	@$(BENCH_VENV)/bin/python -m benchmarks

bench-workflows: $(BENCH_STAMP) servers ## The parts of `make bench` about workflows, beside RQ, Celery, Taskiq and Dask
	@$(BENCH_VENV)/bin/python -m benchmarks --only workflows --only workflow-cost --only workflow-size --only workflow-state

profile: $(BENCH_STAMP) servers ## Show where client and agent spend their time, by py-spy
	@$(BENCH_VENV)/bin/python -m benchmarks --profile

# What takes long to build, for every clone.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/coditect
KUBERNETES := $(CACHE)/kubernetes
COLLECTOR := $(CACHE)/otelcol

k8s-test: setup ## Apply the manifests to a real Kubernetes API server, which it builds once by Go (45 minutes), and run their pods as processes (seven minutes)
	@programs="$$(scripts/kubernetes-servers.sh $(KUBERNETES))"; \
	CODITECT_KUBERNETES="$$programs" $(PYTHON) -m pytest -v -p no:randomly tests/k8s

collector-test: setup ## A workflow's trace in a real OpenTelemetry Collector, which it builds once by Go (some minutes)
	@program="$$(scripts/otel-collector.sh $(COLLECTOR))"; \
	CODITECT_OTELCOL="$$program" $(PYTHON) -m pytest -p no:randomly tests/integration/telemetry

topology: $(STAMP) ## Write the topology of the agents in k8s/agents as Kubernetes objects
	@$(VENV)/bin/coditect topology export --format k8s -c hello.greet -c text.count \
		> k8s/components/rabbitmq/topology.json

digests: $(STAMP) ## Pin the images of production to what their registries have now (needs kubectl and skopeo)
	@$(PYTHON) scripts/pin_images.py

diagrams: $(STAMP) ## Write the C4 diagrams of the reference fleet in docs/diagrams
	@$(VENV)/bin/coditect topology export --diagrams docs/diagrams $$($(PYTHON) -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["tool"]["coditect"]["fleet"])')

package: $(PACKAGE_STAMP) $(STAMP) ## Build sdist, wheel, SBOM and audit; try the wheel in empty environments (two minutes)
	@scripts/package.sh $(PACKAGE_VENV)/bin dist
	@$(PYTHON) -m pytest -s -m "endurance or not endurance" -p no:randomly tests/acceptance/test_package.py

cluster-test: setup ## Kill, freeze and restart each of three RabbitMQ nodes under load: no task is lost, service continues (ten minutes)
	@CODITECT_CLUSTER=1 $(PYTHON) -m pytest -s -p no:randomly tests/cluster

image: setup ## Build deploy/Dockerfile over Debian packages; a fleet works in containers of it (root; some minutes)
	@scripts/image.sh .coditect/image
	@CODITECT_IMAGE=1 $(PYTHON) -m pytest -s -p no:randomly tests/deploy/test_image.py

languages: setup ## The clients and agents in JavaScript, Go and Java beside ours (needs npm, go, mvn; two minutes)
	@CODITECT_LANGUAGES=1 $(PYTHON) -m pytest -p no:randomly tests/languages

docs: setup ## Test the documentation: every block, link and table
	@$(PYTHON) -m pytest $(wildcard tests/docs)

bare-test: ## README's commands in a bare Debian, installed by debootstrap (root; half an hour; README=demo: five minutes)
	@scripts/bare-test.sh .coditect/bare $(README)

QUICK ?= unit
check: lint types $(QUICK) ## Lint, types, unit tests (under a minute)

SLOW ?= package languages image k8s-test cluster-test test-fdb
slow: ## Package, languages, image, Kubernetes, cluster and FoundationDB, as far as this machine can run them
	@failed=; for one in $(SLOW); do echo "== make $$one"; $(MAKE) "$$one" || failed+=" $$one"; done; \
	if [ -n "$$failed" ]; then echo "Failed, or not possible here:$$failed" >&2; exit 1; fi

clean: ## Remove the environment and every cache (stops what `coditect up` started)
	@if [ -x $(VENV)/bin/coditect ]; then $(VENV)/bin/coditect down || true; fi
	@rm -rf $(VENV) .venv-demo .venv-3.* $(BENCH_VENV) $(PACKAGE_VENV) dist .coditect .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
