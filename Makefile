# make train | make train-text | make test | make lint; TORCH=2.8.0 does the same with that torch, in a .venv of its own
TORCH  ?=
PYTHON ?= python3
VENV   := .venv$(if $(TORCH),-torch-$(TORCH))
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: train train-text test lint clean

train: $(READY)
	$(BIN)/python scripts/train_digits.py

train-text: $(READY)
	$(BIN)/python scripts/train_text.py

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[triton,scripts,tensorboard,test,lint]" $(if $(TORCH),torch==$(TORCH))
	touch $@

clean:
	rm -rf .venv .venv-torch-* runs build dist *.egg-info
