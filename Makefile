# Each target sets up what it needs on a machine with Python >= 3.10 and make: a virtual environment in .venv, with the
# versions in constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
SOURCES := src tests benchmarks docs examples

.PHONY: demo test test-oldest lint types format dist smoke docs install clean

demo: $(INSTALLED)  # the whole path on public-domain speeches, in under ten minutes
	$(BIN)/bertconv demo

# A file is one process's, so that what its tests share is made once. The order is that of the names, since xdist's own,
# by the number of tests, leaves the slowest file, of three tests, to the end.
test: $(INSTALLED)  # the test suite
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-oldest: $(OLDEST)/.installed  # the test suite with the lowest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)  # ruff: rules and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(INSTALLED)  # mypy
	$(BIN)/mypy

format: $(INSTALLED)  # rewrite the code in the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

dist: $(INSTALLED)  # the sdist and, made of it, the wheel, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

smoke: dist  # the wheel in an empty virtual environment: from text to a model, and what extras are asked for by name
	.ci/smoke $(BIN)/python dist/*.whl

docs: $(INSTALLED)  # the documentation site, in site/
	BERT_CONVOLUTIONS_LAZY=1 $(BIN)/mkdocs build --strict

install: $(INSTALLED)

# A virtual environment with the versions of a constraints file. The interpreter is the first that runs, is new enough and
# can make virtual environments; PYTHON=... chooses another.
define install_into
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3.10 python3 python); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
			echo "Installing into $(1) with $$("$$python" --version); the first time takes some minutes."; \
			exec "$$python" -m venv $(1); \
		fi; \
	done; echo "No Python >= 3.10 with the venv module was found; name one: make PYTHON=/path/to/python3" >&2; exit 1
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c $(2) -e '.[dev]'
	@touch $(1)/.installed
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call install_into,$(VENV),constraints.txt)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(call install_into,$(OLDEST),constraints-oldest.txt)

clean:  # remove the virtual environment and everything else that can be made again
	rm -rf $(VENV) $(OLDEST) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
