"""What the compiler makes of each kernel, for three architectures, without a device: instructions, widths, spills."""

import json
import os
import subprocess
import sys

import pytest
import triton

# instructions an element: an operation, its dtype, forward and backward at most
BOUNDS = {
    "sigmoid": {"bfloat16": (8, 8), "float32": (12, 8)},
    "sigmoid-input": {"bfloat16": (8, 13), "float32": (12, 18)},
    "gate": {"bfloat16": (10, 16), "float32": (13, 20)},
    "gate-token": {"bfloat16": (8, 14), "float32": (9, 19)},
    "lerp": {"bfloat16": (18, 24), "float32": (21, 27)},
    "swiglu": {"bfloat16": (11, 18), "float32": (15, 22)},
    "swiglu-packed": {"bfloat16": (11, 18), "float32": (16, 23)},
    "glu": {"bfloat16": (10, 16), "float32": (15, 21)},
    "binary_cross_entropy_with_logits": {"bfloat16": (34, 17), "float32": (58, 23)},
    "sigmoid_focal_loss": {"bfloat16": (43, 47), "float32": (66, 54)},
}
OLDER = 1 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 0  # an older compiler adds up to one
SCRIPT = """
import json, sys, torch, sigtorch
from functools import partial
from _machine_code import compiled, count
from cases import CASES
from loss_cases import LOSSES
columns = 8 * 65537  # a multiple of 8, and of nothing more that a compiler could see

def calls(dtype):
    for case in CASES:
        halves = 2 if case.name in ("glu", "swiglu-packed") else 1
        yield case.name, case.ours, case.inputs((2, columns * halves), dtype)
    for loss in LOSSES:
        x = torch.randn(2, columns, dtype=dtype, requires_grad=True)
        yield loss.__name__, partial(loss, reduction="mean"), [x, torch.rand_like(x)]

found = {}
for dtype in (torch.bfloat16, torch.float32):
    for name, function, inputs in calls(dtype):
        if name not in sys.argv[2:]:
            continue
        with sigtorch.use_backend("triton"), compiled(int(sys.argv[1])) as launches:
            out = function(*inputs)
            forward = len(launches)
            torch.autograd.grad(out, [t for t in inputs if t.requires_grad], torch.ones_like(out))
        elements = 2 * columns
        counts = [vars(c) | {"each": c.instructions * l.threads / elements} for l in launches for c in [count(l)]]
        found[f"{name} {dtype}"] = [counts[:forward], counts[forward:]]
json.dump(found, sys.stdout)
"""


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_are_as_lean_as_we_say(arch):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(["tests", "scripts"])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(arch), *BOUNDS], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, by_dtype in BOUNDS.items():
        for dtype, bounds in by_dtype.items():
            for counts, bound in zip(found[f"{name} torch.{dtype}"], bounds, strict=True):
                assert counts, "nothing was launched"
                assert sum(c["each"] for c in counts) <= bound + OLDER, (name, dtype, counts)
                for c in counts:
                    assert all(a.endswith(" 128") or n == 1 for a, n in c["accesses"].items()), (name, dtype, c)
                    assert not c["stack"]
                    assert not c["spills"]
                    assert not c["atomics"]
