# `make run` and `make test` set up everything they need in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
CPP := $(wildcard csrc/*.cpp csrc/cpu/* csrc/include/sslfast/*)
SOURCES := $(CPP) CMakeLists.txt setup.py
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test lint format bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

# torch comes first and the build is not isolated: an isolated build would fetch a torch of its own.
.venv/.dependencies: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -c $(CONSTRAINTS) torch numpy setuptools cmake ninja pybind11
	$(PIP) install --quiet -c $(CONSTRAINTS) --no-deps lightly
	touch $@

.venv/.installed: .venv/.dependencies $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --quiet --no-build-isolation \
		-c $(CONSTRAINTS) --editable '.[bench,pretrain,test,dev]'
	touch $@

install: .venv/.installed  ## environment, native kernels, the package (editable)

run: install  ## pretrain SimCLR with the fused loss on rendered handwriting, about five minutes
	$(BIN)/sslfast pretrain $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

test: lint  ## all that CI runs; ARGS go to pytest
	SSLFAST_REQUIRE_NATIVE=1 $(BIN)/python -m pytest $(ARGS)

format: install  ## rewrite Python and C++ in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: install  ## the contrastive benchmark against eager, torch.compile and lightly
	$(BIN)/sslfast bench contrastive $(ARGS)

clean:  ## remove builds and environment
	rm -rf .venv build *.egg-info sslfast/*.so sslfast/native_status.json
