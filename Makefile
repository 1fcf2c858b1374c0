# make train | make train-text | make test | make test-ptx ARCH=90 | make lint
# TORCH=2.8.0 does the same with that torch, in a .venv of its own
TORCH  ?=
ARCH   ?= 90
PYTHON ?= python3
VENV   := .venv$(if $(TORCH),-torch-$(TORCH))
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: train train-text test test-ptx lint clean

train: $(READY)
	$(BIN)/python scripts/train_digits.py

train-text: $(READY)
	$(BIN)/python scripts/train_text.py

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

test-ptx: $(READY)
	$(BIN)/python -m pytest -p ptx.plugin --ptx-arch $(ARCH) -m kernels $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[triton,scripts,test,lint]" $(if $(TORCH),torch==$(TORCH))
	touch $@

clean:
	rm -rf .venv .venv-torch-* runs build dist *.egg-info
