# One command each: demo, test, lint, bench. Every one makes its own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find kernels models engine cli configs mixkv -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/pytest

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed
	cp -r mixkv build/typed/mixkv
	for room in kernels models engine cli configs; do cp -r $$room build/typed/mixkv/$$room; done
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mixkv

bench: $(VENV)/.installed
	$(BIN)/mixkv bench

clean:
	rm -rf build $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Installed as a user gets it, not in place: the tests see the package, not the folders beside them.
$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check '.[test]'
	touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check '.[lint]'
	touch $@
