# Everything from a fresh clone, given Python 3.10 or newer and a C++ compiler. `make help` lists the targets.
#
#   make test VENV=path     uses that virtual environment, and the torch in it
#   make test TORCH=...     what pip installs where the environment has no torch yet
#   make test TESTS=...     part of the tests, or options for pytest
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TESTS ?=
BENCH ?=
REPORT ?=
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)

BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py _build_backend/backend.py
CXX_FILES := $(filter %.h %.inl %.cpp %.cu %.cuh,$(SOURCES) $(wildcard tests/emulator/*))
# Stamps carry the environment's name: the library is built for the torch of one environment.
STAMP := build/stamp-$(subst /,_,$(VENV))

.PHONY: help build test bench bench-layers info docs pictures lint format sanitize cuda-check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cnnext needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml $(SOURCES) | $(BIN)/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install '$(TORCH)' numpy
	$(BIN)/pip install -q 'setuptools>=77' ninja
	$(BIN)/pip install -q --no-build-isolation -e '.[test,docs,dev]'
	@mkdir -p $(@D) && touch $@

build: $(STAMP)  ## compile the library (only what has changed)

test: $(STAMP)  ## run the tests
	$(BIN)/pytest -n 2 $(TESTS)

bench: $(STAMP)  ## run ResNet-50 and GoogLeNet beside torch (BENCH="--mode infer" passes options)
	$(BIN)/python -m cnnext bench $(BENCH)

# About twenty minutes; SUITES="resnet50" BATCHES=1 for a part.
SUITES ?= dense dilated grouped few_channels linear pooling
BATCHES ?= 1 16
bench-layers: $(STAMP)  ## run the distinct layers of many networks beside torch (SUITES, BATCHES choose)
	for n in $(BATCHES); do \
	  $(BIN)/python benchmarks/layers.py --suite $(SUITES) --batch $$n --json benchmarks/results/layers_n$$n.json || exit; \
	done

info: $(STAMP)  ## describe the installation and test it
	$(BIN)/python -m cnnext info

docs: $(STAMP)  ## build the documentation into build/docs; warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

pictures: $(STAMP)  ## draw the documentation's pictures again (REPORT=bench.json: that of the report too, by Chromium)
	$(BIN)/python docs/examples.py
	$(if $(REPORT),$(BIN)/python docs/report_picture.py $(REPORT))

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMP)  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Tests of the operators on a library compiled with AddressSanitizer and UndefinedBehaviorSanitizer. Without the memory
# pool, in which one tensor follows another and nothing is noticed beyond an end.
SANITIZED := build/sanitize
SANITIZE_TESTS ?= $(wildcard tests/test_conv.py tests/test_conv_*.py tests/test_*pool*.py tests/test_fused_conv.py \
  tests/test_packed_weights.py tests/test_threads.py tests/test_errors.py)
sanitize: $(STAMP)  ## run the operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	CNNEXT_SANITIZE=address,undefined $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$($(or $(CXX),c++) -print-file-name=libasan.so) $$($(or $(CXX),c++) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 CNNEXT_MEMORY_POOL=0 PYTHONPATH=$(SANITIZED)/lib \
	$(BIN)/pytest -q --capture=no -p no:cacheprovider -o timeout=1200 $(SANITIZE_TESTS)

# Needs nvcc and no GPU. ARCHS="80 90a" for some architectures; CUDA_PYTHON=path also builds, links and imports the
# extension with that Python's torch for CUDA.
cuda-check:  ## compile the CUDA kernels for every architecture; no GPU needed
	$(BIN)/python tests/cuda_check.py --jobs $(MAX_JOBS) $(if $(ARCHS),--archs $(ARCHS)) \
	  $(if $(CUDA_PYTHON),--torch $(CUDA_PYTHON))

clean:  ## remove what was built (the virtual environment stays)
	rm -rf build dist *.egg-info cnnext/_build_info.py cnnext/_C.*.so
