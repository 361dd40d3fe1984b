# Each target sets up what it needs on a machine with Python >= 3.10 and make: a virtual environment in .venv, with the
# versions in constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := src tests

.PHONY: demo test lint types format install clean

demo: $(INSTALLED)  # the whole path on public-domain speeches, in under ten minutes
	$(BIN)/bertconv demo

test: $(INSTALLED)  # the test suite
	$(BIN)/python -m pytest -n logical --maxprocesses 4

lint: $(INSTALLED)  # ruff: rules and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(INSTALLED)  # mypy
	$(BIN)/mypy

format: $(INSTALLED)  # rewrite the code in the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

install: $(INSTALLED)

# The first interpreter that runs, is new enough and can make virtual environments; PYTHON=... chooses another.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.10 python3 python); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
			echo "Installing into $(VENV) with $$("$$python" --version); the first time takes some minutes."; \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; echo "No Python >= 3.10 with the venv module was found; name one: make PYTHON=/path/to/python3" >&2; exit 1
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:  # remove the virtual environment and everything else that can be made again
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
