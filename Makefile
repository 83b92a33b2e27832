# `make help` lists the targets. PYTHON and VENV choose the interpreter and the environment:
#   make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
DEMO := demo/street_scenes-$(shell date +%Y%m%d-%H%M%S)
INSTALLED := $(VENV)/.installed
WORKERS = 2
# In the order of tests/conftest.py, the longest files first.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-wheel test-lowest lint bench bench-claims bench-panel bench-plans bench-tox21 clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kerasmtl needs Python 3.11 or newer; found $$($(PYTHON) --version). Call: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## install, make a project with the embedded data, train, report, export, predict
	$(BIN)/kerasmtl new multitask-image $(DEMO) --no-input
	cd $(DEMO) && PATH="$(BIN):$$PATH" && python train.py && \
		kerasmtl predict $(CURDIR)/datasets/street_scenes/images/00000.jpg

test: $(INSTALLED)  ## install, run the test suite
	$(PYTEST) $(ARGS)

test-all: WORKERS = 3
test-all: ARGS = -m ""
test-all: test  ## all tests, also the slow ones and those of the wheel

test-wheel: $(INSTALLED)  ## what users get: the wheel in fresh environments; FOR=3.13 for another Python
	KERASMTL_PYTHON=$(FOR) $(PYTEST) -m wheel tests/wheel $(ARGS)

test-lowest: $(INSTALLED)  ## the same, with the lowest versions that setup.cfg allows
	KERASMTL_PYTHON=$(FOR) KERASMTL_RESOLUTION=lowest-direct $(PYTEST) -m wheel tests/wheel $(ARGS)

lint: $(INSTALLED)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)  ## measure, and keep the tables in benchmarks/RESULTS.md
	for name in cli_start export_speed formats head_training hub_speed metric_cost million_rows pipeline_speed \
		positives_only resume serving street_photos transfer who_lies; do \
		$(BIN)/python benchmarks/$$name.py --write || exit 1; done

bench-panel: $(INSTALLED)  ## the default against linear models, forests and boosting on nine sets; it continues
	$(BIN)/python benchmarks/panel.py --write

bench-plans: $(INSTALLED)  ## which plan is best at which size, about two hours
	$(BIN)/python benchmarks/plans.py --folder .plans --write

bench-claims: $(INSTALLED)  ## when transfer and several tasks pay, about an hour
	$(BIN)/python benchmarks/claims.py --write

bench-tox21: $(INSTALLED)  ## many tasks with missing labels: the tabular template's model on Tox21, about 25 minutes
	$(BIN)/python benchmarks/tox21.py --write

clean:  ## remove the environment and what was built; demo/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
