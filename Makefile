# `make run` and `make test` set up everything they need in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
PEERS := bench/peers.txt
CPP := $(shell find csrc -type f)
EMULATION := $(shell find tests/cpp -type f)
SOURCES := $(CPP) CMakeLists.txt setup.py
ARGS ?=
FAMILY ?= contrastive
PART ?=
OUT ?= runs/gpu-check
WHEELS ?=
# A torch for CUDA brings a Triton of its own; elsewhere the kernels are interpreted and compiled
# with the one that bench/results/resources.csv was made with.
TRITON := 3.6.0

.DEFAULT_GOAL := help
.PHONY: help install run test test-full test-triton lint format bench gpu-check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

# torch comes first and the build is not isolated: an isolated build would fetch a torch of its own.
.venv/.dependencies: pyproject.toml $(CONSTRAINTS) $(PEERS)
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -c $(CONSTRAINTS) torch numpy setuptools cmake ninja pybind11
	$(PIP) install --quiet --no-deps -r $(PEERS)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --quiet triton==$(TRITON)
	touch $@

.venv/.installed: .venv/.dependencies $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --quiet --no-build-isolation \
		-c $(CONSTRAINTS) --editable '.[bench,pretrain,test,triton,nvrtc,dev]'
	touch $@

install: .venv/.installed  ## environment, native kernels, the package (editable)

run: install  ## pretrain SimCLR with the fused loss on rendered handwriting, about ten minutes
	$(BIN)/sslfast pretrain $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(EMULATION)

# A process a processor; whichever has nothing left takes over half of what another has.
PARALLEL = -n logical --dist worksteal

test: lint  ## all that CI runs; ARGS go to the first pytest
	SSLFAST_REQUIRE_NATIVE=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)
	$(INTERPRETED)

# For releases: every point of every grid and every chip, which tests/support/density.py thins out for CI.
test-full: export SSLFAST_TESTS = full
test-full: test  ## the same for every sample, dtype, instruction set and chip

# The Triton kernels on CPU tensors, in processes of their own: values, gradients, memory layout,
# schemas, shapes that hypothesis draws, of every primitive at every sample and of every loss at
# one. Not what is marked `uninterpreted` (finite differences, large samples but for the values of
# the primitives, what torch.compile makes of it), and not memory, which would be the interpreter's.
ENUMERATED = $(patsubst %,tests/registry/test_%.py,numbers layout gradients registration properties losses)
INTERPRETED = TRITON_INTERPRET=1 SSLFAST_REQUIRE_NATIVE=1 $(BIN)/python -m pytest $(PARALLEL) -k triton \
	-m 'not uninterpreted' tests/ops tests/backends/triton $(ENUMERATED)

test-triton: install  ## the Triton kernels in Triton's interpreter, a part of test
	$(INTERPRETED)

format: install  ## rewrite Python and C++ in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(EMULATION)

# On a bare machine with a GPU: PYTHON's own packages, no environment, no network. PART chooses what
# is done (machine,build,tests,bench,sanitize or a family), WHEELS is a folder with other libraries.
gpu-check:  ## build, gpu tests, benchmark and ledger rows on a machine with an NVIDIA GPU
	$(PYTHON) bench/gpu_check.py --part '$(PART)' --out '$(OUT)' --wheels '$(WHEELS)' $(ARGS)

bench: install  ## a family (FAMILY=contrastive) against eager, torch.compile and its peers
	$(BIN)/sslfast bench $(FAMILY) $(ARGS)

clean:  ## remove builds and environment
	rm -rf .venv build *.egg-info sslfast/*.so sslfast/native_status.json
