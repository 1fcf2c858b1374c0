"""Bounds of the machine code of each kernel, without a GPU: instructions, widths, spills."""

from support.compiling import STACK, TRITON, architectures, printed

# Instructions per element at most, by operation and dtype: forward, backward.
BOUNDS = {
    "sigmoid": {"bfloat16": (8, 7), "float32": (13, 6)},
    "sigmoid-input": {"bfloat16": (8, 12), "float32": (13, 18)},
    "gate": {"bfloat16": (10, 16), "float32": (14, 20)},
    "gate-token": {"bfloat16": (6, 19), "float32": (9, 14)},  # backward with the end of a sum, as below
    "gate-other": {"bfloat16": (11, 24), "float32": (16, 16)},
    "gate-larger": {"bfloat16": (10, 24), "float32": (16, 19)},
    "gate, transposed": {"bfloat16": (22, 31), "float32": (33, 45)},
    "lerp": {"bfloat16": (18, 25), "float32": (25, 31)},
    "swiglu": {"bfloat16": (11, 17), "float32": (15, 22)},
    "swiglu-packed": {"bfloat16": (12, 19), "float32": (18, 25)},
    "swiglu-scaled": {"bfloat16": (13, 20), "float32": (17, 25)},
    "swiglu-clamped": {"bfloat16": (16, 29), "float32": (20, 32)},
    "swiglu-weighted": {"bfloat16": (19, 40), "float32": (25, 28)},  # backward with the end of a sum, as below
    "swiglu-packed-clamped": {"bfloat16": (17, 31), "float32": (23, 37)},
    "swiglu-interleaved": {"bfloat16": (16, 34), "float32": (21, 41)},
    "swiglu-interleaved-weighted": {"bfloat16": (19, 27), "float32": (24, 25)},
    "glu": {"bfloat16": (11, 17), "float32": (17, 23)},
    # Forward with the end of two sums or three, as if each thread had one tile.
    "sigmoid_dice_loss": {"bfloat16": (30, 21), "float32": (32, 30)},
    "sigmoid_dice_loss, with bce": {"bfloat16": (42, 27), "float32": (45, 36)},
    # Forward with the end of a sum: some 100 instructions per thread of four elements, as if each thread had one tile.
    "binary_cross_entropy_with_logits": {"bfloat16": (71, 6), "float32": (82, 9.5)},
    "sigmoid_focal_loss": {"bfloat16": (84, 6), "float32": (94, 9.5)},
    "quality_focal_loss": {"bfloat16": (82, 6), "float32": (95, 9.5)},
    "varifocal_loss": {"bfloat16": (79, 6), "float32": (94, 9.5)},
    "asymmetric_loss": {"bfloat16": (175, 6), "float32": (188, 9.5)},  # a power by element, and two logarithms
    "binary_cross_entropy_with_logits, without gradient": {"bfloat16": (55, 0), "float32": (65, 0)},
    "sigmoid_focal_loss, without gradient": {"bfloat16": (63, 0), "float32": (72, 0)},
    "quality_focal_loss, without gradient": {"bfloat16": (67, 0), "float32": (75, 0)},
    "varifocal_loss, without gradient": {"bfloat16": (68, 0), "float32": (78, 0)},
    "asymmetric_loss, without gradient": {"bfloat16": (151, 0), "float32": (160, 0)},
    "binary_cross_entropy_with_logits, of each element": {"bfloat16": (22, 16), "float32": (28, 21)},
    "sigmoid_focal_loss, of each element": {"bfloat16": (31, 46), "float32": (37, 52)},
    "quality_focal_loss, of each element": {"bfloat16": (34, 44), "float32": (40, 50)},
    "varifocal_loss, of each element": {"bfloat16": (35, 27), "float32": (41, 32)},
    "asymmetric_loss, of each element": {"bfloat16": (119, 136), "float32": (125, 143)},
}
OLDER = 1.2 if TRITON < (3, 8) else 1  # times as many instructions, from older compilers
SPILLS = 2 if TRITON == (3, 7) else 0  # in a few kernels of half types, to use few registers
SCRIPT = """
import json, sigtorch, sys, torch
from functools import partial
from without_gpu.machine_code import count
from support.cases import CASES
from support.compiling import compiled_for
from support.loss_cases import LOSSES
from sigtorch import sigmoid_dice_loss
arch, BOUNDS = int(sys.argv[1]), sys.argv[2:]
columns = 8 * 65537  # a multiple of 8, and of nothing more that a compiler could see

def one_row(dtype):
    for case in [c for c in CASES if c.name in BOUNDS]:
        halves = 2 if case.name == "glu" or "packed" in case.name or "interleaved" in case.name else 1
        yield case.name, case.ours, case.inputs((2, columns * halves), dtype)
    x, gate = (torch.randn(2, *shape, dtype=dtype, requires_grad=True) for shape in ((1024, 512), (512, 1024)))
    yield "gate, transposed", sigtorch.sigmoid_gate, [x, gate.mT.detach().requires_grad_()]  # as many elements, less 16
    for loss in LOSSES:
        x = torch.randn(2, columns, dtype=dtype, requires_grad=True)
        inputs = [x, torch.rand_like(x)]
        yield loss.__name__, partial(loss, reduction="mean"), inputs
        yield f"{loss.__name__}, without gradient", partial(without_gradient, loss), inputs
        yield f"{loss.__name__}, of each element", partial(loss, reduction="none"), inputs

    x = torch.randn(2, columns, dtype=dtype, requires_grad=True)
    dice = partial(sigmoid_dice_loss, dims=-1)
    yield "sigmoid_dice_loss", dice, [x, torch.rand_like(x)]
    yield "sigmoid_dice_loss, with bce", partial(dice, bce_weight=0.5), [x, torch.rand_like(x)]

def without_gradient(loss, x, target):
    return loss(x.detach(), target, reduction="mean") + 0 * x.sum()  # of PyTorch's

def counted(launch):
    counts = count(launch)
    return vars(counts) | {"each": counts.instructions * launch.threads / (2 * columns)}

found = {}
for dtype in (torch.bfloat16, torch.float32):
    for name, function, inputs in one_row(dtype):
        passes = compiled_for(arch, function, inputs)
        found[f"{name} {dtype}"] = [[counted(launch) for launch in launches] for launches in passes]
json.dump(found, sys.stdout)
"""


@architectures({80: 80, 90: 90, 100: 100})
def test_kernels_are_as_lean_as_we_say(arch):
    found = printed(SCRIPT, str(arch), *BOUNDS)
    for name, by_dtype in BOUNDS.items():
        for dtype, bounds in by_dtype.items():
            for counts, bound in zip(found[f"{name} torch.{dtype}"], bounds, strict=True):
                assert counts or not bound, "nothing was launched"
                assert sum(c["each"] for c in counts) <= bound * OLDER, (name, dtype, counts)
                for c in counts:
                    dice = name.startswith("sigmoid_dice_loss")
                    sums = ("_sum_kernel", "_map_and_sum_kernel") if dice else ("_sum_kernel",)
                    four = c["name"] in sums and dtype == "bfloat16"  # elements a thread
                    width = " 64" if four else " 128"
                    few = 3 if dice else 1  # numbers of a row
                    wide = all(a.endswith(width) or n <= few for a, n in c["accesses"].items())
                    assert wide, (name, dtype, c)
                    assert c["stack"] <= STACK
                    assert c["spills"] <= SPILLS
                    assert not c["atomics"]
