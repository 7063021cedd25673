# Two commands: `make demo` runs the main job, `make test` runs everything CI runs. Both make their environment first.
# Beside them: `make bench` measures speed (PART="poison train" a part of it), `make docs` builds the documentation site,
# `make dist` builds and tries the packages in a fresh environment,
# `make test-oldest` tries the oldest versions of everything (TORCH=2.13.0 takes another torch; OLDEST is the environment). WORKERS is the number of processes that run tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST ?= .venv-oldest
TORCH ?= 2.6
WORKERS ?= 2
# Without --no-compile pip compiles every file of every package, most of which nobody imports: a minute more.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test bench docs dist test-oldest clean

demo: $(VENV)/.core
	$(BIN)/theriac demo --out runs/demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py $(PART)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # no --quiet: it keeps warnings from failing the build
	@echo "site/index.html"

# The wheel is built from the source distribution, so that trying one tries both.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PYTHON) -m venv "$$fresh/venv" && \
	"$$fresh/venv/bin/python" $(INSTALL) -c constraints.txt dist/*.whl && \
	cp tests/smoke.py "$$fresh" && cd "$$fresh" && \
	venv/bin/theriac --version && venv/bin/theriac list attacks && \
	env -u PYTHONPATH venv/bin/python smoke.py

test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --prefer-binary -c constraints-oldest.txt 'torch==$(TORCH)' .
	cp tests/smoke.py $(OLDEST) && cd $(OLDEST) && env -u PYTHONPATH bin/python smoke.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Theriac needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -c constraints.txt -e .
	touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[dev,hub,hf]'
	touch $@ $(VENV)/.core

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) $(OLDEST) build site dist .pytest_cache .mypy_cache .ruff_cache
