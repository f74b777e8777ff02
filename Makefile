# Each target sets up .venv by itself and reuses it until pyproject.toml changes.
#   make demo PIP_ARGS="--no-cache-dir"     further arguments for pip install
#   make test PIP_ARGS="-c constraints/lowest.txt"                  with the oldest versions, in .venv-lowest
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu      CPU-only torch (Linux: far smaller)
#   make demo PYTHON=/opt/python3.12/bin/python3                    another interpreter
#   make demo ARGS="--fault leakage"                                arguments for the diag command

PIP_ARGS    ?=
TORCH_INDEX ?=
ARGS        ?=
PYTEST_ARGS ?=

# Each constraints file has a venv of its own: other versions never linger in .venv.
PINS       := $(wildcard $(patsubst --constraint=%,%,$(filter %.txt,$(PIP_ARGS))))
VENV       ?= .venv$(addprefix -,$(basename $(notdir $(firstword $(PINS)))))
BIN        := $(VENV)/bin
READY      := $(VENV)/.ready
PIP        := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)
# A venv names its own folder inside: after a move it is made anew, as for other constraints.
MADE_FOR   := $(strip $(CURDIR) $(PINS))
MOVED      := $(shell [ -f $(READY) ] && [ "$$(head -n 1 $(READY))" != "$(MADE_FOR)" ] && echo FORCE)

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test lint faults bench axe clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it

demo: $(READY) ## make the demo data and run the workbook on it: reports/demo/index.html
	$(BIN)/diag demo $(ARGS)

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/diag lab $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY) ## style, types, layers, notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb docs/*.ipynb

faults: $(READY) ## inject known faults and score the verdicts
	$(BIN)/diag faults $(ARGS)

bench: $(READY) ## measure speed and scale
	$(BIN)/python -m benchmarks $(ARGS)

axe: $(READY) ## fetch the accessibility checker that the browser tests use (once)
	$(BIN)/python tests/axe_core.py

clean: ## remove .venv and caches; reports and data stay
	rm -rf $(VENV) $(patsubst constraints/%.txt,.venv-%,$(wildcard constraints/*.txt)) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find diag_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the folder's place and the content of pyproject.toml and of the constraints, so that a new date alone installs nothing.
# PyTorch's index holds few versions of other packages, so what torch requires comes with the rest.
# A version manager's shim can exist and still not run: ask each candidate for its version.
$(READY): pyproject.toml $(PINS) $(MOVED)
	@if { echo "$(MADE_FOR)"; cat pyproject.toml $(PINS); } | cmp -s - $@; then touch $@; exit 0; fi; \
	python=""; \
	for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11 or newer among: $(CANDIDATES). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; fi; \
	if [ -n "$(MOVED)" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "Setting up $(VENV) with $$("$$python" --version); the first time takes minutes (PyTorch is large)."; \
	    "$$python" -m venv --clear $(VENV) || { \
	        echo "make: '$$python -m venv' failed; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	fi; \
	if [ -n "$(TORCH_INDEX)" ]; then \
	    $(PIP) --index-url "$(TORCH_INDEX)" --no-deps torch torchvision || exit 1; fi; \
	$(PIP) --editable '.[dev]' || { \
	    echo "make: installing failed (see above); the first time needs a network" >&2; exit 1; }; \
	{ echo "$(MADE_FOR)"; cat pyproject.toml $(PINS); } > $@
