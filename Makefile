# `make train` and `make test` need Python >= 3.11 and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Workers begin with half of the files each, so that they compile different things, and help each other out.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
WORKERS ?= 2
CONFIG ?= configs/experiment_config_baseline.yaml

.PHONY: train test test-all slow faults soak mutants gpu style lint format lock audit install clean

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

# 10,000 iterations of each must hold no more memory, files and threads at their end.
soak: install
	$(BIN)/python -m tests.soak ppo
	$(BIN)/python -m tests.soak sac

# Which small mistakes in the code no test notices; SHARE=1 tries all of them, for hours.
SHARE ?= 0.1
mutants: install
	$(BIN)/python -m tests.mutation --share $(SHARE)

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

# The tools have an environment of their own: what they need must not change what is tested.
.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet uv pip-audit cyclonedx-bom
	touch $@

# All hashes of every package; the two lines of comment at the top stay.
lock: .venv-audit/installed
	mkdir -p build
	.venv-audit/bin/uv pip compile requirements.txt --quiet --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --index-strategy unsafe-best-match \
		--generate-hashes --no-header --no-annotate --output-file build/requirements.lock
	{ sed -n '1,2p' requirements.lock; cat build/requirements.lock; } > build/locked && mv build/locked requirements.lock

# Known vulnerabilities of the locked packages, and a list of them (SBOM) in build/sbom.json.
audit: .venv-audit/installed
	mkdir -p build
	.venv-audit/bin/cyclonedx-py requirements requirements.lock --output-file build/sbom.json
	.venv-audit/bin/pip-audit --requirement requirements.lock --disable-pip --no-deps

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
	rm -rf .venv .venv-audit build *.egg-info .mypy_cache .pytest_cache .ruff_cache
