# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make run     an example batch through a real server, with the official openai client
#   make test    every check: format, lint, types, layers, tests
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: setup run test lint lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "nightmill needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock:  ## resolve pyproject.toml anew into requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --upgrade --extra llama --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .run
