# The verbs of this repository. `make up` and `make test` need nothing but: git make python3-venv libgomp1;
# tests of the archive in PostgreSQL and Supabase are skipped without: postgresql npm
.DEFAULT_GOAL := help
.PHONY: help up node demo down reset test test-engines check lint types docs docs-check migrations benchmarks peers faults

PYTHON ?= python3
# Most tests wait for a process or a clock: more of them at once than there are processors.
TESTS_AT_ONCE ?= $(shell echo $$(($$(nproc) + 2)))
BIN := .venv/bin
# `make up MODEL=file.gguf` hands the model on as a setting.
$(if $(MODEL),$(eval export MODEL))

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: .venv/ready ## start NATS and all services, run the main job, stay until Ctrl-C (BACKGROUND=1: return; MODEL=file.gguf)
	@exec $(BIN)/python -m services.up $(if $(BACKGROUND),--background)

node: .venv/ready ## let this machine join a mesh: make node NATS_URL=nats://TOKEN@HOST:4222
	$(if $(NATS_URL),,$(error NATS_URL must say which mesh: make node NATS_URL=nats://TOKEN@HOST:4222))
	@exec $(BIN)/python -m services resource_detector gpu_orchestrator node_agent

demo: .venv/ready ## the same, but stop after the main job; exits 0 when every item ended as it should
	@exec $(BIN)/python -m services.up --demo

down: .venv/ready ## stop the mesh that runs in the background
	@exec $(BIN)/python -m services.up --down

reset: .venv/ready ## stop it and forget everything it has kept
	@$(BIN)/python -m services.up --down --reset

test: .venv/ready-dev ## unit, contract, integration and end-to-end tests, against a real nats-server
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist worksteal

test-engines: .venv/ready-dev .venv-engines/ready ## deploy to a real vLLM on this processor (an environment of its own: 3.5 GB)
	$(BIN)/python -m pytest tests/engines --durations 0

check: lint types docs-check ## ruff, mypy --strict, generated documents up to date (import rules are tests)

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready-dev
	$(BIN)/mypy

docs: .venv/ready-dev ## write the generated documents anew
	$(BIN)/python -m docs.generate

docs-check: .venv/ready-dev
	$(BIN)/python -m docs.generate --check

migrations: .venv/ready-dev ## write the Supabase migrations anew from those of the services
	$(BIN)/python -m tools.supabase_migrations

faults: .venv/ready-dev ## kill everything at random instants and count what became of the work (about half an hour)
	$(BIN)/python -m tests.faults && $(BIN)/python -m tests.faults table

benchmarks: .venv/ready-dev ## measure: bus, start, idle, detector, registry (each also runs alone: python -m benchmarks.NAME)
	$(BIN)/python -m benchmarks.bus
	$(BIN)/python -m benchmarks.idle
	$(BIN)/python -m benchmarks.detector
	$(BIN)/python -m benchmarks.registry --minutes 0.3

peers: .venv/ready-dev ## measure our queue beside Celery, Dramatiq, arq, taskiq and procrastinate (about ten minutes)
	$(BIN)/python -m benchmarks.peers; $(BIN)/python -m benchmarks.peers table

.venv/ready: pyproject.toml constraints.txt tools/environment.sh
	@PYTHON="$(PYTHON)" sh tools/environment.sh engine,containers
	@touch $@

.venv/ready-dev: pyproject.toml constraints.txt tools/environment.sh
	@PYTHON="$(PYTHON)" sh tools/environment.sh engine,containers,tracing,dev
	@touch .venv/ready $@

.venv-engines/ready: tests/engines/requirements.txt tools/engines_environment.sh
	@PYTHON="$(PYTHON)" sh tools/engines_environment.sh $(@D)
	@touch $@
