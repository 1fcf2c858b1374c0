# make train | make train-text | make train-experts | make test | make test-fast | make test-ptx ARCH=90 | make test-tritons | make mutants |
# make lint | make docs; tests run in JOBS processes
# TORCH=2.8.0 does the same with that torch, in a .venv of its own
TORCH  ?=
ARCH   ?= 90
PYTHON ?= python3
JOBS   ?= 2
TRITONS ?= 3.4 3.5 3.6 3.7 3.8 3.9 newest
VENV   := .venv$(if $(TORCH),-torch-$(TORCH))
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A file's tests stay together and in order: some share a training, or go on from what the one before them left.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
FAST   := tests/kernels/test_kernels.py tests/ops/test_ops.py tests/ops/test_gates.py

.PHONY: train train-text train-experts test test-fast test-ptx $(ARCH:%=test-ptx-%) test-tritons mutants lint docs clean

# Each training gets a folder of its own: the first of runs/digits, runs/digits-2, ... that is not there.
fresh = out=$(1); n=1; while [ -e $$out ]; do n=$$((n + 1)); out=$(1)-$$n; done

train: $(READY)
	@$(call fresh,runs/digits); set -x; $(BIN)/python scripts/train_digits.py --out $$out

train-text: $(READY)
	@$(call fresh,runs/text); set -x; $(BIN)/python scripts/train_text.py --out $$out

train-experts: $(READY)
	@$(call fresh,runs/experts); set -x; $(BIN)/python scripts/train_experts.py --out $$out

test: $(READY)
	$(PYTEST) $(ARGS)

# The main tables of operations: what to run at each save. Losses take as long again: tests/ops/test_losses.py.
test-fast: $(READY)
	$(PYTEST) $(FAST) $(ARGS)

# ARCH may name several: "80 90 100".
test-ptx: $(ARCH:%=test-ptx-%)

$(ARCH:%=test-ptx-%): test-ptx-%: $(READY)
	$(PYTEST) -p without_gpu.ptx.plugin --ptx-arch $* -m kernels $(ARGS)

# Compiles and launches everything on other releases of Triton, over a driver that does nothing.
test-tritons: $(TRITONS:%=.tritons/%.tested)

.tritons/%.tested: $(READY)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .tritons/$* triton$(if $(filter-out newest,$*),==$*.*)
	TRITON_INTERPRET=0 PYTHONPATH=.tritons/$* $(PYTEST) -p no:cacheprovider tests/host

# Which mistakes the tests would not notice: an hour or two, by hand or by night.
mutants: $(READY)
	PYTHONPATH=tests $(BIN)/python -m mutants $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into site/; a warning, such as a link that leads nowhere, is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[triton,scripts,tensorboard,test,lint,docs]" $(if $(TORCH),torch==$(TORCH))
	# On their own, and not in the way: torchvision comes after torch, and must not hold it back.
	-$(BIN)/python -m pip install --quiet --editable ".[models]" torch==$$($(BIN)/python -c "from importlib.metadata import version; print(version('torch'))")
	touch $@

clean:
	rm -rf .venv .venv-torch-* .tritons runs site dist
