# Every target makes what it needs first, the virtual environment included.
# `make` alone prints this list.  Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
RECIPE ?= emoji-32

MODEL := data/models/emoji
FASHION := data/models/fashion-unet
# the training curve of a model's legs, from the logs beside it
CURVE = $(PY) -c 'import glob, tinydiff.viz as viz; viz.training_curve(sorted(glob.glob("$(1)/logs/unet-*.csv")), "$(1)/curve.png")'

PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest
# One worker a core, each with one thread (see tests/conftest.py); a file's tests stay together, for
# what they share.
TESTS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PYTEST) -n auto --dist loadfile
SHELL := bash

# The oldest versions that setup.py allows, read from there; NumPy 1.24 knows no Python above 3.11.
FLOOR_PYTHON ?= python3.11
FLOOR := .venv-floor/bin/python
FLOOR_VERSIONS = $(shell sed -n 's/^ *"\([a-z]*\)>=\([0-9.]*\)",.*/\1==\2.*/p' setup.py)

# On a machine with a GPU: a Python that was named is used as it is, and nothing is installed.
ifeq ($(origin PYTHON),command line)
GPU_PY := $(PYTHON)
else
GPU_PY := $(PY)
GPU_READY := .venv/cuda
endif
RESULTS ?= gpu-results

# PyTorch to be timed beside; a Python that has torch, diffusers and transformers already:
# make bench TORCH_PYTHON=path/to/python
BENCH := kernels/bench-cpu.json
ifeq ($(origin TORCH_PYTHON),undefined)
TORCH_PYTHON := .venv-bench/bin/python
TORCH_READY := .venv-bench/torch
endif

WITHOUT_NUMBA := Numba, which the fast operations need, could not be installed: going on in plain NumPy.

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-floor test-gpu bench bench-gpu lint mutations evaluate figures equations notebooks train clean

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

test: .venv/dev .venv/kernels  ## run the tests: two to four minutes on two cores
	@echo "Testing: two to four minutes on two cores."
	$(TESTS) -m "not slow and not gpu"

test-all: .venv/dev .venv/kernels  ## run the slow tests too
	$(TESTS) -m "not gpu"

test-floor: .venv-floor/dev  ## run the tests on the oldest NumPy, SciPy, ... that setup.py allows
	$(FLOOR) -m pytest -m "not slow and not gpu"

test-gpu: $(GPU_READY)  ## on a GPU: all kernels and models on it, then compute-sanitizer (under 10 minutes)
	@mkdir -p $(RESULTS)
	@echo "Testing on the GPU: under 10 minutes; the reports go to $(RESULTS)/."
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PY) -m pytest tests -m gpu -W default -p no:cacheprovider -ra 2>&1 | tee $(RESULTS)/test-gpu.txt; \
	    test $${PIPESTATUS[0]} -eq 0; tests=$$?; \
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PY) tests/sanitize.py --report $(RESULTS)/sanitizer.txt && exit $$tests

bench: .venv/kernels $(TORCH_READY)  ## times and memory beside PyTorch (half an hour; close other programs)
	$(PY) -m tinydiff bench cpu --torch-python $(TORCH_PYTHON) --json $(BENCH)
	$(PY) -m tinydiff.bench.ladder
	$(PY) -m tinydiff.bench.curves --out kernels/loss_curves.png

bench-gpu: $(GPU_READY)  ## on a GPU: each kernel beside cuDNN and PyTorch, the model's steps (under 10 minutes)
	@mkdir -p $(RESULTS)
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PY) -m tinydiff.bench.gpu --json $(RESULTS)/bench-gpu.json --table $(RESULTS)/bench-gpu.md

lint: .venv/dev  ## check the style (seconds)
	$(PY) -m ruff check .

mutations: .venv/dev  ## flip signs in the backward passes and see the tests fail (about an hour on two cores)
	$(PY) tests/mutations.py

evaluate: .venv/kernels  ## how often the shipped model draws what a caption says (minutes)
	$(PY) -m tinydiff evaluate emoji --steps 20 --guidance 2 --json $(MODEL)/evaluation.json

figures: .venv/kernels  ## draw the pictures of the README again, with the shipped model (a minute)
	$(PY) -m tinydiff generate "red heart, noto style" --scale 2 --out demo/heart.png --strip $(MODEL)/denoising.png
	$(PY) -m tinydiff generate $(PROMPTS) $(MORE) --scale 2 --out $(MODEL)/samples.png
	$(call CURVE,$(MODEL))
	$(call CURVE,$(FASHION))

equations: .venv/dev  ## write notebooks/EQUATIONS.md again, from the docstrings (a second)
	$(PY) tests/equations.py

notebooks: .venv/dev  ## build notebooks/*.ipynb from their Python sources (seconds)
	.venv/bin/jupytext --to ipynb notebooks/*.py

train: .venv/kernels  ## train from nothing: CLIP, autoencoder, U-Net (two hours; RECIPE=emoji-64: the shipped size)
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

.venv/cuda: setup.py pyproject.toml | $(PY)
	@echo "Installing tinydiff, its test tools, CuPy and numba-cuda into .venv: a few minutes."
	@$(PIP) -e '.[cpu,cuda,dev]'
	@touch $@ .venv/dev .venv/runtime

# Compiled code depends on the processor and on every kernel's text.
.venv/kernels: .venv/runtime $(wildcard kernels/cpu/*.py)
	@echo "Compiling the fast operations for this processor: about a minute on two cores."
	@$(PY) -m tinydiff.kernels.cpu
	@touch $@

# pip takes PyTorch's build without CUDA, 200 MB, if PIP_EXTRA_INDEX_URL names PyTorch's own index;
# the other one, some GB, gives the same times here.
.venv-bench/torch: | $(PY)
	@echo "Installing PyTorch 2.13.0, diffusers and transformers into .venv-bench: minutes, up to some GB."
	@$(PY) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check numpy torch==2.13.0 diffusers transformers
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
