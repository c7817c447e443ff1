# Needs GNU make and Python 3.11 or newer (another one: make PYTHON=python3.12).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DIGITS := examples/digits
BUILD  := $(DIGITS)/build
PACKET := out/digits
# packages whose versions follow those of the training libraries
FOLLOWING := dill|fsspec|httpcore2|httpx2|huggingface-hub|lightning-utilities|multiprocess|tokenizers|torchmetrics|truststore|typer

.PHONY: help setup demo test test-all test-older test-stores fuzz fuzz-packets runs check lint fmt schemas codes lock bench bench-check bench-gpu calibrate calibrate-check docs-images clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

setup: $(READY)  ## create .venv with everything that development needs

$(READY): pyproject.toml constraints.txt constraints-torch.txt .ci/system-packages .ci/torch
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("auditspec needs Python 3.11 or newer, this is %d.%d: make PYTHON=..." % v[:2])'
	PYTHON=$(PYTHON) .ci/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	.ci/torch $(BIN)
	$(BIN)/pip install --quiet --require-hashes --no-deps -r constraints.txt
	$(BIN)/pip install --quiet --no-build-isolation -e '.[dev,examples]'
	@touch $@

# --- the demo: train, pin, audit, verify ----------------------------------------------------------

demo: $(BUILD)/model.safetensors $(BUILD)/auditor.key  ## train the digits example, audit it, verify the packet
	$(BIN)/auditspec digest --lock $(DIGITS)/audit.yaml --update-all
	@echo '$(BIN)/auditspec run $(DIGITS)/audit.yaml --out $(PACKET) --force'; \
	code=0; $(BIN)/auditspec run $(DIGITS)/audit.yaml --out $(PACKET) --force || code=$$?; \
	[ $$code -eq 1 ] || { echo "demo: the audit exited with $$code; the planted fault should fail its policy gate (1)" >&2; exit 1; }
	$(BIN)/auditspec verify $(PACKET) --trust $(BUILD)/trust.yaml
	@echo 'The policy gate stopped this model, as it should, and the packet is intact. The report:'
	@echo '  $(PACKET)/report.html'
	@echo '  $(PACKET)/report.pdf'

$(BUILD)/model.safetensors: $(DIGITS)/train.py $(wildcard auditspec/record/*.py auditspec/artifacts/*.py) | $(READY)
	rm -rf $(BUILD)/record
	$(BIN)/python $(DIGITS)/train.py

$(BUILD)/auditor.key: | $(READY)
	mkdir -p $(BUILD)
	$(BIN)/auditspec keys new $(BUILD)/auditor

# --- checks ---------------------------------------------------------------------------------------

# A tracer doubles the time of the tests; lines that report themselves cost next to nothing.
COVERED  := $(BIN)/python -m slipcover --json --out .coverage.json -m pytest -n auto --dist loadscope
COVERAGE := $(BIN)/python -m slipcover --skip-covered --fail-under 85 --merge .coverage.json --out .coverage.json

test: $(READY)  ## every test but the long ones, with coverage (at least 85 %)
	$(COVERED) -m 'not slow'
	$(COVERAGE)

test-all: $(READY)  ## the long ones too: whole audits of hard cases, killed trainings, 1400 mutated specs
	$(COVERED)
	$(COVERAGE)

test-older: $(READY)  ## the integrations with older versions of the training libraries (constraints-older.txt)
	test -x .venv-older/bin/python || $(PYTHON) -m venv .venv-older
	.ci/torch .venv-older/bin
	grep -v '^#' constraints-older.txt | sed 's/==.*//' > .venv-older/names
	grep -oE '^[^ #]+==[^ ]+( ;[^\\]*)?' constraints.txt | grep -vE "^($$(paste -sd'|' .venv-older/names)|$(FOLLOWING))==" | cat - constraints-older.txt > .venv-older/constraints.txt
	.venv-older/bin/pip install --quiet -c .venv-older/constraints.txt -e '.[dev,examples]'
	.venv-older/bin/pytest -n auto --dist loadscope tests/integrations

test-stores: $(READY)  ## evidence, records, and packets in a server of S3 on this machine (constraints-stores.txt)
	test -x .venv-stores/bin/python || $(PYTHON) -m venv .venv-stores
	.ci/torch .venv-stores/bin
	grep -v '^#' constraints-stores.txt | sed 's/==.*//' > .venv-stores/names
	grep -oE '^[^ #]+==[^ ]+( ;[^\\]*)?' constraints.txt | grep -vE "^($$(paste -sd'|' .venv-stores/names))==" | cat - constraints-stores.txt > .venv-stores/constraints.txt
	.venv-stores/bin/pip install --quiet -c .venv-stores/constraints.txt -e '.[dev,stores]'
	.venv-stores/bin/pytest tests/test_fetched.py tests/recorder/test_destination.py

fuzz: $(READY)  ## 50,000 hostile inputs for each reader of untrusted bytes (a quarter of an hour)
	AUDITSPEC_FUZZ=50000 $(BIN)/pytest tests/fuzz/test_fuzz.py

fuzz-packets: $(READY)  ## 10,000 hostile packets, most sealed again by a trusted key (about five hours)
	AUDITSPEC_FUZZ=10000 $(BIN)/pytest -s tests/fuzz/test_hostile_packets.py

runs: $(READY)  ## two hundred audits at once, most of them killed (twelve minutes on two busy cores)
	AUDITSPEC_RUNS=200 $(BIN)/pytest tests/threats/test_threats_killed_runs.py

check: lint test  ## static checks and the tests

lint: $(READY)  ## format, lint, types, layers, schemas
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(BIN)/auditspec schema --write "$$fresh" 2>/dev/null; \
	diff -r schemas "$$fresh" || { echo 'schemas/ is out of date: make schemas' >&2; exit 1; }

fmt: $(READY)  ## format the code and sort its imports
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

schemas: $(READY)  ## write schemas/ again from the types
	$(BIN)/auditspec schema --write schemas

codes: $(READY)  ## write docs/codes.md again from the catalogue of sentences
	$(BIN)/python tests/support/codes.py > docs/codes.md

lock:  ## write constraints.txt again (versions as they are where they fit, sha256 of every file), and the wheel's bill of materials
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	(grep '^#' constraints.txt; grep -oE '^[^ #]+==[^ ]+' constraints.txt constraints-torch.txt -h > build/lock/versions; \
	build/lock/bin/uv pip compile pyproject.toml --quiet --extra dev --extra examples --constraints build/lock/versions \
	--universal --python-version 3.11 --generate-hashes --no-emit-package torch --no-header --no-annotate) > build/lock/constraints.txt
	mv build/lock/constraints.txt constraints.txt
	$(BIN)/python tests/support/wheel_bill.py > auditspec.cdx.json

# --- measurements (benchmarks/README.md) ----------------------------------------------------------

bench: $(READY)  ## measure every estimator against exact replay (half an hour on two cores)
	$(BIN)/python -m benchmarks.ladder

bench-check: $(READY)  ## hold the committed measurements against their bars, and one fresh run against them
	$(BIN)/python -m benchmarks.check

bench-gpu: $(READY)  ## replay beside training on a GPU, memory, and the small ladder; without one it says so
	$(BIN)/python -m benchmarks.gpu

calibrate: $(READY)  ## hold verdicts on 210 drawn pipelines against exact retraining (25 minutes on two cores)
	$(BIN)/python -m benchmarks.calibration.study

calibrate-check: $(READY)  ## hold the committed study against its bars, and a few fresh pipelines against it
	$(BIN)/python -m benchmarks.calibration.check

# --- the rest -------------------------------------------------------------------------------------

docs-images: demo  ## draw the pictures of README.md and docs/architecture.md (needs pdftoppm)
	mkdir -p docs/images
	$(BIN)/python docs/architecture.py
	pdftoppm -png -r 110 -f 2 -l 2 -x 60 -y 90 -W 800 -H 885 -singlefile $(PACKET)/report.pdf docs/images/report-page

clean:  ## remove everything generated, except .venv
	rm -rf out build dist examples/*/build* examples/*/*.lock.json
	rm -rf .coverage.json .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
