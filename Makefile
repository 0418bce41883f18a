# make demo | install | test | check | docs | format | bench | test-neon | test-arm64 | wheels | clean
# make sanitize | fuzz | coverage | audit | release
# It needs Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV   ?= .venv
# The index from which pip installs PyTorch for the reference tests; empty: the default index.
# A CPU-only wheel, such as from https://download.pytorch.org/whl/cpu, saves gigabytes.
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
# The CUDA extension: OFF, ON, or AUTO (ON if nvcc is found). It takes minutes to compile and needs a GPU to run.
CUDA        ?= OFF
# Test processes; each needs about 1.5 GB.
WORKERS     ?= $(shell $(PYTHON) -c 'import os; print(max(1, min(os.cpu_count() or 1, 4)))')
export FASTATTN_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data),)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM ?= false

BIN := $(VENV)/bin
PY  := $(BIN)/python
PIP := $(PY) -m pip install --quiet
# The stamps are in the virtual environment, so removing it removes them too.
S   := $(VENV)/stamps
WHEELS_VENV := $(VENV)/wheels

CXX_FILES := $(wildcard $(foreach kind,h cpp cu,csrc/*/*.$(kind) csrc/*/*/*.$(kind)))
PACKAGED  := $(CXX_FILES) CMakeLists.txt $(wildcard cmake/*) pyproject.toml README.md LICENSE \
             $(shell find src -type f -not -name '*.so' -not -path '*__pycache__*')
BENCH_ARGS ?=
WHEEL_ARGS ?=

.PHONY: demo test check docs format bench test-neon test-arm64 wheels sanitize asan tsan fuzz coverage audit release install clean
.DEFAULT_GOAL := demo

demo: install
	@echo; echo "== fastattn generate: the embedded story model =="
	$(BIN)/fastattn generate -p "It was a dark and stormy night" -n 64 --seed 4
	@echo; echo "== fastattn classify: the embedded sentiment model =="
	@printf '%s\n' "A quiet film that stays with you for days." "The plot is a mess and the jokes fall flat." \
	  "I laughed, I cried, I would see it again." | $(BIN)/fastattn classify -f -
	@echo; echo "Both are tiny models (2.6M and 1.0M parameters) that only show that everything works."
	@echo "Next, use your own model: $(BIN)/fastattn generate -m FOLDER -p TEXT. See README.md for more."

install: $(S)/installed

# Runs pip install when a packaged file changes. The build folder and the build tools are reused, so ninja compiles only
# what changed. (With build isolation the paths of pybind11 and ninja would change each time and force a rebuild of all
# bindings.)
$(S)/installed: $(S)/build-tools $(S)/cuda-$(CUDA) $(PACKAGED)
	@echo "building and installing fastattn (the first time takes 1 to 4 minutes)"
	$(PIP) --no-build-isolation -C cmake.define.FASTATTN_CUDA=$(CUDA) .
	@touch $@

# Only one stamp of this kind exists at a time, so changing CUDA causes a reinstall.
$(S)/cuda-$(CUDA): $(S)/venv
	@rm -f $(S)/cuda-* && touch $@

$(S)/build-tools: $(S)/venv pyproject.toml
	$(PIP) "scikit-build-core>=0.10" "pybind11>=3.1" "hatch-fancy-pypi-readme>=24.1" "cmake>=3.22" ninja
	@touch $@

$(S)/venv:
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.10 is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(S) && touch $@

# PyTorch is installed first and pinned; otherwise pip would choose another build of it as a dependency of transformers.
# The stamp means that all packages are installed. If they cannot be installed, the other tests still run (but not in
# CI), and the next run tries to install them again.
$(S)/reference-packages: $(S)/venv pyproject.toml
	@rm -f $@; others=$$($(PY) tools/extra.py reference | grep -v '^torch$$') && \
	  $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" && $(PIP) $$others && touch $@ || { \
	  echo "WARNING: $(TORCH) or other packages that tests compare with cannot be installed"; [ -z "$$CI" ]; }

$(S)/test-tools: $(S)/venv pyproject.toml
	$(PIP) $$($(PY) tools/extra.py test)
	@touch $@

# Tests do not use pytest-benchmark, and it warns about multiple processes.
PYTEST = $(PY) -m pytest -q -p no:benchmark -n $(WORKERS) --dist worksteal

test: install $(S)/test-tools $(S)/reference-packages
	@if [ -e $(S)/reference-packages ]; then $(PYTEST) $(TEST_ARGS); \
	else $(PYTEST) -m "not torch" $(TEST_ARGS); status=$$?; \
	  echo "WARNING: SKIPPED the comparisons with PyTorch and transformers, which could not be installed"; exit $$status; fi

$(S)/check-tools: $(S)/venv tools/requirements-check.txt
	$(PIP) -r tools/requirements-check.txt
	@touch $@

check: $(S)/check-tools install
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/typos
	$(PY) tools/check_layers.py
	$(PY) tools/check_length.py
	$(PY) tools/check_homes.py
	$(PY) tools/check_weak_symbols.py build
	cd $(S) && $(abspath $(PY)) -m mypy.stubtest --allowlist $(CURDIR)/tools/stubtest-allow.txt \
	  --ignore-unused-allowlist fastattn._core $$($(abspath $(PY)) -c \
	  "import importlib.util as u; print('fastattn._cuda' if u.find_spec('fastattn._cuda') else '')")

$(S)/docs-tools: $(S)/venv pyproject.toml
	$(PIP) $$($(PY) tools/extra.py docs)
	@touch $@

# Builds the documentation site; a warning, or a link that leads nowhere, is an error.
docs: install $(S)/docs-tools
	rm -rf build/site
	$(PY) -m sphinx -q -W --keep-going -E -b html -d build/site-doctrees docs build/site
	$(PY) tools/check_site.py build/site

# Formats every file as `make check` requires.
format: $(S)/check-tools
	$(BIN)/ruff check --quiet --fix . || true
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: install $(S)/test-tools $(S)/reference-packages
	$(PY) -m pytest -q -m bench -o python_files='bench_*.py' -o python_functions='bench_*' benchmarks $(BENCH_ARGS)
	$(PY) benchmarks/percent_of_limit.py

# Cross-compiles the kernels for aarch64, runs them in an emulator and compares the hashes of their results with this
# machine's.
test-neon: $(S)/build-tools
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool > /dev/null || { \
	  echo "test-neon needs $$tool; Debian: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	PATH="$(abspath $(BIN)):$$PATH" tools/test_neon.sh

# Runs Python tests in an arm64 Debian under an emulator, where each takes many times longer than on a CPU.
test-arm64: $(S)/build-tools
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64 apt-get; do command -v $$tool > /dev/null || { \
	  echo "test-arm64 needs $$tool; Debian: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	PATH="$(abspath $(BIN)):$$PATH" PYTHON="$(abspath $(PY))" tools/test_arm64.sh $(TEST_ARGS)

# Tests of the C++ code with sanitizers, for two targets. CONTRIBUTING.md says what they need.
sanitize: asan tsan

asan tsan: $(S)/build-tools $(S)/test-tools $(S)/dependencies
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(PY)) WORKERS=$(WORKERS) tools/sanitize.sh $@

# Changes model folders at random and loads them, with AddressSanitizer: FUZZ_SECONDS, FUZZ_SEED, FUZZ_ARGS="gpt2 bert".
fuzz: $(S)/build-tools $(S)/test-tools $(S)/dependencies
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(PY)) tools/sanitize.sh asan $(PY) -m tests.fuzz $(FUZZ_ARGS)

$(S)/dependencies: $(S)/venv pyproject.toml
	$(PIP) $$($(PY) tools/extra.py dependencies)
	@touch $@

# Lines of Python and C++ that the tests reach (COVERAGE_ARGS: arguments of pytest).
coverage: $(S)/build-tools $(S)/test-tools $(S)/dependencies
	$(PIP) coverage gcovr
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(PY)) tools/coverage.sh $(COVERAGE_ARGS)

# Writes a list of the packages that users install to build/sbom.json, and checks them against the database of known
# vulnerabilities. It fails if one could not be checked.
audit: $(S)/venv
	$(PIP) pip-audit cyclonedx-bom
	$(PYTHON) -m venv --clear --without-pip $(VENV)/users
	$(PY) -m pip --python $(VENV)/users/bin/python install --quiet $$($(PY) tools/extra.py dependencies hub completion server)
	@mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(VENV)/users/bin/python
	@echo "build/sbom.json: written"
	@$(PY) tools/audit.py $(VENV)/users/lib/python*/site-packages

release: $(S)/build-tools
	$(PY) tools/release.py

# Wheels for every supported Python, libc and CPU, in dist/ (docs/releasing.md). They have an environment of their own,
# because the pinned tools may differ from those of `make install`.
wheels: $(WHEELS_VENV)/tools
	rm -f dist/*.whl
	PATH="$(abspath $(WHEELS_VENV)/bin):$$PATH" python tools/wheels.py $(WHEEL_ARGS)
	$(WHEELS_VENV)/bin/python tools/check_wheels.py dist/*.whl

$(WHEELS_VENV)/tools: tools/requirements-wheels.txt
	$(PYTHON) -m venv $(WHEELS_VENV)
	$(WHEELS_VENV)/bin/python -m pip install --quiet -r tools/requirements-wheels.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
