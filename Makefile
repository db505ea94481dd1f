# `make` lists what there is. Everything runs in .venv, which the first target that needs it makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOR ?= 20s
# A virtual environment with cryptofeed, for `make bench`; docs/performance.md says which.
CRYPTOFEED ?=
# What the tests of a file share is made once, by one worker; files go out in order, the scenarios, which take longest, first.
BY_FILE := --dist loadfile --no-loadscope-reorder
QUICK := $(BIN)/pytest -n 3 $(BY_FILE) --quick
# Tests also wait: there is one worker more than the two cores that they are meant for.
# In full, and under coverage, those that hold times to bounds have the machine to themselves.
TOGETHER := $(BIN)/pytest -n 3 $(BY_FILE) -m 'not alone'
ALONE := $(BIN)/pytest -m alone
SCENARIOS := $(BIN)/pytest tests/scenarios
# What the tests leave behind is removed where they pass, and can be looked at where they don't.
IN_TMP = tmp=$$(mktemp -d) && TMPDIR=$$tmp
# What a test took its own user's permission from is given it back first: only root could remove it as it is.
REMOVE_TMP = && chmod -R u+rwX "$$tmp" && rm -rf "$$tmp"
# pip would compile thousands of files on one core. Some packages hold files that no Python compiles: they are left as they are.
define INSTALL
$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[$(1)]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || :
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench bench-quick bench-live bench-sinks bench-years screenshots fuzz chaos soak clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/.analysis ## Record a simulated venue for 20 s and show the result; needs no key
	$(BIN)/ingestor demo --for $(FOR)

test: $(VENV)/.dev ## The quick tier of the tests: every module, a short round of each kind of scenario
	$(IN_TMP) $(QUICK) $(REMOVE_TMP)

check: $(VENV)/.dev $(VENV)/.docs ## Format, lint, types, all tests in full with branch coverage: half an hour
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(IN_TMP) $(TOGETHER) --cov --cov-branch --cov-report= $(REMOVE_TMP)
	$(IN_TMP) $(ALONE) --cov --cov-branch --cov-append --cov-report=term-missing:skip-covered $(REMOVE_TMP)

docs: $(VENV)/.docs ## Build the web site of docs/ into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev ## Measure against what a user would otherwise run
	$(BIN)/python benchmarks/run.py $(CRYPTOFEED:%=--cryptofeed-python %/bin/python)

bench-quick: $(VENV)/.dev ## The same in a minute, less exact
	$(BIN)/python benchmarks/run.py --quick

bench-years: $(VENV)/.dev ## What a root costs after a day, a year and ten years of 500 symbols; some minutes
	$(BIN)/python benchmarks/years.py

bench-live: $(VENV)/.dev ## How far behind the journal the clients of `ingestor serve` are
	$(BIN)/python benchmarks/live.py

bench-sinks: $(VENV)/.dev ## Rows a second of each sink, each with its real server
	PYTHONPATH=tests $(BIN)/python benchmarks/sinks.py

screenshots: $(VENV)/.dev ## The pictures of the docs, of a simulated recording; two minutes, needs Chromium
	$(BIN)/pip install --quiet --disable-pip-version-check mplfinance six
	PYTHONPATH=tests:tests/scenarios $(BIN)/python docs/pictures/screenshots.py

fuzz: $(VENV)/.dev ## Ten million mutated frames against the decoder, and 2,000 stories of clocks
	$(BIN)/python benchmarks/fuzz.py
	CLOCK_STORIES=$${CLOCK_STORIES:-2000} $(BIN)/pytest --timeout 7200 tests/test_clock_stories.py

chaos: $(VENV)/.dev ## Kill, starve, cut off and lie to the recorder, long form; ten minutes of each venue
	CHAOS_ROUNDS=$${CHAOS_ROUNDS:-200} $(SCENARIOS) --timeout 7200
	VENUE_SECONDS=$${VENUE_SECONDS:-600} $(BIN)/pytest -n 11 tests/test_venue_presets.py -k records_its_simulator

soak: $(VENV)/.dev ## Half an hour under load and faults
	SOAK_SECONDS=$${SOAK_SECONDS:-1800} $(SCENARIOS) --timeout 7200 -k soak

clean: ## Remove what these targets made; recordings stay
	rm -rf $(VENV) build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache benchmarks/results site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: made again only when the dependencies change.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "Python's venv is missing. Debian, Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.analysis: pyproject.toml | $(BIN)/python
	$(call INSTALL,analysis)
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(call INSTALL,docs)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(call INSTALL,dev)
	@touch $@ $(VENV)/.analysis
