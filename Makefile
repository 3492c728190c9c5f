SHELL := /bin/bash
VENV ?= .venv
STAMP := $(VENV)/.installed
CATALOG ?=
MAPPING ?= fashion-products
TESTS ?=
FULL ?=
TEXT ?=
ATTRIBUTES ?=
TOWERS ?=
SEEDS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install run airflow experiment test test-long test-damage test-ui test-compose s3-server up down compose-night lint format hooks lock wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install everything into .venv (repeated only if requirements.lock, pyproject.toml or .ci/install changed)

$(STAMP): requirements.lock pyproject.toml .ci/install
	VENV=$(VENV) .ci/install
	@touch $@

run: $(STAMP) ## Run two nights of a generated catalog through Airflow; CATALOG=folder and MAPPING=name for your own export
	$(VENV)/bin/python -m jobs demo $(if $(CATALOG),--catalog '$(CATALOG)' --mapping '$(MAPPING)')

airflow: $(STAMP) ## Start Airflow with the DAGs on this machine for the lake TAGGING_ROOT; print address and login
	$(VENV)/bin/python -m jobs airflow

# One lake per catalog and mapping. TAGGING_TAXONOMY and TAGGING_MODEL_CONFIG_NAME in the environment take precedence.
EXPERIMENT := .experiment/$(if $(CATALOG),$(shell printf '%s' '$(abspath $(CATALOG)) $(MAPPING)' | cksum | cut -d' ' -f1),drawn)
OF_CATALOG := --taxonomy '$(or $(TAGGING_TAXONOMY),fashion)' --model-config '$(or $(TAGGING_MODEL_CONFIG_NAME),fashion)'

experiment: $(STAMP) ## Compare CMA-CLIP with CLIP, its ablations and TF-IDF on 8,000 products; FULL=1 for all, CATALOG, TEXT=title
	$(if $(CATALOG),,$(VENV)/bin/python -m jobs sample-catalog $(EXPERIMENT)/catalog)
	$(VENV)/bin/python -m jobs --root $(EXPERIMENT)/lake $(if $(CATALOG),$(OF_CATALOG)) \
		experiment --ds 2026-11-20 $(if $(FULL),,--products 8000 $(if $(CATALOG),--epochs 6)) --text '$(TEXT)' --attributes '$(ATTRIBUTES)' \
		$(if $(TOWERS),--towers '$(TOWERS)') --seeds '$(SEEDS)' \
		--catalog '$(or $(CATALOG),$(EXPERIMENT)/catalog)' --mapping '$(if $(CATALOG),$(MAPPING),sample)'

# tests/conftest.py orders the files: the longest first.
ALL_TESTS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/ui --ignore tests/compose

test: $(STAMP) ## Run the tests, one process per core; TESTS=tests/dags for some of them, in one process
	$(VENV)/bin/python -m pytest $(or $(TESTS),$(ALL_TESTS) -m 'not long and not damage')

test-long: $(STAMP) ## Run the long tests that `make test` leaves out: steps killed at each write, several trainings or nights
	$(VENV)/bin/python -m pytest $(ALL_TESTS) -m long

test-damage: $(STAMP) ## Test damage of every file of a lake, and each step on a full or read-only disk; takes hours
	$(VENV)/bin/python -m pytest tests/jobs -m damage

test-ui: $(STAMP) ## Test a real Airflow in a real browser (needs Chromium); takes 15 minutes
	$(VENV)/bin/python -m pytest tests/ui

test-compose: $(STAMP) ## Start the containers, run nights in them from a browser, kill a worker (needs Docker, Chromium)
	$(VENV)/bin/python -m pytest tests/compose

COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

SECRETS := POSTGRES_PASSWORD REDIS_PASSWORD JWT_SECRET API_SECRET_KEY AIRFLOW_ADMIN_PASSWORD S3_ACCESS_KEY S3_SECRET_KEY \
	S3_TAGGER_SECRET S3_SPARK_SECRET S3_READER_SECRET SPARK_SECRET FERNET_KEY

# Adds missing secrets to .env; existing ones are kept.
.PHONY: .env
.env:
	@umask 077; touch $@; chmod 600 $@; \
	text() { head -c 400 /dev/urandom | base64 -w0 | tr -dc A-Za-z0-9 | head -c 40; }; \
	for name in $(SECRETS); do grep -q "^$$name=." $@ || { case $$name in \
		FERNET_KEY) value=$$(head -c 32 /dev/urandom | base64 -w0 | tr '+/' '-_');; *) value=$$(text);; esac; \
		echo "$$name=$$value" >> $@; echo "$@: made $$name"; }; done

up: .env ## Start everything in containers: Airflow, its workers, Spark, S3, Postgres, Redis (needs Docker, 16 GB)
	$(COMPOSE) build
	$(COMPOSE) up -d
	@echo "Airflow: http://127.0.0.1:$${UI_PORT:-8080}  login: admin, AIRFLOW_ADMIN_PASSWORD in .env"

down: ## Stop the containers; their volumes keep the data (`docker compose down -v` removes it)
	$(COMPOSE) down

compose-night: .env ## Run a night in the containers and wait for it
	@sed -n 's/^AIRFLOW_ADMIN_PASSWORD=//p' .env | $(COMPOSE) exec -T worker python -m jobs.compose.sample_night

s3-server: $(STAMP) ## Install the S3 server for tests of a lake on S3 (needs Go); without it they are skipped
	GOBIN=$(abspath $(VENV))/bin go install -ldflags='-s -w' github.com/versity/versitygw/cmd/versitygw@v1.8.0

lint: $(STAMP) ## Check style, format, types and prose
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python .ci/check_prose.py

format: $(STAMP) ## Fix style and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

hooks: $(STAMP) ## Let git run `make lint` before each commit
	$(VENV)/bin/pre-commit install

lock: ## Pin the dependencies of pyproject.toml in requirements.lock; keep existing pins where possible
	$$(command -v uv || echo build/uv/bin/uv) pip compile -q --python-version 3.11 --extra dev --no-header --generate-hashes pyproject.toml -o requirements.lock

wheel: ## Build the wheel, in build/
	$$(command -v uv || echo build/uv/bin/uv) build -q --wheel --out-dir build .

clean: ## Remove the demo, all experiments, caches and build folders; keep the environment
	rm -rf .run .experiment build .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
