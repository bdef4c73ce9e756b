# Two commands are enough on a machine with Python 3.11 or newer and make:
#   make run     an example batch through a real server, with the official openai client
#   make test    every check: format, lint, types, layers, docs, tests
# `make run` installs the package alone, into .venv-run; everything else needs the developers' set-up in .venv.

# The first Python that is new enough; to use another: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# make run uses the developers' set-up if there is one, since that has all that the example needs.
RUN_VENV := $(if $(wildcard $(STAMP)),$(VENV),.venv-run)
RUN_STAMPS = $(RUN_VENV)/.installed $(if $(MODEL),$(if $(wildcard $(STAMP)),,.venv-run/.llama))
RUN_PIP := .venv-run/bin/python -m pip --disable-pip-version-check -qq

# make run: a model instead of the emulator, and the number of example lines to send
MODEL ?=
UPSTREAM ?=
LINES ?=
# make fuzz: seconds for each parser
FUZZ_S ?= 60
# make simulate: scripts of each kind
SIMULATIONS ?= 1000

# The tests start hundreds of processes; without bytecode files each of them compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test test-slow test-fleet test-engines torture-fleet lint types layers unit audit coverage fuzz simulate bench surface house docs pictures screenshots lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

run: $(RUN_STAMPS)  ## an example batch; MODEL=file.gguf or UPSTREAM=url for a real model, LINES=20 for fewer lines
	@$(RUN_VENV)/bin/python examples/first_batch.py $(if $(MODEL),--model '$(MODEL)') $(if $(UPSTREAM),--upstream '$(UPSTREAM)') $(if $(LINES),--lines $(LINES))

test: lint types layers unit  ## every check

lint: $(STAMP)  ## format and lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(STAMP)  ## strict types
	$(BIN)/basedpyright

layers: $(STAMP)  ## the import rules between layers
	$(BIN)/lint-imports --no-logo --no-cache

# Three tests run at once, on two cores, since most tests wait for processes of their own. Failed tests run once more, alone, because
# other load on the machine can delay those processes. A test that fails twice is broken; the output has both runs.
unit: $(STAMP)  ## the tests, docs included
	$(BIN)/python -m pytest -q -rs -n 3 --dist worksteal \
		|| $(BIN)/python -m pytest -q -rs --last-failed --last-failed-no-failures none

# make test runs one variant of each of these tests, or fewer rounds.
test-slow: $(STAMP)  ## every variant of the tests of faults and crashes, more examples of properties; half an hour
	TEST_SLOW=1 $(BIN)/python -m pytest -q -rs tests/faults tests/crash tests/admin tests/unit \
		tests/dashboard tests/store/test_machine.py tests/store/test_bulk_actions.py tests/acceptance/test_memory.py tests/fuzz

# A failure in the first half does not keep the second from running. Either makes the target fail.
test-fleet: $(STAMP)  ## the fleet's tests, over a real S3 server where Ceph is installed
	@failed=0; \
	TEST_FLEET=1 $(BIN)/python -m pytest -q -rs tests/blobs tests/parts tests/roles tests/fleet tests/deploy || failed=1; \
	TEST_FLEET=1 $(BIN)/python -m pytest -q -rs tests/store -k pooled || failed=1; \
	exit $$failed

test-engines: $(STAMP)  ## batches over a real vLLM and real small models, downloaded into .venv (4 GB); an hour
	$(BIN)/python -m tests.engines.install
	TEST_ENGINES=1 $(BIN)/python -m pytest -v -rs -rP -p no:randomly tests/engines

torture-fleet: $(STAMP)  ## the fleet's torture test alone, with real Postgres, S3 and a Ray cluster of several nodes
	TEST_FLEET=1 $(BIN)/python -m pytest -v -rs -p no:randomly tests/fleet/test_torture.py

audit: $(STAMP)  ## known vulnerabilities of the locked dependencies; needs api.osv.dev
	@$(BIN)/python .ci/audit.py

coverage: $(STAMP)  ## branch coverage of the decisions in core, which must be complete
	@test -d $(VENV)/coverage || $(PIP) install --target $(VENV)/coverage coverage
	PYTHONPATH=$(VENV)/coverage $(BIN)/python -m coverage run --branch --source=src/nightmill/core \
		-m pytest -q tests/unit tests/roles/test_loop.py
	PYTHONPATH=$(VENV)/coverage $(BIN)/python -m coverage report --show-missing --fail-under=100

fuzz: $(STAMP)  ## atheris on every parser of external bytes, FUZZ_S=60 seconds each
	@test -d $(VENV)/atheris || $(PIP) install --target $(VENV)/atheris atheris
	for target in input_file answer part form; do \
		PYTHONPATH=$(VENV)/atheris $(BIN)/python -m tests.fuzz.atheris_targets $$target -max_total_time=$(FUZZ_S) || exit 1; done

simulate: $(STAMP)  ## random model servers against the dispatcher in virtual time, SIMULATIONS=1000 of each kind
	SIMULATIONS=$(SIMULATIONS) $(BIN)/python -m pytest -q --timeout=0 tests/simulation/test_properties.py

bench: $(STAMP)  ## measure against targets and wrk; ARGS="--quick", "--peers", "--profile FILE.svg", "--help"
	@$(BIN)/python -m bench $(ARGS)

surface: $(STAMP)  ## accept a change of commands, settings, metrics, errors or the OpenAPI document
	$(BIN)/python -c 'from tests.surface.surface import write; write()'

house: $(STAMP)  ## the figures that the source code is held to
	@$(BIN)/python -m tests.house.figures

docs: $(STAMP)  ## write the generated parts of docs/, and build the docs site into site/ with a check of every link
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/build_site.py
	@echo "open site/index.html; it needs no server"

pictures: $(STAMP)  ## record `watch` again for docs/pictures/watch.svg
	@$(BIN)/python docs/record.py

screenshots: $(STAMP)  ## take the pictures of docs/dashboard.md again; needs chromium
	@$(BIN)/python -m tests.dashboard.screens

setup: $(STAMP)  ## install everything into .venv

.PHONY: python
python:
	@test -n "$(PYTHON)" || { echo "nightmill needs Python 3.11 or newer, but none was found; try: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "nightmill needs Python 3.11 or newer, $(PYTHON) is older; try: make PYTHON=/path/to/python3.11"; exit 1; }

# The versions of requirements.lock, and no package that only developers need. pip checks the hashes of a lock file
# only if it installs all of it, so this set-up goes without them.
.venv-run/.installed: requirements.lock pyproject.toml | python
	@echo "Setting up .venv-run (once, half a minute)"
	@$(PYTHON) -m venv .venv-run
	@sed -n 's/^\([a-z0-9][^ ]*==[^\]*\).*/\1/p' requirements.lock > .venv-run/versions.txt
	@$(RUN_PIP) install --no-compile --constraint .venv-run/versions.txt --editable .
	@touch $@

.venv-run/.llama: .venv-run/.installed
	@echo "Installing llama.cpp into .venv-run"
	@$(RUN_PIP) install --no-compile --constraint .venv-run/versions.txt --editable '.[llama]'
	@touch $@

$(STAMP): requirements.lock pyproject.toml | python
	@echo "Setting up $(VENV) (once, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

lock: $(STAMP)  ## resolve pyproject.toml into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --upgrade --extra all --group dev pyproject.toml -o requirements.lock

clean:  ## remove all files that make created, including .venv
	rm -rf $(VENV) .venv-run dist build site .pytest_cache .ruff_cache .hypothesis .import_linter_cache .run
