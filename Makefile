# Two commands do everything on a fresh machine: `make serve` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The core, which imports no web framework, has 100 % branch coverage.
COMMA := ,
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
CORE := $(subst $(SPACE),$(COMMA),$(wildcard crucible_trio/*.py crucible_trio/log/*.py crucible_trio/store/*.py crucible_trio/settings/*.py))

.PHONY: serve test soak mutants bench bench-quick lint docs clean

serve: $(VENV)/.installed-serve
	$(BIN)/crucible serve $(if $(PORT),--bind 127.0.0.1:$(PORT))

# Lint and types first: they are quick and find most mistakes.
test: lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(CORE)' --fail-under=100
	$(MAKE) --no-print-directory docs

# Three minutes of load and faults on the real server: first with direct writes, then without.
soak: $(VENV)/.installed-test
	$(BIN)/python -W error tests/soak/soak.py --seconds 90
	$(BIN)/python -W error tests/soak/soak.py --seconds 90 --path plain

# Mutation tests: remove one mechanism at a time, and expect a test to fail. Takes a few minutes.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants

# Compares the path from model to client with other servers. Takes about 40 minutes on an idle machine.
# `python -m benchmarks.compare BASE NEW` compares two checkouts of this project.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

# One round of the main scenarios, without judging the goals. Takes a few minutes.
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
