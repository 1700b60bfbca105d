# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Tests and what they start are compiled once, not in every process.
unexport PYTHONDONTWRITEBYTECODE
# Two processes with a thread each; tests of one module stay together, the costly ones come first.
PYTEST := -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
FAST := -m 'not (beam or tf or process or engine)'
# The lowest versions that setup.py allows, and the Pythons it allows; as many of them as are installed here.
LOWEST := .venv-lowest
PYTHONS ?= 3.10 3.11 3.12 3.13

.PHONY: demo test test-fast test-flink test-lowest test-python test-pythons lint docs dist clean

demo: $(VENV)/.installed
	$(BIN)/grainhash demo --output demo-out

# All tests, and their own checks of style and types.
test: lint
	$(BIN)/python $(PYTEST)

# What runs neither pipelines, TensorFlow, other processes nor engines: a minute, checks of style and types beside it.
test-fast: $(VENV)/.installed-test
	$(MAKE) --no-print-directory --jobs=2 lint test-python

# Those on Flink, Spark and Prism, which come through Maven and Go.
test-flink: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) tests/engines/test_flink.py

test-lowest: $(LOWEST)/.installed-test
	$(LOWEST)/bin/python $(PYTEST) $(FAST)

test-python: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) $(FAST)

test-pythons:
	@for version in $(PYTHONS); do \
	    if ! python$$version -c '' 2> /dev/null; then \
	        echo "python$$version is not here: left out"; \
	    elif ! $(MAKE) test-python PYTHON=python$$version VENV=.venv-$$version; then \
	        exit 1; \
	    fi; \
	done

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/pip setup.py
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test,docs]'
	touch $@

$(LOWEST)/.installed-test: setup.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --upgrade pip uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --extra test \
	    --output-file $(LOWEST)/requirements.txt setup.py
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	touch $@

# What a release uploads: the archive of the sources, and the wheel built from it.
dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .venv-* demo-out build dist site *.egg-info
