# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
STATE ?= $(CURDIR)/.state
BIN := .venv/bin

export DAGSTER_MLOPS_STATE := $(STATE)
export DAGSTER_HOME := $(STATE)/dagster
# No tool sends usage data.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export FEAST_USAGE := False
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True
export DAGSTER_DISABLE_TELEMETRY := yes
export NO_MKDOCS_2_WARNING := 1
# Hundreds of short processes import the library: without the bytecode of their first, each would compile it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo promotions ui mlflow-ui status stop test thorough formats check advisories docs bench lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: .venv/.done  ## install everything, as locked, into .venv

# Bytecode is compiled once: processes that may not write it would compile the same modules again and again.
.venv/.done: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: resources/dagster.yaml
	@mkdir -p $(DAGSTER_HOME) && cp $< $@

demo: setup $(DAGSTER_HOME)/dagster.yaml  ## run the whole lifecycle on real flights, then say where to look
	@$(BIN)/python -m assets.demo

# Its own state and Dagster home, below that of the demo.
promotions: PROMOTIONS := $(STATE)/promotions
promotions: setup  ## a year of promotions in a minute: a refusal, an approval, a rollback, and what the history says
	@rm -rf $(PROMOTIONS) && mkdir -p $(PROMOTIONS)/dagster && cp resources/dagster.yaml $(PROMOTIONS)/dagster
	@cd examples/promotions && DAGSTER_HOME=$(PROMOTIONS)/dagster PROMOTIONS_STATE=$(PROMOTIONS) \
	  $(CURDIR)/$(BIN)/python -W ignore -m promotions.story
	@echo "Look at 'champion': cd examples/promotions && DAGSTER_HOME=$(PROMOTIONS)/dagster PROMOTIONS_STATE=$(PROMOTIONS) dg dev"

ui: setup $(DAGSTER_HOME)/dagster.yaml  ## open the Dagster UI on http://127.0.0.1:3000
	$(BIN)/dg dev --host 127.0.0.1 --port 3000

mlflow-ui: setup  ## open the MLflow UI on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri sqlite:///$(STATE)/mlflow/mlflow.db --artifacts-destination $(STATE)/mlflow/artifacts

status: setup  ## say in one screen what is in production
	@$(BIN)/dagster-mlops status

stop:  ## stop the deployment that the demo left serving
	@test ! -x $(BIN)/dagster-mlops || $(BIN)/dagster-mlops serving stop $(STATE)/serving

test: setup  ## run the tests; TOOL=feast runs those of one folder of tests/
	env -u DAGSTER_HOME -u DAGSTER_MLOPS_STATE $(BIN)/pytest -m "not thorough" $(TOOL:%=tests/%)

thorough: setup  ## run the tests that `make test` leaves out, the same in other shapes; TOOL=feast as above
	env -u DAGSTER_HOME -u DAGSTER_MLOPS_STATE $(BIN)/pytest -m thorough $(TOOL:%=tests/%)

formats: .venv-formats/.done  ## run the tests of boosters, PyTorch and Keras in their own environment; TORCH=torch==2.13.0+cpu
	env -u DAGSTER_HOME -u DAGSTER_MLOPS_STATE KERAS_BACKEND=torch .venv-formats/bin/pytest -m formats

# What is locked, with these libraries on top. The usual PyTorch for Linux brings gigabytes of CUDA; TORCH may be a file,
# or a version such as torch==2.13.0+cpu that uv finds where UV_FIND_LINKS or UV_INDEX says.
TORCH ?= torch>=2.10
.venv-formats/.done: .venv/.done
	@test -x .venv-formats/bin/python || $(PYTHON) -m venv .venv-formats
	$(BIN)/uv pip sync --quiet --python .venv-formats/bin/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python .venv-formats/bin/python --no-deps --editable .
	$(BIN)/uv pip install --quiet --python .venv-formats/bin/python --group formats '$(TORCH)'
	@touch $@

check: setup  ## lint, types, language, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m tests.language
	$(BIN)/mkdocs build --strict --quiet

advisories: setup  ## known vulnerabilities of the locked packages; DATABASE=all.zip reads a copy of OSV's export for PyPI
	$(BIN)/python -m tests.advisories $(DATABASE:%=--database %)

docs: setup  ## serve the documentation on http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: setup  ## measure the glue against the raw tools
	$(BIN)/python -m tests.benchmarks

lock:  ## resolve requirements.lock anew
	rm -f requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --quiet --output-file requirements.lock

clean: stop  ## remove all state (data, registry, runs) but keep .venv
	rm -rf $(STATE) site dist
