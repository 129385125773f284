# make demo · make check · make test · make test-cluster · make lint · make format · make laptop · make bench · make nets: each
# builds .venv from requirements.lock first, if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all

.PHONY: demo laptop bench nets check test test-cluster lint format
demo: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES) all beyond --config scale=demo
	@$(BIN)/snakemake all beyond --config scale=demo --report report.html --quiet all
	@echo "Report, to read in a browser: $(CURDIR)/report.html"

laptop: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES) --config scale=laptop
	@$(BIN)/snakemake --config scale=laptop --report report.html --quiet all
	@echo "Report, to read in a browser: $(CURDIR)/report.html"

bench: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES) --force bench

# For every commit, in less than 90 seconds: lint, and the tests that are fast and run no Snakemake.
check: lint
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not workflow" --ignore tests/test_cluster.py

# docs/nets.md: which of torchvision's nets can be merged; a quarter of an hour on one core.
nets: $(VENV)/.installed
	$(BIN)/python tests/public_nets.py torchvision

# All but those on a real Slurm, on all cores.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/test_cluster.py

# Those on a real Slurm, which they start: need slurm-wlm and munge, and are skipped without them.
test-cluster: $(VENV)/.installed
	$(BIN)/python -m pytest tests/test_cluster.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

# Every key of the config, from the sections that check it.
docs/config.md: workflow_scripts/relusym/config/sections.py workflow_scripts/relusym/training/recipe.py \
  workflow_scripts/relusym/nets/__init__.py workflow_scripts/relusym/beyond
	$(BIN)/python -m relusym.config.docs > $@

docs/rules.svg: docs/rules.dot # needs graphviz
	dot -Tsvg $< -o $@

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relu-symmetries needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
