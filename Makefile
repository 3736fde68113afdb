# Every target sets up what it needs first; that is quick when nothing has changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
RUN := runs/quickstart
# One intra-op thread a process: the tests start several, and two of two threads collapse on two cores.
export OMP_NUM_THREADS ?= 1
# What is compiled is kept, whatever the shell says: each process would compile it again.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-data test-docs test-faults test-ray test-hosts test-browser test-manifests bench bench-gpu lint format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(STAMP) ## Install system libraries (where allowed), .venv and all dependencies

$(STAMP): pyproject.toml constraints.txt setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" ./setup.sh
	@touch $@

ifdef DATA
quickstart: setup ## Compare plain training, LLF and SEAL on wrong labels: digits, or DATA=tiny-imagenet.zip
	$(BIN)/seal-ray data prepare tiny-imagenet --source "$(DATA)" --classes 10 --to $(RUN)/data/tiny-imagenet-10
	$(BIN)/seal-ray sweep jobs/sweeps/quickstart-tiny-imagenet.yaml
	$(BIN)/seal-ray report jobs/sweeps/quickstart-tiny-imagenet.yaml -o $(RUN)/report.html
else
quickstart: setup ## Compare plain training, LLF and SEAL on wrong labels: digits, or DATA=tiny-imagenet.zip
	$(BIN)/seal-ray data prepare digits --to $(RUN)/data/digits
	$(BIN)/seal-ray sweep jobs/sweeps/quickstart.yaml
	$(BIN)/seal-ray report jobs/sweeps/quickstart.yaml -o $(RUN)/report.html
endif

test: setup ## Run the tests that need neither GPU nor network nor outside data
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-data: setup ## Run the tests on real images: make test-data TINY_IMAGENET=zip-or-folder
	@test -e "$(TINY_IMAGENET)" || { echo "error: give the official archive: make test-data TINY_IMAGENET=PATH"; exit 2; }
	TINY_IMAGENET="$(abspath $(TINY_IMAGENET))" $(BIN)/python -m pytest -q -m data

test-docs: setup ## Follow every page of the documentation: each command that needs no cluster is run
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m docs tests/unit

test-faults: setup ## Run the long tests: kills, full disks, W&B and S3 that hang, a compiled network
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m faults

test-ray: setup ## Run the tests of Ray on this machine: submitted jobs, sweeps, analyses, S3
	$(BIN)/python -m pytest -q -m ray

test-hosts: setup ## Run the long tests of a Ray cluster of several hosts that fail and come
	$(BIN)/python -m pytest -q -m hosts

test-browser: setup ## Look at the report page in a headless Chromium, which is installed where that is allowed
	@./setup.sh chromium
	$(BIN)/python -m pytest -q -rs -m browser

test-manifests: setup ## Check Kubernetes manifests against KubeRay's schemas: make test-manifests CRDS=DIR
	@test -d "$(CRDS)" || { echo "error: give the folder of KubeRay's CRDs: make test-manifests CRDS=DIR"; exit 2; }
	CRDS="$(abspath $(CRDS))" $(BIN)/python -m pytest -q -m manifests

bench: setup ## Measure against bare loops, on a quiet machine: a table of ratios and targets
	$(BIN)/python -m tests.benchmarks $(ONLY)

bench-gpu: setup ## Measure on a CUDA GPU, in ten minutes at most: a table; DATA=FOLDER adds a prepared data set
	$(BIN)/python -m tests.benchmarks.gpu $(if $(DATA),--data "$(DATA)")

lint: setup ## Check style, types, import layers and security
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive seal_ray analysis

format: setup ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
