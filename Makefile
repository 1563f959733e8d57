# Needs Python 3.11 or 3.12, git and make; everything else comes into .venv (scripts/install.py).
#   make train ARGS="--seed 1"      make test ARGS="tests/rl -k ratio"      make PYTHON=python3.12 install

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
endif
VENV_PYTHON := .venv/bin/python
INSTALL = $(if $(PYTHON),$(PYTHON),$(error no python3 found; install Python 3.11)) scripts/install.py

.DEFAULT_GOAL := help
.PHONY: help install train test lint format lock clean venv

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1          /p' $(MAKEFILE_LIST) | sed 's/^\(.\{16\}\) */\1/'

install: ## bring up .venv with the locked packages; again after a pull, or when an import is refused
	@$(INSTALL)

train: venv ## train the first recipe and see whether it got better; ARGS go to it (--help lists them)
	@$(VENV_PYTHON) -m recipes.calc_grpo $(ARGS)

test: venv ## the tests, without slow and gpu ones, two at a time; ARGS go to pytest (-m slow; -n 0: one at a time)
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile $(ARGS)

lint: venv ## ruff and pyright, changing nothing
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m pyright

format: venv ## let ruff format and mend what it can
	@$(VENV_PYTHON) -m ruff check --fix-only .
	@$(VENV_PYTHON) -m ruff format .

lock: venv ## renew requirements/*.lock from pyproject.toml; ARGS=--upgrade takes the newest
	@$(VENV_PYTHON) scripts/lock.py $(ARGS)

clean: ## remove caches and builds; .venv and runs/ stay
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis .venv.log
	@find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@$(INSTALL) --quiet
