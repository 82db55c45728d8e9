# Every target makes what it needs first, the virtual environment included.
# `make` alone prints this list.  Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
RECIPE ?= emoji-pixel

MODEL := data/models/emoji-pixel

PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest

# The oldest versions that setup.py allows, read from there; NumPy 1.24 knows no Python above 3.11.
FLOOR_PYTHON ?= python3.11
FLOOR := .venv-floor/bin/python
FLOOR_VERSIONS = $(shell sed -n 's/^ *"\([a-z]*\)>=\([0-9.]*\)",.*/\1==\2.*/p' setup.py)

WITHOUT_NUMBA := Numba, which the fast operations need, could not be installed: going on in plain NumPy.

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-floor lint mutations evaluate figures notebooks train clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

PROMPTS := "red heart, noto style" "grinning face, noto style" "tiger face, noto style" \
    "red apple, noto style" "pizza, noto style" "sailboat, noto style" \
    "rocket, noto style" "rainbow, noto style"

MORE := "blue heart, noto style" "crying face, noto style" "man astronaut, noto style" \
    "snowman, noto style" "hamburger, noto style" "house, noto style" \
    "soccer ball, noto style" "crescent moon, noto style"

demo: .venv/kernels  ## draw 8 pictures from 8 prompts, and the denoising of the first, into demo/
	@echo "Drawing with the shipped model: seconds on two cores."
	$(PY) -m tinydiff generate $(PROMPTS) --seed 0 --out demo/pictures.png --each demo --strip demo/denoising.png

test: .venv/dev .venv/kernels  ## run the tests: under 6 minutes on two cores
	@echo "Testing: under 6 minutes on two cores."
	$(PYTEST) -m "not slow and not gpu"

test-all: .venv/dev .venv/kernels  ## run the slow tests too
	$(PYTEST) -m "not gpu"

test-floor: .venv-floor/dev  ## run the tests on the oldest NumPy, SciPy, ... that setup.py allows
	$(FLOOR) -m pytest -m "not slow and not gpu"

lint: .venv/dev  ## check the style (seconds)
	$(PY) -m ruff check .

mutations: .venv/dev  ## flip signs in the backward passes and see the tests fail (about an hour on two cores)
	$(PY) tests/mutations.py

evaluate: .venv/kernels  ## how often the shipped model draws what a caption says (minutes)
	$(PY) -m tinydiff evaluate emoji-pixel --json $(MODEL)/evaluation.json

figures: .venv/kernels  ## draw the pictures of the README again, with the shipped model (a minute)
	$(PY) -m tinydiff generate "red heart, noto style" --scale 3 --out demo/heart.png --strip $(MODEL)/denoising.png
	$(PY) -m tinydiff generate $(PROMPTS) $(MORE) --scale 3 --out $(MODEL)/samples.png

notebooks: .venv/dev  ## build notebooks/*.ipynb from their Python sources (seconds)
	.venv/bin/jupytext --to ipynb notebooks/*.py

train: .venv/kernels  ## train a shipped model again: make train RECIPE=emoji-pixel (hours)
	$(PY) -m tinydiff train $(RECIPE)

clean:  ## remove what the targets made, but not the environments
	rm -rf demo build dist *.egg-info .pytest_cache .ruff_cache notebooks/*.ipynb .venv/kernels
	find tinydiff data tests kernels -name __pycache__ -prune -exec rm -rf {} +

# A stamp in .venv says what was installed, and is older than setup.py when that has changed.
.venv/runtime: setup.py pyproject.toml | $(PY)
	@echo "Installing what tinydiff runs on into .venv: about a minute."
	@$(PIP) -e '.[cpu]' || { echo "$(WITHOUT_NUMBA)"; $(PIP) -e .; }
	@touch $@

.venv/dev: setup.py pyproject.toml | $(PY)
	@echo "Installing tinydiff and its test tools into .venv: about a minute."
	@$(PIP) -e '.[cpu,dev]' || { echo "$(WITHOUT_NUMBA)"; $(PIP) -e '.[dev]'; }
	@touch $@ .venv/runtime

# Compiled code depends on the processor and on every kernel's text.
.venv/kernels: .venv/runtime $(wildcard kernels/cpu/*.py)
	@echo "Compiling the fast operations for this processor: about a minute on two cores."
	@$(PY) -m tinydiff.kernels.cpu
	@touch $@

.venv-floor/dev: setup.py pyproject.toml | $(FLOOR)
	@echo "Installing the oldest versions into .venv-floor, $(FLOOR_VERSIONS): about a minute."
	@$(FLOOR) -m pip install --quiet --disable-pip-version-check -e . 'pytest>=8' $(FLOOR_VERSIONS:%='%')
	@touch $@

$(FLOOR):
	@command -v $(FLOOR_PYTHON) > /dev/null || { \
	    echo "the oldest versions need Python 3.11: make test-floor FLOOR_PYTHON=path/to/python3.11" >&2; exit 1; }
	@$(FLOOR_PYTHON) -m venv .venv-floor || { rm -rf .venv-floor; exit 1; }

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "tinydiff needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the virtual environment .venv with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
