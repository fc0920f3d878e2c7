# Two commands do everything on a fresh machine: `make serve` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The core has full branch coverage.
COMMA := ,
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
CORE := $(subst $(SPACE),$(COMMA),$(wildcard crucible_trio/*.py crucible_trio/log/*.py crucible_trio/store/*.py crucible_trio/settings/*.py))

.PHONY: serve test soak mutants bench bench-quick lint docs clean

serve: $(VENV)/.installed-serve
	$(BIN)/crucible serve

# Lint and types come first, because they are quick and find most.
test: lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(CORE)' --fail-under=100
	$(MAKE) --no-print-directory docs

# Load and faults on the real server, for three minutes: with direct writes, and without.
soak: $(VENV)/.installed-test
	$(BIN)/python -W error tests/soak/soak.py --seconds 90
	$(BIN)/python -W error tests/soak/soak.py --seconds 90 --path plain

# Mutation tests: each removes one mechanism and must make a test fail. A few minutes.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants

# Measures the whole path beside what people use today, for about 40 minutes; wants a machine with nothing else to do.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

# One round of the main scenarios, without a verdict; a few minutes.
bench-quick: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --quick

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q docs docs/_build/html

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crucible_trio needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-serve: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,dev]'
	touch $@ $(VENV)/.installed-serve

$(VENV)/.installed-bench: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	touch $@

clean:
	rm -rf $(VENV) docs/_build tests/openai/node/node_modules .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
