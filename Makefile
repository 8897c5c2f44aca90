# `make demo` and `make test` do everything, set-up included. PYTHON may name another
# interpreter (3.10 or later) to make the environment with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test collected check lint types layers bench fuzz clean

# Made again when the dependencies change, not when the code does (editable install).
$(VENV)/.ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/python examples/demo.py

# On two cores three are a little quicker, but tests with bounds of time fail at times.
WORKERS ?= 2
# Each worker collects all tests, and what pytest makes of them is kept for the next.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.ready
	@$(MAKE) --jobs=2 --output-sync=target check collected
	@.ci/packages
	@.ci/peers
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

collected: $(VENV)/.ready
	@$(BIN)/python -m pytest --collect-only -q >$(VENV)/collected || \
	  { cat $(VENV)/collected >&2; exit 1; }

check: lint types layers

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

layers: $(VENV)/.ready
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(VENV)/.ready
	$(BIN)/python -m tests.bench

# Longer than the suite has time for; FUZZ_EXAMPLES says how many tries each property gets.
FUZZ_EXAMPLES ?= 20000
fuzz: $(VENV)/.ready
	PPIO_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q --timeout=3600 tests/fuzz

clean:
	rm -rf $(VENV) .bench build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
