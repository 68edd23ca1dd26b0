# `make run` and `make test` are all that a newcomer needs; both begin with `make setup`.
# Every path below is relative, so that a checkout may live in a folder with spaces.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PORT ?= 8080
PY := .venv/bin/python

.PHONY: help setup run test chaos lint demo bench lock clean

help:
	@echo 'make run [PORT=8080]   a hub on SQLite with a built-in broker; Ctrl-C ends it'
	@echo 'make test              everything that can be tested here'
	@echo 'make chaos             storms over several hubs, the long form'
	@echo 'make lint              ruff, mypy --strict, import rules'
	@echo 'make demo              three hubs on PostgreSQL; one is killed in the middle of a command'
	@echo 'make bench             measurements, with their floors beside them'
	@echo 'make setup             .venv/, the one environment; the others begin with it'
	@echo 'make lock              requirements.lock anew from pyproject.toml'

# Two stamps: what is installed from the lock into which folder, and the project's own metadata. A change of the
# second alone does not build the environment anew.
setup:
	@lock=".venv/.lock-$$( (cat requirements.lock; pwd) | cksum | tr ' ' '-')"
	project=".venv/.project-$$( (cat requirements.lock; sed '/^# -- lint/,$$d' pyproject.toml; pwd) | cksum | tr ' ' '-')"
	if [[ -e $$project ]]; then exit 0; fi
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
	if [[ ! -e $$lock ]]; then
	    python=
	    for name in "$${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python; do
	        if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	            python=$$name; break
	        fi
	    done
	    if [[ -z $$python ]]; then
	        echo 'make setup needs Python 3.11 or newer with its venv module (Debian: python3-venv); PYTHON=… names one' >&2
	        exit 1
	    fi
	    echo "make setup: building .venv with $$("$$python" --version)"
	    "$$python" -m venv --clear .venv
	    $(PY) -m pip install --quiet --require-hashes --requirement requirements.lock
	    touch "$$lock"
	fi
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch "$$project"

run: setup
	@exec .venv/bin/pointsman serve --config conf/local.yaml --port $(PORT) --ready-file var/ready.json --with-broker

# Most tests wait for a process or a socket, so a few more workers than cores; a file stays with one worker.
test: setup
	@$(PY) -m compileall -q kernel plugins broker tests  # hundreds of processes start: none compiles what others did
	$(PY) -m pytest -q -n $${WORKERS:-4} --dist loadfile

# Each storm has a PostgreSQL and hubs of its own, and `make test` runs the short ones already.
chaos: setup
	@POINTSMAN_CHAOS=long $(PY) -m pytest -q -n $${WORKERS:-2} tests/chaos

lint: setup
	@.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

demo: setup
	@$(PY) examples/three_hubs.py

bench: setup
	@for script in bench/*.py; do echo "== $$script"; $(PY) "$$script"; done

# Names and hashes only: no address of a registry is written down.
lock: setup
	@.venv/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate \
	    --extra testing --group dev pyproject.toml --output-file requirements.lock

clean:
	@rm -rf .venv build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis
.ONESHELL:
