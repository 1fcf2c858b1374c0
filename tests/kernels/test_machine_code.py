"""Bounds of the machine code of each kernel, for three architectures, without a GPU: instructions, widths, spills."""

import itertools
import json

import pytest
import triton
from support.compiling import printed

# Instructions per element at most, by operation and dtype: forward, backward.
BOUNDS = {
    "sigmoid": {"bfloat16": (8, 7), "float32": (13, 6)},
    "sigmoid-input": {"bfloat16": (8, 12), "float32": (13, 18)},
    "gate": {"bfloat16": (10, 16), "float32": (14, 20)},
    "gate-token": {"bfloat16": (6, 19), "float32": (9, 14)},  # backward with the end of a sum, as below
    "lerp": {"bfloat16": (18, 25), "float32": (25, 31)},
    "swiglu": {"bfloat16": (11, 17), "float32": (15, 22)},
    "swiglu-packed": {"bfloat16": (12, 19), "float32": (18, 25)},
    "glu": {"bfloat16": (11, 17), "float32": (17, 23)},
    # Forward with the end of a sum: some 100 instructions per thread of four elements, as if each thread had one tile.
    "binary_cross_entropy_with_logits": {"bfloat16": (55, 16), "float32": (65, 22)},
    "sigmoid_focal_loss": {"bfloat16": (63, 45), "float32": (72, 52)},
}
ROWS = [(96, 6), (96, 136)]  # of few columns, and of several vectors
REGISTERS = 168  # three blocks of 128 threads per multiprocessor; a loss computes more per element, with fewer
LOSS_REGISTERS = 128
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
OLDER = 1.2 if TRITON < (3, 8) else 1  # times as many instructions, from older compilers
# Bytes of stack in one kernel of older compilers; and spills of 3.7 in a few kernels of half types, to use few registers.
STACK, SPILLS = (32, 2) if TRITON == (3, 7) else (8 if TRITON < (3, 7) else 0, 0)
SCRIPT = """
import json, sys, torch, sigtorch
from functools import partial
from itertools import chain
from without_gpu.machine_code import compiled, count, held
from support.cases import CASES
from support.loss_cases import LOSSES, images, make
from sigtorch.kernels import chunked_losses
arch, rows, BOUNDS = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
columns = 8 * 65537  # a multiple of 8, and of nothing more that a compiler could see

def one_row(dtype):
    for case in [c for c in CASES if c.name in BOUNDS]:
        halves = 2 if case.name in ("glu", "swiglu-packed") else 1
        yield case.name, case.ours, case.inputs((2, columns * halves), dtype)
    for loss in LOSSES:
        x = torch.randn(2, columns, dtype=dtype, requires_grad=True)
        yield loss.__name__, partial(loss, reduction="mean"), [x, torch.rand_like(x)]

def many_rows(dtype):
    for shape in map(tuple, rows):
        for case in CASES:
            yield f"{case.name} {shape}", case.ours, case.inputs(shape, dtype)
        for loss in LOSSES:
            for kind in ("soft", "uint8", "index"):
                x, target = make(shape, dtype, kind, "cpu")
                weight = torch.rand(shape[-1]) if kind != "soft" else None
                call = partial(loss, target=target) if loss is LOSSES[0] else partial(loss, targets=target)
                yield f"{loss.__name__} {shape} {kind}", partial(call, weight=weight, reduction="mean"), [x]
                if kind == "uint8":
                    continue
                given = {"weight": torch.rand(shape), "pos_weight": torch.rand(shape[-1]), "ignore_index": 255}
                yield f"{loss.__name__} {shape} {kind} ignoring", partial(call, reduction="mean", **given), [x]
        x = torch.randn(shape, requires_grad=True)
        yield f"loss of a chunk {shape}", partial(chunk, dtype=dtype), [x]

def chunk(x, dtype):
    one, bias, at = torch.ones(()), torch.ones(len(x), 1), torch.arange(3)
    chunked_losses.negatives(x.detach().clone(), one, bias, at)
    chunked_losses.negatives_with_gradient(x.detach().clone(), one, bias, at, dtype)
    return x * 1

def of_images(dtype):
    for loss in LOSSES:
        for layout in ("contiguous", "channels_last", "classes first"):
            x, target = images(dtype, layout, classes=21, size=(32, 36))
            call = partial(loss, target=target) if loss is LOSSES[0] else partial(loss, targets=target)
            given = {"dim": 1, "pos_weight": torch.rand(21, 1, 1), "ignore_index": 255}
            yield f"{loss.__name__} {layout}", partial(call, reduction="mean", **given), [x]

found = {}
for dtype in (torch.bfloat16, torch.float32, *([torch.float16] if rows else [])):
    for name, function, inputs in chain(many_rows(dtype), of_images(dtype)) if rows else one_row(dtype):
        with sigtorch.use_backend("triton"), compiled(arch) as launches:
            out = function(*inputs)
            forward = len(launches)
            torch.autograd.grad(out, [t for t in inputs if t.requires_grad], torch.ones_like(out))
        if rows:
            counts = [vars(held(l)) for l in launches]
        else:
            threads = [(count(l), l.threads) for l in launches]
            counts = [vars(c) | {"each": c.instructions * n / (2 * columns)} for c, n in threads]
        found[f"{name} {dtype}"] = [counts[:forward], counts[forward:]]
json.dump(found, sys.stdout)
"""


def counted(arch, rows=()):
    return printed(SCRIPT, str(arch), json.dumps(rows), *BOUNDS)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_are_as_lean_as_we_say(arch):
    found = counted(arch)
    for name, by_dtype in BOUNDS.items():
        for dtype, bounds in by_dtype.items():
            for counts, bound in zip(found[f"{name} torch.{dtype}"], bounds, strict=True):
                assert counts, "nothing was launched"
                assert sum(c["each"] for c in counts) <= bound * OLDER, (name, dtype, counts)
                for c in counts:
                    narrow = "load 64" if c["name"] == "_sum_kernel" and dtype == "bfloat16" else None  # four elements
                    wide = all(a.endswith(" 128") or a == narrow or n == 1 for a, n in c["accesses"].items())
                    assert wide, (name, dtype, c)
                    assert c["stack"] <= STACK
                    assert c["spills"] <= SPILLS
                    assert not c["atomics"]


@pytest.mark.parametrize("arch", [80, 120])
def test_registers_suffice_however_rows_lie(arch):
    for name, counts in counted(arch, ROWS).items():
        for c in itertools.chain(*counts):
            assert c["stack"] <= STACK, (name, c)  # where spills would be, too
            assert c["registers"] <= (LOSS_REGISTERS if "loss" in name or "entropy" in name else REGISTERS), (name, c)
