# Every target sets up what it needs in .venv: on a fresh machine `make demo` or `make test` is enough.
# Python 3.11, 3.12 or 3.13 is looked for; name another one with `make PYTHON=/path/to/python3.12 ...`.

VENV := .venv
BIN := $(VENV)/bin
SUITABLE := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3,\
	$(shell $(name) -c '$(SUITABLE)' >/dev/null 2>&1 && echo $(name))))
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --durations 30
# A file's tests share compiled programs: they stay in one process.
BY_FILE := --dist loadfile
SETUP := pyproject.toml hatch_build.py

# AmberTools' sqm and antechamber are found on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo folds cookbook test test-all test-physics doctest lint format check docs bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/installed-test  ## fit a force field, then evaluate it in OpenMM (outputs in demo-output/)
	$(BIN)/offjax fit examples/demo/fit.toml
	$(BIN)/python examples/demo/evaluate.py

folds: $(VENV)/installed-test  ## the demo on all four folds: the table of docs/demo-folds.md
	$(BIN)/python examples/demo/folds.py

cookbook: $(VENV)/installed-test  ## the examples of model systems, each ending in checked numbers (pictures in cookbook-output/)
	@for script in implicit_differentiation packing_disorder bubble_raft ensembles parallel_tempering behler_parrinello \
			lennard_jones_liquid "solvated --quick"; do \
		set -- $$script; echo "== $$script"; $(BIN)/python examples/cookbook/$$1.py $$2 || exit 1; done

test: $(VENV)/installed-test  ## the tests but the slow ones
	$(PYTEST) $(BY_FILE) -m "not slow" tests

test-all: $(VENV)/installed-test  ## the slow tests too
	$(PYTEST) $(BY_FILE) tests

test-physics: $(VENV)/installed-test  ## distributions of a fluid in every thermostat and barostat, beside OpenMM
	$(BIN)/python benchmarks/validation.py

doctest: $(VENV)/installed-test  ## the examples in docstrings, in README.md and in the documentation
	$(PYTEST) --doctest-modules offjax docs

lint: $(VENV)/installed-dev  ## ruff, the type checker and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint doctest test  ## everything that must pass before a change lands

docs: $(VENV)/installed-docs  ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed-test $(VENV)/installed-bench  ## the benchmarks, each beside a peer (torsion_drives.py needs a table)
	@for script in $(filter-out benchmarks/torsion_drives.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:  ## remove what the other targets made, .venv included
	rm -rf $(VENV) site demo-output cookbook-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "offjax needs Python 3.11, 3.12 or 3.13 with venv; none was found." \
		"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13 with venv." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%: $(SETUP) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[$*]'
	@touch $@
