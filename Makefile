# One command per habit. `make demo` and `make test` need nothing but Python 3.11+ and this folder.

PYTHON ?= python3
VENV   ?= .venv
# Exported options of pip's own (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) decide where packages come from.
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt
PYTEST_ARGS ?=

.PHONY: help demo test check suite long bench soak containment accuracy gpu-check clean

help:
	@echo 'make demo    install into $(VENV) and generate a clip with the demo model'
	@echo 'make test    install, then every check and the whole test suite'
	@echo 'make check   format, lint, types, import contracts, README in step with --help'
	@echo 'make long    the tests that the suite leaves out because they take long'
	@echo 'make bench   measure against the budget'
	@echo 'make soak    500 workers ended at random moments, 200 queued jobs disturbed at random'
	@echo 'make containment   make the table of attacks in docs/containment.md anew'
	@echo 'make accuracy   how often detection is right, over the corpus and 3000 mutants'
	@echo 'make gpu-check   what only an NVIDIA GPU can show, with a report'
	@echo 'make clean   remove $(VENV) and everything that was built'
	@echo 'Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  PYTEST_ARGS='

demo: $(VENV)/.worker
	$(BIN)/wan-compat demo

# Both, whatever one of them says: a missing blank line is no reason not to know whether the tests pass. At once, because
# the checks are one process that waits for nobody; what they say comes last.
test: $(VENV)/.dev
	@status=0; \
	$(MAKE) --no-print-directory check >$(VENV)/check.log 2>&1 & checks=$$!; \
	$(MAKE) --no-print-directory suite || status=$$?; \
	wait $$checks || status=$$?; \
	cat $(VENV)/check.log; \
	exit $$status

suite: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_package.py -k readme

long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --workers 500
	$(BIN)/python -m tests.soak_jobs --jobs 200 --workers 2
	$(BIN)/python -m tests.crash_loop --rounds 50

containment: $(VENV)/.dev
	$(BIN)/python -m tests.security.ablation --write

accuracy: $(VENV)/.dev
	$(BIN)/python -m tests.accuracy --mutants 3000 --every-class

gpu-check: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu -rN -p no:xdist -q tests/gpu

# Stamps: an installation is repeated when what it was made from has changed, and not otherwise.
$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'wan-compat needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11'; exit 3; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv'; exit 3; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: it is pinned, and no later resolution may trade it for another build.
$(VENV)/.worker: $(VENV)/.base pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): a few minutes the first time ...'
	$(PIP) torch
	$(PIP) -e '.[worker]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): a few minutes the first time ...'
	$(PIP) torch
	$(PIP) -e '.[worker,dev]'
	@touch $@ $(VENV)/.worker

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find wan_compat tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
