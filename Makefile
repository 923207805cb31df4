# `make repro` runs the pipeline, `make test` the tests; each builds .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
TOOLS := .tools
# DVC runs `python stages/...`: the environment's own python must come first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
include .env.defaults
export

.DEFAULT_GOAL := help
.PHONY: help install repro flow ablate test test-fast test-dask faults fuzz check ui services schedule models plots card \
	demo-retrain bench sbom audit clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "ikddit needs Python 3.11 or 3.12; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

install: $(STAMP) ## build .venv with the pinned packages

repro: $(STAMP) ## run the whole pipeline (simulate ... register)
	dvc repro

flow: $(STAMP) ## the same as a Prefect flow
	ikddit run

ablate: $(STAMP) ## run the sweeps of pipelines/ablations.yaml; SWEEPS="mask" names some, JOBS=2 runs two at once
	python -m pipelines.ablate $(SWEEPS) --jobs $(or $(JOBS),1)

# Two workers share the cores: threads of their own would only wait for one another.
test test-fast test-dask faults: export OMP_NUM_THREADS = 1

# tests/conftest.py puts the dearest groups first: pytest-xdist would begin with those of most tests.
PYTEST := pytest -n 2 --dist loadgroup --no-loadscope-reorder

test: $(STAMP) ## run the tests
	$(PYTEST)

test-fast: $(STAMP) ## run the tests that start no DVC, MLflow server, Prefect or Dask
	$(PYTEST) -m "not pipeline"

test-dask: $(STAMP) ## run the tests of ingest on Dask alone
	IKDDIT_TEST_DASK=1 pytest tests/mpom/test_engines.py

faults: $(STAMP) ## kill -9 the pipeline KILLS (100) times at random moments and see it come out the same (hours)
	python tests/faults/kill_anywhere.py --kills $(or $(KILLS),100)

check: $(STAMP) ## ruff, mypy, import-linter
	ruff check .
	ruff format --check .
	mypy
	lint-imports

ui: $(STAMP) ## open the MLflow UI on http://127.0.0.1:5000
	ikddit ui

services: $(STAMP) ## start MLflow (:5000) and Prefect (:4200) on this machine; Ctrl-C stops both
	python -m pipelines.services

schedule: $(STAMP) ## run the flows when params.yaml (section schedule) says; needs `make services`
	python -m pipelines.serve

models: $(STAMP) ## list the registered versions
	ikddit models

plots: $(STAMP) ## write dvc_plots/index.html, readable offline; REVS="main my-exp" compares
	python -m pipelines.plots $(REVS)

demo-retrain: $(STAMP) ## play three months of retraining on the simulated fab (minutes)
	python -m pipelines.demo_retrain

card: $(STAMP) ## write docs/model-card.md anew from reports/
	python -c 'from ikddit.evaluation.report.card import write_card; write_card()'

bench: $(STAMP) ## run the benchmarks (20 to 40 minutes) and print their ratios (docs/benchmarks.md)
	python benchmarks/run.py

# In an environment of their own: what they look at stays as it is pinned.
$(TOOLS)/.installed: constraints-tools.txt $(STAMP)
	rm -rf $(TOOLS)
	$(VENV)/bin/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -r constraints-tools.txt
	touch $@

sbom: $(TOOLS)/.installed ## write sbom.json, a CycloneDX list of all installed packages
	python -m pipelines.inventory sbom --tools $(TOOLS)/bin

audit: $(TOOLS)/.installed ## ask for known vulnerabilities of them (needs api.osv.dev; SERVICE=pypi asks pypi.org)
	python -m pipelines.inventory audit --tools $(TOOLS)/bin --service $(or $(SERVICE),osv)

# The engine that is guided by coverage lies apart, and the run says so where it cannot be had.
fuzz: $(STAMP) ## feed hostile input to every reader; CASES=100000, SEED=0; findings lie in .ikddit/fuzz
	-$(VENV)/bin/python -m pip install --quiet --target $(TOOLS)-fuzz --upgrade -r constraints-fuzz.txt
	OMP_NUM_THREADS=1 python tests/fuzz/fuzz_readers.py --cases $(or $(CASES),100000) --seed $(or $(SEED),0) \
		--tools $(CURDIR)/$(TOOLS)-fuzz

clean: ## remove the virtual environment and caches (data, models and the MLflow store stay)
	rm -rf $(VENV) $(TOOLS) $(TOOLS)-fuzz .mypy_cache .pytest_cache .ruff_cache
