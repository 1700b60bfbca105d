# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-flink lint clean

demo: $(VENV)/.installed
	$(BIN)/grainhash demo --output demo-out

test: lint
	$(BIN)/python -m pytest

test-flink: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m flink

test-fast: lint
	$(BIN)/python -m pytest -m 'not slow'

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/pip setup.py
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build *.egg-info
