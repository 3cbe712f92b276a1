# Two commands are enough on a fresh machine with Python >= 3.11, a C++20 compiler and make:
#   make train   sets up .venv, builds, and trains, distills and serves the default job
#   make test    sets up .venv, builds, and runs the tests
PYTHON ?= python3
# torch is installed before the build, so that no build environment pulls a second one. Another build of torch (CUDA,
# a newer version): make TORCH="torch==2.12.0" train
TORCH ?= torch==2.13.0
MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export MAX_JOBS

VENV := .venv
BIN := $(VENV)/bin
ifneq ($(wildcard ../shared/data),)
export GMOE_EXT_DATA ?= ../shared/data
endif

NATIVE_SOURCES := CMakeLists.txt setup.py $(shell find csrc -path csrc/tests -prune -o -type f -print)

.PHONY: train test properties settings mutation kills coverage audit sanitize cuda bench lint docs clean
.DELETE_ON_ERROR:

train: $(VENV)/installed
	$(BIN)/python -m gmoe_ext.train

# Two workers, a file to a worker: one is busy with the C++ suites for as long as the other takes for the rest.
test: $(VENV)/installed
	GMOE_EXT_REQUIRE_NATIVE=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	    --cov=gmoe_ext --cov-report=term:skip-covered --cov-fail-under=85

# Every property on 20,000 examples, a million in all; about an hour on two cores.
properties: export GMOE_EXT_PROPERTIES := nightly
properties: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -o timeout=0 \
	    tests/properties tests/data/test_molecules.py tests/data/test_metrics.py

# Every setting with every kind of value by every way in, and runs of one step with what is right; two minutes.
settings: export GMOE_EXT_PROPERTIES := nightly
settings: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -o timeout=0 tests/train/test_settings.py

# A million damaged files for the readers, and a million damaged students for the one in C++, under AddressSanitizer and
# UndefinedBehaviorSanitizer. Another SEED, other files.
SEED ?= 0
mutation: export OMP_NUM_THREADS := 1
mutation: export CMAKE_BUILD_PARALLEL_LEVEL := $(MAX_JOBS)
mutation: export PATH := $(CURDIR)/$(BIN):$(PATH)
mutation: $(VENV)/installed
	cmake --preset address && cmake --build --preset address --target core_tests
	build/address/core_tests mutated_files --files 1000000 --seed $(SEED)
	$(BIN)/python -m tests.mutation --inputs 1000000 --seed $(SEED) --out build/mutation/$(SEED)

# Training runs killed or stopped at any moment and continued, every task; a few minutes. Another SEED, other moments.
KILLS ?= 120
kills: $(VENV)/installed
	$(BIN)/python -m tests.kills --kills $(KILLS) --seed $(SEED) --out build/kills

# Known vulnerabilities of what is installed. pip-audit ends in a traceback where it cannot reach the database.
audit: $(VENV)/dev $(VENV)/docs
	$(BIN)/python -m pip install --quiet "pip-audit>=2.7"
	mkdir -p build
	$(BIN)/pip-audit --local --skip-editable --vulnerability-service osv --progress-spinner off 2>build/audit.log || { \
	    if grep -q 'exceptions\.\(ConnectionError\|ConnectTimeout\|ReadTimeout\|ProxyError\)' build/audit.log; then \
	        echo "error: https://api.osv.dev cannot be reached, so nothing was audited; see build/audit.log" >&2; \
	    else cat build/audit.log >&2; fi; exit 1; }
	cat build/audit.log >&2

# The C++ tests of core and runtime: AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer.
sanitize: export PATH := $(CURDIR)/$(BIN):$(PATH)
sanitize: export CMAKE_BUILD_PARALLEL_LEVEL := $(MAX_JOBS)
sanitize: $(VENV)/cmake
	cmake --workflow --preset address
	cmake --workflow --preset thread

# Lines of core and runtime that the C++ tests run, on each instruction set of this processor; build/coverage.txt.
coverage: export PATH := $(CURDIR)/$(BIN):$(PATH)
coverage: export CMAKE_BUILD_PARALLEL_LEVEL := $(MAX_JOBS)
coverage: $(VENV)/cmake
	$(BIN)/python -m pip install --quiet "gcovr>=8.8"
	find build/coverage -name '*.gcda' -delete 2>/dev/null || true
	cmake --workflow --preset coverage
	gcovr --root . --filter csrc/core/ --filter csrc/runtime/ --merge-lines \
	    --gcov-ignore-parse-errors=negative_hits.warn_once_per_file \
	    --fail-under-line 85 --txt build/coverage.txt --print-summary build/coverage

# The CUDA kernels by nvcc, for every target: no warning, no spilled register; bench/results/cuda_resources.json.
cuda: $(VENV)/cmake
	$(BIN)/python -m bench.cuda_resources

# The latency report, bench/results/latency.{md,png}. Rivals get the huge pages that our own results ask for.
bench: export THP_MEM_ALLOC_ENABLE = 1
bench: $(VENV)/installed
	mkdir -p build
	$(BIN)/python -m pytest bench --benchmark-only -o python_files='bench_*.py' -o addopts= \
	    --benchmark-columns=median,iqr,ops --benchmark-json=build/latency.json
	$(BIN)/python -m bench.latency build/latency.json

lint: $(VENV)/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'examples/*.c')

docs: $(VENV)/docs
	$(BIN)/mkdocs build --strict --site-dir build/site

clean:
	rm -rf build dist *.egg-info gmoe_ext/*.so gmoe_ext/include $(VENV)

$(VENV)/cmake:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "cmake>=3.25" "ninja>=1.11"
	touch $@

$(VENV)/torch: $(VENV)/cmake
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" wheel "pybind11>=2.13"
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml $(NATIVE_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[docs]"
	touch $@
