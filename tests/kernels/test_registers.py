"""Bounds of the registers that a thread of each kernel holds, for every operation, kind of target and layout of rows."""

from support.compiling import STACK, architectures, printed

REGISTERS = 168  # three blocks of 128 threads per multiprocessor; a loss computes more per element, with fewer
LOSS_REGISTERS = 128
ROUTER_REGISTERS = 128  # of a warp by itself; 1,024 experts are 32 a thread
SCRIPT = """
import json, sys, torch
from functools import partial
from itertools import chain
from without_gpu.machine_code import held
from support.cases import CASES
from support.compiling import compiled_for
from support.loss_cases import LOSSES, WITH_OPTIONS, images, make, target_name
from sigtorch import sigmoid_dice_loss
from support.router_cases import CASES as ROUTER_CASES, RouterCase
from sigtorch.kernels import chunked_losses
arch, few_columns, vectors = int(sys.argv[1]), (96, 6), (96, 136)
half = torch.float16  # fewer layouts: its registers are bfloat16's, but for losses, which take two passes

def many_rows(dtype):
    for shape in (vectors,) if dtype == half else (few_columns, vectors):
        for case in CASES:
            yield f"{case.name} {shape}", case.ours, case.inputs(shape, dtype)
        for loss in LOSSES:
            for kind in ("soft", "uint8", "index"):
                x, target = make(shape, dtype, kind, "cpu")
                weight = {"weight": torch.rand(shape[-1])} if kind != "soft" and loss in WITH_OPTIONS else {}
                call = partial(loss, **{target_name(loss): target})
                yield f"{loss.__name__} {shape} {kind}", partial(call, **weight, reduction="mean"), [x]
                if kind == "uint8" or loss not in WITH_OPTIONS:
                    continue
                given = {"weight": torch.rand(shape), "pos_weight": torch.rand(shape[-1]), "ignore_index": 255}
                yield f"{loss.__name__} {shape} {kind} ignoring", partial(call, reduction="mean", **given), [x]
        for kind in ("soft", "uint8"):
            x, target = make(shape, dtype, kind, "cpu")
            for dims in (0, -1):
                call = partial(sigmoid_dice_loss, target=target, dims=dims)
                yield f"sigmoid_dice_loss {shape} {kind} {dims}", call, [x]
                yield f"sigmoid_dice_loss {shape} {kind} {dims} with bce", partial(call, bce_weight=0.5), [x]
        for kind in KINDS:
            x = torch.randn(shape, requires_grad=True)
            yield f"loss of a chunk {shape} {kind}", partial(chunk, kind=kind, out=dtype), [x]

KINDS = {
    "diagonal": lambda rows, cols: chunked_losses.on_diagonal(),
    "list": lambda rows, cols: chunked_losses.listed(torch.arange(0, rows * cols, 7), rows, cols),
    "matrix": lambda rows, cols: chunked_losses.in_matrix(torch.ones(cols, rows, dtype=torch.bool)),
}

def chunk(x, kind, out):
    one, each, logits = x.new_ones(()), x.new_ones(len(x)), x.detach().clone()
    for scale, bias, weights in ((one, one, None), (None, each, None), (one, each, each)):
        step = chunked_losses.Step(one, KINDS[kind](*x.shape), scale, bias, weights, one, scale is not None)
        step.add(logits, 0, 0, step.sums_of_rows(*x.shape), out)
        step.add(logits, 0, 0, None, None)
    chunked_losses.write_in_units(logits, torch.empty_like(logits, dtype=torch.float16), torch.empty_like(logits[:, :1]))
    return x * 1

def of_images(dtype):
    for loss in WITH_OPTIONS:
        for layout in ("contiguous", "channels_last", "classes first"):
            x, target = images(dtype, layout, classes=21, size=(32, 36))
            call = partial(loss, **{target_name(loss): target})
            given = {"dim": 1, "pos_weight": torch.rand(21, 1, 1), "ignore_index": 255}
            yield f"{loss.__name__} {layout}", partial(call, reduction="mean", **given), [x]

    for layout in ("contiguous", "channels_last"):
        x, _ = images(dtype, layout, classes=21, size=(32, 36))
        for dims in (None, (0, 2, 3)):
            call = partial(sigmoid_dice_loss, target=torch.rand_like(x), dims=dims, bce_weight=0.5)
            yield f"sigmoid_dice_loss {layout} {dims}", call, [x]

def router(dtype):
    for case in (*ROUTER_CASES, RouterCase("longest", 1024, 32, 8, 4)):
        logits, bias = case.inputs((96,), dtype)
        yield f"router {case.name}", lambda x, case=case, bias=bias: case.ours(x, bias)[0], [logits]

found = {}
for dtype in (torch.bfloat16, torch.float32, half):
    images_too = () if dtype == half else of_images(dtype)
    for name, function, inputs in chain(many_rows(dtype), images_too, router(dtype)):
        found[f"{name} {dtype}"] = [vars(held(launch)) for launch in chain(*compiled_for(arch, function, inputs))]
json.dump(found, sys.stdout)
"""


def bound(name):
    if name.startswith("router"):
        return ROUTER_REGISTERS
    return LOSS_REGISTERS if "loss" in name or "entropy" in name else REGISTERS


@architectures({80: 80, 100: 120})
def test_registers_suffice_however_rows_lie(arch):
    for name, kernels in printed(SCRIPT, str(arch)).items():
        assert kernels, "nothing was launched"
        for c in kernels:
            assert c["stack"] <= STACK, (name, c)  # where spills would be, too
            assert c["registers"] <= bound(name), (name, c)
