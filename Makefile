# The verbs of the project. Every one of them installs what it needs first.
# Nothing here needs more than make, git and Python 3.11 or newer with venv.

PYTHON ?= python3
PY ?= .venv/bin/python
STUBS ?= protos
PROTOS := $(sort $(wildcard protos/fraud/v1/*.proto))
SETUP_STAMP := .venv/.setup
PIP := $(PY) -m pip --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help setup check lint audit test demo bench ladder adaptation drills torture stubs requirements

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

setup: $(SETUP_STAMP) ## install into .venv, at the versions and digests of requirements.txt
	@:

$(SETUP_STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
	    rm -rf .venv; echo "make: no virtual environment could be made;" \
	    "on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing $$(grep -c '==' requirements.txt) pinned packages into .venv"
	@$(PIP) install --require-hashes -r requirements.txt
	@# setuptools warns at length of what an editable install may do; only a failure is news.
	@said=$$($(PIP) install --no-deps --no-build-isolation --editable . 2>&1) || \
	    { echo "$$said" >&2; exit 1; }
	@touch $@

check: setup lint audit ## lint, types, stubs, layout, and what is known of security
	@$(PY) -m pytest tests/test_stubs.py tests/test_layout.py

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@if command -v buf >/dev/null; then buf lint protos && echo "buf: no finding"; \
	    else echo "buf is not installed: its lint was skipped"; fi

audit: setup ## look for insecure code, and for dependencies with known weaknesses
	@$(PY) -m bandit --quiet --configfile pyproject.toml --recursive \
	    featurizer trainer fraudsvc loadgen deploy
	@$(PY) -m tests.audit

test: setup ## run every test
	@$(PY) -m pytest

demo: setup ## make a world, train, start every role, score; KEEP=1 leaves it running
	@$(PY) -m fraudsvc demo $(if $(KEEP),--keep)

bench: setup ## measure every stated speed, into bench.json; ONLY="model kernel" picks some
	@$(PY) -m tests.bench $(ONLY)

ladder: setup ## one decision from the naive way to ours, step by step, into docs/ladder.md
	@$(PY) -m tests.ladder $(ARGS)

adaptation: setup ## how fast a new attack is caught, beside other systems; ARGS="--seeds 2"
	@$(PY) -m tests.adaptation $(ARGS)

drills: setup ## load and faults against every role, a verdict each; ARGS="--json out.json"
	@mkdir -p build
	@$(PY) -m loadgen drill all --quick --mode both --report build/drills.html $(ARGS)

torture: setup ## kill things under traffic and check the log; ARGS="--rounds 8 --store redis"
	@$(PY) -m tests.torture $(ARGS)

# The test of the stubs calls this with a directory of its own, so it must not touch .venv.
stubs: ## generate the Python of the contract again
	@$(PY) -m grpc_tools.protoc -I protos --python_out=$(STUBS) --pyi_out=$(STUBS) $(PROTOS)
	@$(PY) -m grpc_tools.protoc -I protos --grpc_python_out=$(STUBS) protos/fraud/v1/fraud_service.proto

requirements: ## resolve the versions of pyproject.toml again, with digests
	@rm -rf build/uv && $(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv
	@build/uv/bin/uv pip compile pyproject.toml --all-extras --generate-hashes --no-emit-index-url \
	    --no-header --allow-unsafe --python-version 3.11 --quiet -o requirements.txt
	@rm -rf build/uv
