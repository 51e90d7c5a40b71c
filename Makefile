# `make repro`: set up, run the pipeline, print the results. `make test`: set up, lint, type-check, test.
# Relative paths throughout, so that the checkout may lie in a folder with spaces.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

.PHONY: help repro test test-cluster check audit bench-data bench-train bench-tune clean

help:
	@echo "make repro   install into .venv, run what changed of the pipeline, print the results"
	@echo "make test    install into .venv, then lint, type-check and test"
	@echo "make test-cluster  a Ray cluster of three machines in namespaces, over SSH (root, sshd and rsync; about 5 minutes)"
	@echo "make check   lint and type-check only"
	@echo "make audit   ask an advisory service about every version in constraints.txt (needs the network)"
	@echo "make bench-data   the data path against webdataset, MosaicML streaming and others (about 4 minutes)"
	@echo "make bench-train  training against a loop by hand and pythae, on MNIST (about 8 minutes)"
	@echo "make bench-tune   sweeps against plain Ray Tune, on MNIST (about 10 minutes)"
	@echo "make clean   remove .venv and caches of tools; data, models and results stay"

repro: .venv/installed
	@.venv/bin/python -m pipeline check
	@.venv/bin/python -m dvc repro
	@.venv/bin/python -m pipeline summary

test: check
	@.venv/bin/python -m pytest

test-cluster: .venv/tested
	@.venv/bin/python -m pytest -n 0 -m cluster

check: .venv/tested
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy

audit: .venv-audit/installed
	@.venv-audit/bin/python -m pip_audit --strict -r constraints.txt --no-deps --disable-pip --progress-spinner off --timeout 15 || { echo "error: not passed: a version above has a known weakness, or could not be looked up because no advisory service answered"; exit 1; }

bench-data: .venv/benched
	@.venv/bin/python -m bench.data

bench-train: .venv/benched
	@.venv/bin/python -m bench.train

bench-tune: .venv/benched
	@.venv/bin/python -m bench.tune

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A stamp is written last, so an installation that was broken off is taken up again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "error: Python 3.11 to 3.13 is needed, %s is %d.%d; name another: make PYTHON=python3.12" % (sys.executable, *v))'
	@echo "installing into .venv (about two minutes the first time)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e .
	@touch $@

.venv/tested: .venv/installed
	@echo "installing what the tests need"
	@.venv/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e '.[test]'
	@touch $@

# mosaicml-streaming asks for an older numpy but works with ours, and pythae for a backport of what Python has; so they
# come without what they ask for.
.venv/benched: .venv/installed
	@echo "installing what we are compared with"
	@.venv/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e '.[bench]'
	@.venv/bin/python -m pip install --disable-pip-version-check -qq --no-deps mosaicml-streaming==0.13.0 pythae==0.1.2
	@touch $@

# In an environment of its own: what looks for weaknesses must not change what is looked at.
.venv-audit/installed:
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --disable-pip-version-check -qq pip-audit==2.10.1
	@touch $@
