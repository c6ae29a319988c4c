# `make train` and `make test` need Python >= 3.11 and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Workers begin with half of the files each, so that they compile different things, and help each other out.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
WORKERS ?= 2
CONFIG ?= configs/experiment_config_baseline.yaml

.PHONY: train test test-all slow faults gpu style lint format install clean

train: install
	$(BIN)/python train_ppo.py --config $(CONFIG)

# mypy needs a core for a minute: it runs beside the tests, and fails the target as they do.
test: install style
	$(BIN)/mypy & mypy=$$!; $(PYTEST) -m "not slow and not gpu"; tests=$$?; wait $$mypy && exit $$tests

test-all: install style
	$(BIN)/mypy & mypy=$$!; $(PYTEST) -m "not gpu"; tests=$$?; wait $$mypy && exit $$tests

slow: install
	$(PYTEST) -m "slow and not gpu"

faults: install
	$(BIN)/python -m tests.faults

gpu: install
	$(BIN)/python -m pytest -m gpu

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

# torch first and alone: on a machine that offers a CPU build of it, the others must not pull in the CUDA build.
.venv/installed: requirements.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "error: PYTHON=$(PYTHON) is Python %d.%d: name a Python 3.11 or 3.12, for example make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt -e '.[test,peers]'
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then $(BIN)/python -m pip install --quiet -e '.[cuda]'; fi
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
