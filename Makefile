# `make help` says what there is. Nothing needs to be installed by hand but Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process a core; each test file's fixtures are made about once, since a process takes neighbouring tests.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal
DOCS = $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test test-long check docs dist bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## make a phantom data set, train on it, predict and evaluate, all in demo/
	$(BIN)/sam2-3dmed demo

test: $(VENV)/.installed-test ## run the tests
	$(PYTEST)

test-long: $(VENV)/.installed-test ## run the tests that take minutes each: clusters, dying workers, compiling, learning
	$(PYTEST) -m long

check: $(VENV)/.installed-dev ## style, types, import layers, and whether the installed packages fit together
	@$(BIN)/python -c "import importlib.util as u; raise SystemExit(u.find_spec('torchvision') is not None)" || \
	  { echo "check: torchvision is installed and must not be: $(BIN)/python -m pip uninstall torchvision" >&2; exit 1; }
	$(BIN)/python -m pip check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(DOCS)

docs: $(VENV)/.installed-dev ## build the manual in docs/_build/html; every warning is an error
	$(DOCS)

dist: $(VENV)/.installed-test ## build the source distribution and the wheel in dist/
	$(BIN)/python -m build --no-isolation

bench: $(VENV)/.installed-dev ## run every file of benchmarks/
	@for file in benchmarks/*.py; do \
	  [ -e "$$file" ] || { echo "bench: there is no benchmark yet"; break; }; \
	  echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean: ## remove .venv, demo/ and caches; runs/ stays
	rm -rf $(VENV) demo build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis lightning_logs
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of packages; a fuller set includes the lesser ones, and all follow pyproject.toml and constraints.txt.
$(VENV)/.made:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.13; say which is: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'Installing into $(VENV) (the first time this takes minutes)'
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'Installing into $(VENV) (the first time this takes minutes)'
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'Installing into $(VENV) (the first time this takes minutes)'
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@
