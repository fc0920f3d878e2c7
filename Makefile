# Two commands do everything on a fresh machine: `make serve` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# `make serve PORT=8001`. Only from the command line, because many shells and platforms set a variable PORT.
BIND := $(if $(filter command,$(origin PORT)),--bind 127.0.0.1:$(PORT))

# The core, which imports no web framework, has 100 % branch coverage.
COMMA := ,
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
CORE := $(subst $(SPACE),$(COMMA),$(wildcard crucible_trio/*.py crucible_trio/log/*.py crucible_trio/store/*.py crucible_trio/settings/*.py))

.PHONY: serve test test-quick test-suite test-lowest soak mutants bench bench-quick lint docs clean

serve: $(VENV)/.installed-serve
	$(BIN)/crucible serve $(BIND)

# Lint and types first: they are quick and find most mistakes.
test: lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(CORE)' --fail-under=100
	$(MAKE) --no-print-directory docs

# The quick tests on the newest Python that is found, in an environment for it alone. After the installation it takes
# two to three minutes.
test-quick:
	$(MAKE) --no-print-directory test-suite PYTHON=$$($(PYTHON) .ci/newest_python.py) VENV=.venv-newest \
		TESTS="not (slow or browser or npm or soak)"

# The tests on another Python: `make test-suite PYTHON=python3.12 VENV=.venv-3.12`.
TESTS := not (browser or npm or soak)
test-suite: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "$(TESTS)"

# The tests with the lowest allowed version of each dependency.
test-lowest:
	mkdir -p .venv-lowest
	$(PYTHON) .ci/lowest_versions.py > .venv-lowest/constraints.txt
	PIP_CONSTRAINT=$(CURDIR)/.venv-lowest/constraints.txt \
		$(MAKE) --no-print-directory test-suite VENV=.venv-lowest

# Six minutes of load and faults on the real server: with direct writes, without, and with several processes.
soak: $(VENV)/.installed-test
	$(BIN)/python -W error tests/soak/soak.py --seconds 90
	$(BIN)/python -W error tests/soak/soak.py --seconds 90 --path plain
	$(BIN)/python -W error tests/soak/processes.py --seconds 90

# Mutation tests: remove one mechanism at a time, and expect a test to fail. Takes a few minutes.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants

# Compares the path from model to client with other servers. Takes about an hour and a half on an idle machine.
# `python -m benchmarks.compare BASE NEW` compares two checkouts of this project.
bench: $(VENV)/.installed-bench .venv-litellm/.installed
	$(BIN)/python -m benchmarks

# One round of the main scenarios, without judging the goals. Takes a few minutes.
bench-quick: $(VENV)/.installed-bench .venv-litellm/.installed
	$(BIN)/python -m benchmarks --quick

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q docs docs/_build/html

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crucible_trio needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python lacks venv: apt install python3-venv"; exit 1; }
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

# LiteLLM's proxy pins versions of packages that others here need too.
.venv-litellm/.installed:
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]==1.108.0'
	touch $@

clean:
	rm -rf .venv .venv-* docs/_build tests/clients/packages/*/node_modules tests/clients/.venv .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
