# One command each: demo, test, lint, bench. Every one makes its own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find kernels models engine server cli configs mixkv -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml

.PHONY: demo test lint bench sanitize qemu-test clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/pytest

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed
	cp -r mixkv build/typed/mixkv
	for room in kernels models engine server cli configs; do cp -r $$room build/typed/mixkv/$$room; done
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mixkv

bench: $(VENV)/.installed
	$(BIN)/mixkv bench

# The kernels' own tests under AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of its own. Python itself
# leaks by design, so leaks are not looked for. ThreadSanitizer runs on the thread pool in tests/test_native_pool.py.
SANITIZED := .venv-sanitize
sanitize:
	$(PYTHON) -m venv $(SANITIZED)
	$(SANITIZED)/bin/pip install --quiet --disable-pip-version-check '.[test]' \
	  -Cbuild-dir=build/sanitize -Ccmake.define.MIXKV_SANITIZE=address,undefined -Cinstall.strip=false
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 MIXKV_KERNELS=native \
	  $(SANITIZED)/bin/pytest -x -s tests/test_native_linear.py tests/test_native_linear_edges.py tests/test_native_kv.py tests/test_native_attention.py \
	  tests/test_operator.py tests/test_kv_store.py tests/test_kv_pages.py tests/test_native_pages.py tests/test_step_batch.py tests/test_kv_cache.py tests/test_token_mask.py

qemu-test:
	tools/test_on_arm.sh

clean:
	rm -rf build $(VENV) $(SANITIZED)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Installed as a user gets it, not in place: the tests see the package, not the folders beside them.
$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check '.[test]'
	touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check '.[lint]'
	touch $@
