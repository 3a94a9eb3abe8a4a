# One command each, working with no arguments: make demo (or make demo TASK=segment), make test (the quick lane),
# make test-all (all but the scheduled ones), make lint, make bench.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= 2
TASK ?= detect

.PHONY: demo test test-all test-scheduled browser interop lint docs format bench fuzz clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	@echo "making .venv: packages of about 2 GB, once; some minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python scripts/demo.py --task $(TASK)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not scheduled" --durations 10

test-all: $(STAMP) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not scheduled" --durations 10

test-scheduled: $(STAMP) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m scheduled --durations 10

# Chromium, in which the pages are tested: Debian's, where there is none and root runs this, as in a container. Where it
# cannot be had, those tests are skipped and say why.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15

browser:
	@if [ -z "$$RFDETR_CHROMIUM" ] && [ "$$(id -u)" = 0 ] && ! command -v chromium && command -v apt-get; then \
	    echo "installing Debian's chromium, once" >&2; \
	    { $(APT) update && $(APT) install --no-install-recommends chromium; } \
	        || echo "no chromium: tests of pages are skipped" >&2; \
	fi >/dev/null

# Files go both ways between this package and the published one, and to transformers. These have an environment
# of their own, which RFDETR_PUBLISHED_PYTHON names; without it, it is made once.
PUBLISHED := $(or $(RFDETR_PUBLISHED_PYTHON),$(CURDIR)/.interop/bin/python)

$(CURDIR)/.interop/bin/python:
	$(PYTHON) -m venv .interop.new
	.interop.new/bin/python -m pip install --quiet --disable-pip-version-check \
	    torch==2.14.1 torchvision==0.29.1 'rfdetr[train]==1.11.2' transformers
	mv .interop.new .interop

interop: $(STAMP) $(PUBLISHED)
	RFDETR_PUBLISHED_PYTHON=$(PUBLISHED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v --durations 5 \
	    tests/interop tests/test_compat.py tests/test_moved.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python scripts/house.py

# build/site/index.html; a broken link, anchor or name, and whatever it would load from a network, is an error.
docs: $(STAMP)
	$(BIN)/python scripts/docs.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Into the README's table; make bench OTHER=path/to/python compares with another interpreter in alternation.
bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(if $(OTHER),--python $(OTHER)) --write README.md

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	nice $(BIN)/python scripts/fuzz.py --seconds 600

clean:
	rm -rf build .venv .interop .interop.new .pytest_cache .mypy_cache .ruff_cache demo
