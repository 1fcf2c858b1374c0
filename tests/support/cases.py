"""One row an operation buys every check in test_ops.py and test_kernels.py.

The oracle is plain PyTorch, run in float64 by the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    rounds_once: bool = True  # as kernels do; the formula rounds after every operator
    saves_output: bool = False  # gradients carry the rounding of a saved output
    cancels: bool = False  # values or gradients are sums of terms that may cancel
    farthest: float = 3e38  # where plain operators stay finite
    weighs_rows: bool = False  # by its last input, which takes no other shape

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


def variant(gate, up, weight=None, *, alpha=1.0, limit=None, offset=0.0):
    dtype = torch.promote_types(gate.dtype, up.dtype)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    product = gate * torch.sigmoid(alpha * gate) * (up + offset)
    return product if weight is None else (product * weight).to(dtype)


GPT_OSS = {"alpha": 1.702, "limit": 1.75, "offset": 1.0}


# Numbers are written out: a compiler takes those of a dictionary for dynamic ones.


def scaled(gate, up):
    return sigtorch.swiglu(gate, up, alpha=1.702, offset=1.0)


def clamped(gate, up=None, weight=None):
    return sigtorch.swiglu(gate, up, alpha=1.702, limit=1.75, offset=1.0, weight=weight)


def interleaved(x, weight=None):
    return sigtorch.swiglu(x, alpha=1.702, limit=1.75, offset=1.0, interleaved=True, weight=weight)


def column(s):
    return (*s[:-1], 1)


swiglu_row = partial(Case, cancels=True, farthest=1e37)
CASES = [
    Case("sigmoid", sigtorch.sigmoid, torch.sigmoid, saves_output=True),
    Case("sigmoid-input", lambda x: sigtorch.sigmoid(x, save="input"), torch.sigmoid),
    Case("gate", sigtorch.sigmoid_gate, gate, lambda s: (s, s)),
    Case("gate-residual", sigtorch.sigmoid_gate, lambda x, g, r: gate(x, g) + r, lambda s: (s, s, s), cancels=True),
    Case("gate-token", sigtorch.sigmoid_gate, gate, lambda s: (s, (*s[:-1], 1)), cancels=True),
    Case("gate-feature", sigtorch.sigmoid_gate, gate, lambda s: (s, s[-1:]), cancels=True),
    Case("gate-channel", sigtorch.sigmoid_gate, gate, lambda s: (s, (*s[:2], *[1] * (len(s) - 2))), cancels=True),
    Case("gate-other", sigtorch.sigmoid_gate, gate, lambda s: (s, (1, *s[1:])), cancels=True),
    Case("gate-pixel", sigtorch.sigmoid_gate, gate, lambda s: (s, (s[0], 1, *s[2:])), cancels=True),
    Case("gate-larger", sigtorch.sigmoid_gate, gate, lambda s: ((*s[:-1], 1), s), cancels=True),
    Case("lerp", sigtorch.sigmoid_lerp, lerp, lambda s: (s, s, s), cancels=True),
    Case("glu", sigtorch.glu, F.glu),
    Case("glu-first", lambda x: sigtorch.glu(x, 0), lambda x: F.glu(x, 0)),
    Case("swiglu", sigtorch.swiglu, swiglu, lambda s: (s, s), cancels=True),
    Case("swiglu-row", sigtorch.swiglu, swiglu, lambda s: (s, (*s[:-1], 1)), cancels=True),
    Case("swiglu-packed", sigtorch.swiglu, lambda x: swiglu(*x.chunk(2, -1)), cancels=True),
    swiglu_row("swiglu-scaled", scaled, partial(variant, alpha=1.702, offset=1.0), lambda s: (s, s)),
    swiglu_row("swiglu-clamped", clamped, partial(variant, **GPT_OSS), lambda s: (s, s)),
    swiglu_row("swiglu-weighted", clamped, partial(variant, **GPT_OSS), lambda s: (s, s, column(s)), weighs_rows=True),
    swiglu_row("swiglu-packed-clamped", clamped, lambda x: variant(*x.chunk(2, -1), **GPT_OSS)),
    swiglu_row("swiglu-interleaved", interleaved, lambda x: variant(x[..., 0::2], x[..., 1::2], **GPT_OSS)),
    swiglu_row(
        "swiglu-interleaved-weighted", interleaved, lambda x, w: variant(x[..., 0::2], x[..., 1::2], w, **GPT_OSS),
        lambda s: (s, column(s)), weighs_rows=True,
    ),
]  # fmt: skip
# Rows of an operation that has another one with equal shapes: they save the same.
ALIKE = ("glu-first", "gate-channel", "gate-pixel", "swiglu-scaled", "swiglu-packed-clamped")

# A result in another dtype is one rounding away; a half gradient from a rounded output two more.
ULP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-23}


def tolerance(dtype, roundings=1):
    """Returns the tolerance for values of order one: half an ulp per rounding for half types, a few ulps for float32.

    In float64 the oracle rounds as we do, and its 1 - s cancels.
    """
    if dtype == torch.float64:
        return {"rtol": 1e-12, "atol": 1e-14}
    bound = (0.55 if dtype in HALF else 8) * roundings * ULP[dtype]
    return {"rtol": bound, "atol": bound if roundings > 1 else bound * 1e-3}


def last_place(exact, dtype):
    """A unit of the last place that a result of dtype has at these values."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=info.tiny)))) * info.eps


def ulps(mine, exact):
    """Distances from what is exact in units of the last place; none below the smallest normal number."""
    off = (mine.double() - exact).abs()
    return (off / last_place(exact, mine.dtype)).masked_fill(off <= torch.finfo(mine.dtype).tiny, 0)


def assert_rounded_once(mine, exact, atol=0.0):
    """A half type's results are within 0.51 units of the last place, others relative to themselves; or all within atol.

    Float32 flushes a sigmoid below its smallest normal number to zero, and that is multiplied, in tests by less than 128.
    """
    bound = tolerance(mine.dtype)["rtol"] * exact.abs()
    if mine.dtype in HALF:
        bound = 0.51 * last_place(exact, mine.dtype)
    smallest = 1e-14 if mine.dtype == torch.float64 else 128 * torch.finfo(torch.float32).tiny
    off = (mine.double() - exact).abs()
    wrong = ~(
        (off <= bound + torch.as_tensor(atol).clamp(min=smallest)) | (mine == exact) | (mine.isnan() & exact.isnan())
    )
    if wrong.any():
        seen = ", ".join(f"{m!r} for {e!r}" for m, e in zip(mine[wrong][:3].tolist(), exact[wrong][:3].tolist()))
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} {mine.dtype} are wrong by more than a rounding: {seen}"
        )


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
    composed = not case.rounds_once or (backend == "auto" and sigtorch.backend_of(*inputs) == "aten")
    cancelled = 32 * computed_in(dtype) if case.cancels else 0.0
    largest = torch.finfo(dtype).max
    expected = torch.where(expected.abs() > largest, expected * torch.inf, expected)
    if composed:
        torch.testing.assert_close(out.double(), expected, **tolerance(dtype, 4))
    else:
        assert_rounded_once(out, expected, cancelled)
    if case.saves_output:  # rounded, and the gradient is what that gives
        expected_grads = [grad(out).double() * out.double() * (1 - out.double())]
    expected_grads = [torch.where(g.abs() > largest, g * torch.inf, g) for g in expected_grads]
    for mine, theirs, given in zip(grads, expected_grads, [t for t in inputs if t.requires_grad], strict=True):
        assert mine.dtype == given.dtype
        assert mine.shape == given.shape
        exact, terms = theirs.sum_to_size(given.shape), theirs.numel() // max(1, mine.numel())
        if terms > 1:
            cancelled = sum_error(mine.dtype, theirs, terms, composed)
        if composed:
            bound = tolerance(mine.dtype, 4)
            torch.testing.assert_close(mine.double(), exact, rtol=bound["rtol"], atol=max(bound["atol"], cancelled))
        else:
            assert_rounded_once(mine, exact, cancelled)
    return out, grads


def computed_in(dtype):
    """A unit of the last place of what results of dtype are computed in."""
    return 2.0**-52 if dtype == torch.float64 else ULP[torch.float32]


def sum_error(dtype, addends, terms, composed):
    """The error bound of a sum of so many terms in float32, or float64; PyTorch adds terms that are rounded already."""
    wide = computed_in(dtype)
    largest = addends.abs().max().item() if terms else 0.0
    return 4 * terms**0.5 * largest * (wide + (ULP.get(dtype, wide) if composed else 0))
