# `make help` lists the targets. Everything is installed into $(VENV); nothing else on the machine is touched.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# `make test PYTHON=python3.12` tests with that Python, in an environment of its own beside .venv.
VENV ?= $(if $(and $(filter command,$(firstword $(origin PYTHON))),$(filter test lint,$(MAKECMDGOALS))),build/venv-$(notdir $(PYTHON)),.venv)
PY := $(VENV)/bin/python

# The first Python 3.11 or 3.12 that can make virtual environments; override with `make install PYTHON=...`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: help install install-dev demo test lint docs tutorial bench fuzz chaos chaos-cluster test-ceph test-readers lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(VENV)/.installed ## the virtual environment (.venv), with the locked versions

install-dev: $(VENV)/.installed-dev ## the same with what tests and documentation need

.PHONY: venv
venv:
	@if [ -z "$(PYTHON)" ]; then \
		echo "make install: no Python 3.11 or 3.12 with venv and ensurepip found; install one (Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make install PYTHON=/path/to/python3" >&2; \
		exit 2; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
		echo "make install: $(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or 3.12 is needed" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)

# A virtual environment whose creation was interrupted has no pip and is created again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory venv VENV='$(VENV)'
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

# The shell's value of a variable given on make's command line; empty for one that the environment happens to hold.
given = $(if $(filter command,$(firstword $(origin $(1)))),$${$(1)})

# ARCHIVE= takes an archive of one's own; its workspace gets a name of its own, so that no two archives ever share one.
demo: install ## the whole chain on a small synthetic archive or on ARCHIVE=...; results in runs/demo or in WORKSPACE=...
	@archive="$(call given,ARCHIVE)"; workspace="$(call given,WORKSPACE)"; given_config="$(call given,CONFIG)"; \
	if [ -z "$$archive" ]; then \
		archive=runs/demo-archive; workspace="$${workspace:-runs/demo}"; config=configs/demo.yaml; \
		$(PY) -m jobs.synthesize "$$archive" --config "$$config"; \
	else \
		config=configs/first-look.yaml; \
		workspace="$${workspace:-runs/$$(basename "$$archive")-$$(printf %s "$$archive" | cksum | cut -d' ' -f1)}"; \
	fi; \
	$(PY) -m jobs.run "$$archive" "$$workspace" --config "$${given_config:-$$config}"

test: lint ## install, lint, check types, run all tests, report their coverage; PYTHON=... names another Python
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --cov --cov-report=term:skip-covered

lint: install-dev ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: install-dev ## README, docs/ and the API as web pages in build/docs; warnings and broken links are errors
	$(PY) docs/build.py

tutorial: install-dev ## run docs/tutorial.ipynb; build/docs/tutorial.ipynb has its pictures
	OMP_NUM_THREADS=1 $(PY) docs/build.py --tutorial

bench: install-dev ## the benchmarks, hours (those that need recordings or a workspace of one's own are left out)
	@for script in $(filter-out $(foreach name,dropouts searches settings starts,benchmarks/$(name).py),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) "$$script"; done

fuzz: install-dev ## read 100,000 changed files of every kind (FIRNLINE_FUZZ_SECONDS: stop earlier); failures go to runs/fuzz/
	$(PY) tests/fuzz/fuzz.py --files $${FIRNLINE_FUZZ_FILES:-100000}

chaos: install-dev ## kill worker, driver and node twenty times each; the events must stay the same
	FIRNLINE_CHAOS_ROUNDS=20 $(PY) -m pytest -m "chaos" --timeout=7200

chaos-cluster: install-dev build/postgres-driver/.installed ## strike a cluster of four hosts in every stage, as root: lost nodes and heads, cut links, faulty stores
	FIRNLINE_CHAOS_ROUNDS=$${FIRNLINE_CHAOS_ROUNDS:-1} $(PY) -m pytest -m "chaos_cluster" --timeout=3600

# What the image of infra/mlflow has beside the locked packages; the tests' MLflow server alone uses it.
build/postgres-driver/.installed: requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --target $(@D) --no-deps psycopg psycopg-binary
	@touch $@

test-ceph: install-dev ## the storage tests against a real Ceph object store, with faults in front
	$(PY) -m pytest -m "ceph" --timeout=1800

test-readers: install-dev build/venv-readers/.installed build/venv-pyrocko/.installed ## read the catalogue with SeisBench, GeoPandas and Pyrocko, each in an environment of its own
	$(PY) -m pytest -m "readers" --timeout=1800

build/venv-readers/.installed: requirements.lock
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock seisbench==0.12.6 geopandas==1.2.0
	@touch $@

# It takes NumPy 1 where Python is 3.11.
build/venv-pyrocko/.installed:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check pyrocko==2026.6.2
	@touch $@

lock: ## resolve all versions again and write requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	{ echo "# All versions of an install with tests, resolved by \`make lock\` (Python 3.11, Linux); used as pip constraints."; \
	  echo "# torch brings its own CUDA packages where its build for the machine needs them."; \
	  build/lock/bin/python -m pip freeze --all --exclude firnline --exclude pip \
	  | grep -vE '^(nvidia-|cuda-|triton==)' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > requirements.lock
	rm -rf build/lock

clean: ## remove build outputs and caches; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
