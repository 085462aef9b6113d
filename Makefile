# `make demo` and `make test` each work as the first command on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait asleep: on shared cores, spinning ones cost a fit several times its time.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow check bench clean

$(STAMP): pyproject.toml models/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "hgprompt-edge needs Python >= 3.10; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,dev]' --editable ./models
	touch $@

demo: $(STAMP)  ## source prompts -> fit -> fold -> ONNX -> predictions, on real images
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p hgprompt_edge

bench: $(STAMP)  ## speed and memory; prints what docs/results/benchmarks.md quotes
	$(BIN)/python benchmarks fit
	$(BIN)/python benchmarks/export.py --quick

clean:
	rm -rf $(VENV) build dist *.egg-info models/build models/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
