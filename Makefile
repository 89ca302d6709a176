# Targets with a `##` comment are listed by `make`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8080
ARGS ?=
PYTEST := $(BIN)/pytest

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# uv takes a quarter of pip's time. It does not read pip.conf: where that names the index, pip it is.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
.venv/installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V), Nimway needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing the locked dependencies into .venv (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "Cannot create a virtual environment: install your distribution's python3-venv package"; exit 2; }
	@sed -n '/^uv==/,/[^\]$$/p' requirements-dev.lock >.venv/uv.lock
	@$(PIP) --require-hashes -r .venv/uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.lock 2>.venv/uv.log || \
	  { echo "uv could not (.venv/uv.log): asking pip, which takes longer"; $(PIP) --require-hashes -r requirements-dev.lock; }
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: .venv/installed ## Create .venv from the lock file

.PHONY: demo
demo: setup ## Start everything on this machine, serve a completion, stay up (ARGS=--once, PORT=8080)
	@$(BIN)/nimway sandbox demo --port $(PORT) $(ARGS)

# Files named here are read in half the time of all files.
CLUSTER = $(shell grep -rl 'mark.cluster' tests --include='test_*.py' | sort)
ALONE = $(shell grep -rl 'mark.alone' tests --include='test_*.py' | sort)

# Three processes wait for control planes: two leave half of two CPUs idle. They begin in the order
# of the alphabet, because files with few tests take the longest.
# With the proxy as the image has it, in pods too; what is alone runs its source. tests/conftest.py
# adds each summary's numbers to the file of NIMWAY_TEST_COUNTS.
.PHONY: test
test: export NIMWAY_TEST_COUNTS := $(CURDIR)/.venv/counts
test: verify ## Verify, then run every test
	@$(BIN)/nimway sandbox binaries
	@PYTHONPATH=$(CURDIR)/$(COMPILED) $(PYTEST) tests -m 'not cluster' --ignore tests/house --numprocesses 2
	@PYTHONPATH=$(CURDIR)/$(COMPILED) $(PYTEST) $(CLUSTER) -m 'cluster and not alone' --numprocesses 3 --no-loadscope-reorder
	@$(PYTEST) $(ALONE) -m 'cluster and alone'
	@awk '{passed += $$1; skipped += $$2} END {print "make test: " passed " passed, " skipped " skipped"}' $$NIMWAY_TEST_COUNTS

.PHONY: quick
quick: setup ## Run the tests that need no control plane
	@$(PYTEST) tests -m 'not cluster'

.PHONY: cluster
cluster: setup ## Run the tests on the sandbox's control plane, or on NIMWAY_TEST_KUBECONFIG
	@$(BIN)/nimway sandbox binaries
	@$(PYTEST) tests -m cluster

.PHONY: verify
verify: setup ## Lint, types, import contracts, size limits, generated files; compile the proxy
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint types $(COMPILED)/built
	@rm -f .venv/counts
	@$(PYTEST) tests/house

.PHONY: lint
lint: setup ## Check style and import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: make fmt"; exit 1; }
	@$(BIN)/lint-imports --no-logo --config pyproject.toml >.venv/imports.log || { cat .venv/imports.log; exit 1; }

.PHONY: types
types: setup ## Check types (mypy strict)
	@$(BIN)/mypy --no-error-summary

# The proxy as the image has it. Where nothing can compile it, the folder stays empty and Python is
# tested; optimised less, it compiles in half the time.
COMPILED := .venv/compiled
$(COMPILED)/built: .venv/installed operator/build/hatch_build.py pyproject.toml $(shell find operator/src -name '*.py')
	@rm -rf $(COMPILED) && mkdir $(COMPILED)
	@if $(BIN)/python operator/build/hatch_build.py; then \
	  NIMWAY_OPT_LEVEL=0 HATCH_BUILD_HOOK_ENABLE_CUSTOM=true \
	    $(BIN)/python -m hatchling build -t wheel -d $(COMPILED) >.venv/compiled.log 2>&1 || { cat .venv/compiled.log; exit 1; }; \
	  $(BIN)/python -m zipfile -e $(COMPILED)/*.whl $(COMPILED); \
	fi
	@touch $@

.PHONY: fmt
fmt: setup ## Format the code and sort imports
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

.PHONY: crds
crds: setup ## Regenerate crds/ and the chart's copy from the API types
	@$(BIN)/nimway crds --write crds --write charts/nimway/crds

.PHONY: docs
docs: setup ## Regenerate docs/api.md from the API types
	@$(BIN)/nimway crds --reference > docs/api.md

.PHONY: lock
lock: setup ## Renew the lock files from pyproject.toml
	@for out in requirements-dev requirements; do \
	  extra=$$([ $$out = requirements-dev ] && echo "--extra sandbox --group dev" || true); \
	  $(BIN)/uv pip compile pyproject.toml $$extra --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate --quiet --custom-compile-command "make lock" -o $$out.lock; \
	done

.PHONY: wheel
wheel: setup ## Build the wheel into dist/ (HATCH_BUILD_HOOK_ENABLE_CUSTOM=true: compiled, as for the image)
	@$(BIN)/python -m hatchling build -t wheel

.PHONY: clean
clean: ## Remove what the other targets made in this folder
	@rm -rf .venv dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis

KIND_CLUSTER ?= nimway-test
IMAGE := ghcr.io/nimway/nimway:0.1.0
SIMULATED_NIM := nvcr.io/nim/sim/model:1.0.0

.PHONY: kind
kind: setup ## Run the cluster tests on kind (needs Docker, kind and kubectl)
	@for tool in docker kind kubectl; do command -v $$tool >/dev/null || { echo "$$tool is not on PATH: make kind needs Docker, kind and kubectl"; exit 2; }; done
	docker build --file operator/Dockerfile --target runtime --tag $(IMAGE) .
	docker build --file operator/Dockerfile --target simulated-nim --tag $(SIMULATED_NIM) .
	kind get clusters | grep -qx $(KIND_CLUSTER) || kind create cluster --name $(KIND_CLUSTER) --config tests/data/kind/cluster.yaml
	kind load docker-image --name $(KIND_CLUSTER) $(IMAGE) $(SIMULATED_NIM)
	kind get kubeconfig --name $(KIND_CLUSTER) > .venv/kind.kubeconfig
	kubectl --kubeconfig .venv/kind.kubeconfig patch node --subresource=status --type=json \
	  --patch '[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "16"}]' $(KIND_CLUSTER)-control-plane
	kubectl --kubeconfig .venv/kind.kubeconfig apply -f tests/data/kind/address.yaml
	NIMWAY_TEST_KUBECONFIG=$$PWD/.venv/kind.kubeconfig NIMWAY_TEST_BASE_URL=http://127.0.0.1:30800 \
	  $(PYTEST) tests -m cluster

LITELLM ?=

.PHONY: bench
bench: setup ## Compare the proxy with HAProxy, nginx, Go and Rust routers (20 min; LITELLM=1)
	@$(BIN)/python -m tests.bench $(if $(LITELLM),--litellm) $(ARGS)

.PHONY: bench-quick
bench-quick: setup ## Compare with HAProxy and the recorded ratios (3 min), fail when 20 % worse
	@$(BIN)/python -m tests.bench --quick $(ARGS)

.PHONY: bench-control
bench-control: setup ## Measure the operator on a control plane of its own (15 min; ARGS=--quick 2 min)
	@$(BIN)/nimway sandbox binaries
	@$(BIN)/python -m tests.bench_control $(ARGS)

.PHONY: bench-wake
bench-wake: setup ## Measure sleep and wake: held requests, cycles, a day (15 min; ARGS=--quick 3 min)
	@$(BIN)/nimway sandbox binaries
	@$(BIN)/python -m tests.bench_wake $(ARGS)

.PHONY: faults
faults: setup ## Run every fault in its full length against a real control plane (an hour)
	@$(BIN)/nimway sandbox binaries
	@NIMWAY_FAULTS=full $(PYTEST) tests/faults tests/proxy tests/cluster/test_outage.py tests/cluster/test_proxies.py $(ARGS)

.PHONY: fuzz
fuzz: MINUTES ?= 5
fuzz: setup ## Fuzz what reads HTTP (MINUTES=5)
	@$(BIN)/python -m tests.fuzz $(MINUTES)

.PHONY: soak
soak: MINUTES ?= 20
soak: setup ## Load a proxy pod with 5 % aborts; memory and descriptors stay flat (MINUTES=20)
	@$(BIN)/nimway sandbox binaries
	@$(BIN)/python -m tests.fuzz.soak $(MINUTES)
