# Each target sets up what it needs in a virtual environment of its own, $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test test-slow test-versions check format docs bench-cpu bench-gpu

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

demo: $(VENV)/.demo  ## the main job on real input: a pretrained network, real solar cells, attention against none
	$(BIN)/foveate demo

# One thread a process, one process for each processor: threads beyond that wait for each other.
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal

test: $(VENV)/.test  ## all tests, the slow ones where what they guard has changed since the commit SINCE, the last one
	$(TESTS) --guarded-since $(or $(SINCE),HEAD)

test-slow: $(VENV)/.test  ## the slow tests, all of them
	$(TESTS) -m slow

test-versions:  ## all tests with every set of versions in tests/versions/sets.toml, in environments of their own
	$(PYTHON) tests/versions $(VERSIONS)

check: $(VENV)/.test  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test  ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## the pages in site/, every link checked
	$(BIN)/mkdocs build --strict

bench-cpu: $(VENV)/.test  ## time the fused kernels on the processor
	$(BIN)/python benchmarks/kernels.py --device cpu

bench-gpu: $(VENV)/.test  ## time the fused kernels on the GPU
	$(BIN)/python benchmarks/kernels.py --device cuda
	$(BIN)/python benchmarks/gates.py --device cuda

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing foveate[$*] into $(VENV): some minutes the first time"
	$(INSTALL) '.[$*]'
	@touch $@
