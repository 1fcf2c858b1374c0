"""One row an operation buys every check in test_ops.py and test_kernels.py.

The oracle is plain PyTorch, run in float64 by the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import sigtorch

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)


@dataclass(frozen=True)
class Case:
    name: str
    ours: Callable
    oracle: Callable
    shapes: Callable = lambda s: (s,)  # the inputs' shapes, from a base shape of two axes or more
    fused: bool = True  # by a kernel, where one is asked for
    saves_output: bool = False  # gradients carry the rounding of a saved output
    cancels: bool = False  # values or gradients are sums of terms that may cancel

    def inputs(self, shape, dtype, device="cpu", scale=3.0, grad=True):
        return [
            (torch.randn(s, dtype=torch.float64) * scale).to(device, dtype).requires_grad_(grad)
            for s in self.shapes(shape)
        ]


def gate(x, gate):
    return torch.sigmoid(gate) * x


def lerp(x, y, gate):
    s = torch.sigmoid(gate)
    return s * x + (1 - s) * y


def swiglu(gate, up):
    return F.silu(gate) * up


CASES = [
    Case("sigmoid", sigtorch.sigmoid, torch.sigmoid, saves_output=True),
    Case("sigmoid-input", lambda x: sigtorch.sigmoid(x, save="input"), torch.sigmoid),
    Case("gate", sigtorch.sigmoid_gate, gate, lambda s: (s, s)),
    Case("gate-residual", sigtorch.sigmoid_gate, lambda x, g, r: gate(x, g) + r, lambda s: (s, s, s), cancels=True),
    Case("gate-token", sigtorch.sigmoid_gate, gate, lambda s: (s, (*s[:-1], 1)), cancels=True),
    Case("gate-feature", sigtorch.sigmoid_gate, gate, lambda s: (s, s[-1:]), cancels=True),
    Case("gate-channel", sigtorch.sigmoid_gate, gate, lambda s: (s, (*s[:2], *[1] * (len(s) - 2))), cancels=True),
    Case("gate-other", sigtorch.sigmoid_gate, gate, lambda s: (s, (1, *s[1:])), cancels=True, fused=False),
    Case("lerp", sigtorch.sigmoid_lerp, lerp, lambda s: (s, s, s), cancels=True),
    Case("glu", sigtorch.glu, F.glu),
    Case("glu-first", lambda x: sigtorch.glu(x, 0), lambda x: F.glu(x, 0)),
    Case("swiglu", sigtorch.swiglu, swiglu, lambda s: (s, s), cancels=True),
    Case("swiglu-packed", sigtorch.swiglu, lambda x: swiglu(*x.chunk(2, -1)), cancels=True),
]

# A result in another dtype is one rounding away; a half gradient from a rounded output two more.
ULP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-23}


def tolerance(dtype, roundings=1):
    """For values of order one: half an ulp a rounding for half types, a few for what float32's approximations cost.

    In float64 the oracle rounds as we do, and its 1 - s cancels.
    """
    if dtype == torch.float64:
        return {"rtol": 1e-12, "atol": 1e-14}
    bound = (0.55 if dtype in HALF else 8) * roundings * ULP[dtype]
    return {"rtol": bound, "atol": bound if roundings > 1 else bound * 1e-3}


def contiguous(t):
    return t


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def chunk_half(t):
    return torch.cat([t, t], -1).chunk(2, -1)[1]


def padded(t):
    return torch.cat([t, t[..., :1]], -1)[..., :-1]


def every_other(t):
    return torch.stack([t, t], -1)[..., 1]


def misaligned(t):
    return torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)


def expanded(t):
    return t[:1].expand_as(t)


STRIDES = [contiguous, transposed, chunk_half, padded, every_other, misaligned, expanded]


def gradients(fn, inputs, grad):
    """Output and gradients; grad is a function of the output, so that its strides may be anything."""
    leaves = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    out = fn(*leaves)
    wanted = [t for t in leaves if t.requires_grad]
    return out.detach(), torch.autograd.grad(out, wanted, grad(out.detach()))


def check(case, inputs, grad=None, backend="auto"):
    """Values and gradients against the oracle in float64 on the same inputs."""
    torch.manual_seed(1)
    exact = case.oracle(*[t.detach().double() for t in inputs])
    weights = torch.randn_like(exact)
    grad = grad or (lambda out: weights.to(out))
    with sigtorch.use_backend(backend):
        out, grads = gradients(case.ours, inputs, grad)
    # A broadcast input is broadcast before, so that what its gradient sums is seen.
    wide = [t.detach().double() for t in inputs]
    wide = [t.expand(exact.shape) if t.numel() < exact.numel() else t for t in wide]
    wide = [t.requires_grad_(given.requires_grad) for t, given in zip(wide, inputs, strict=True)]
    expected, expected_grads = gradients(case.oracle, wide, lambda o: grad(out).double())
    eager = case.oracle(*[t.detach() for t in inputs])
    dtype = out.dtype
    assert dtype == eager.dtype
    assert out.shape == eager.shape
    # PyTorch rounds after every operator.
    composed = not case.fused or (backend == "auto" and sigtorch.backend_of(*inputs) == "aten")
    loose = 4 if composed or case.cancels else 1
    largest = torch.finfo(dtype).max
    expected = torch.where(expected.abs() > largest, expected * torch.inf, expected)
    torch.testing.assert_close(out.double(), expected, **tolerance(dtype, loose))
    loose = 4 if loose > 1 or case.saves_output else 1
    for mine, theirs, given in zip(grads, expected_grads, [t for t in inputs if t.requires_grad], strict=True):
        assert mine.dtype == given.dtype
        assert mine.shape == given.shape
        bound = tolerance(mine.dtype, loose)
        if theirs.numel() > mine.numel():
            bound = sum_tolerance(mine.dtype, theirs, theirs.numel() // mine.numel(), composed)
        torch.testing.assert_close(mine.double(), theirs.sum_to_size(given.shape), **bound)
    return out, grads


def sum_tolerance(dtype, addends, terms, composed):
    """For sums of so many terms: fused ones add in float32 and round once, PyTorch's add terms that are rounded already."""
    wide = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    largest = addends.abs().max().item() if terms else 0.0
    rounded = 4 * terms**0.5 * ULP.get(dtype, wide) if composed else 0
    return {"rtol": tolerance(dtype)["rtol"], "atol": largest * (2 * terms * wide + rounded)}
