"""Tests of SwiGLU's options alone: limits, rows' weights, interleaving, mistakes and modules."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.cases import GPT_OSS, HALF, assert_rounded_once, gradients, variant

import sigtorch
from sigtorch import nn

every_backend = pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.kernels)])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("limit", [0.0, 1.5, math.inf])
def test_gradients_at_the_limit_are_those_of_clamp(limit, dtype, backend, device):
    """Whether a value at the limit has one depends on the release."""
    at = [math.nan, -2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0]
    gate, up = torch.cartesian_prod(*[torch.tensor(at, dtype=dtype)] * 2).to(device).unbind(1)
    inputs = [t.clone().requires_grad_() for t in (gate, up)]
    with sigtorch.use_backend(backend):
        out, grads = gradients(lambda g, u: sigtorch.swiglu(g, u, limit=limit, offset=1.0), inputs, torch.ones_like)
    wide = [t.double().requires_grad_() for t in (gate, up)]
    exact, slopes = gradients(lambda g, u: variant(g, u, limit=limit, offset=1.0), wide, torch.ones_like)
    for mine, theirs in zip((out, *grads), (exact, *slopes), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0.02, atol=1e-6, equal_nan=True)
        assert torch.equal(mine == 0, theirs == 0)


@pytest.mark.kernels
def test_alpha_makes_no_gate_infinite(device):
    gate = torch.tensor([-3e38, -1e38, 3e38], device=device, requires_grad=True)
    up = torch.ones_like(gate, requires_grad=True)
    with sigtorch.use_backend("triton"):
        found = gradients(lambda g, u: sigtorch.swiglu(g, u, alpha=1.702), [gate, up], torch.ones_like)
    wide = [t.detach().double().requires_grad_() for t in (gate, up)]
    out, grads = gradients(lambda g, u: variant(g, u, alpha=1.702), wide, torch.ones_like)
    torch.testing.assert_close(found, (out.float(), tuple(g.float() for g in grads)))


@pytest.mark.kernels
@pytest.mark.parametrize("packed", [None, False, True], ids=["apart", "packed", "interleaved"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", [(6, 1024), (2, 3, 18), (5, 2), (5, 0)], ids=str)
def test_a_float32_weight_beside_half_gates(packed, dtype, shape, device):
    """The result has the gates' dtype, and the weight's gradient is a float32 sum of what was not rounded."""
    x = torch.randn(shape).to(device, dtype).requires_grad_()
    weight = torch.randn(*shape[:-1], 1, device=device, requires_grad=True)
    halves = {None: lambda x: (x, x), False: lambda x: x.chunk(2, -1), True: lambda x: (x[..., 0::2], x[..., 1::2])}

    def ours(x, w):
        if packed is None:
            return sigtorch.swiglu(x, x, weight=w, **GPT_OSS)
        return sigtorch.swiglu(x, weight=w, interleaved=packed, **GPT_OSS)

    with sigtorch.use_backend("triton"):
        out, (grad_x, grad_weight) = gradients(ours, [x, weight], torch.ones_like)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact, (exact_x, exact_weight) = gradients(
        lambda x, w: variant(*halves[packed](x), w, **GPT_OSS), wide, torch.ones_like
    )
    assert (out.dtype, grad_x.dtype, grad_weight.dtype) == (dtype, dtype, torch.float32)
    assert_rounded_once(out, exact, 1e-5)
    if packed is not None:  # else two rounded gradients are added up
        assert_rounded_once(grad_x, exact_x, 1e-5)
    torch.testing.assert_close(grad_weight.double(), exact_weight, rtol=2e-6, atol=2e-5)


@every_backend
def test_a_wider_weight_keeps_the_dtype_of_gates(backend, device):
    gate, weight = torch.randn(2, 4, 6, device=device)[0], torch.randn(4, 1, device=device, dtype=torch.float64)
    with sigtorch.use_backend(backend):
        assert sigtorch.swiglu(gate, gate, weight=weight).dtype == torch.float32


@pytest.mark.kernels
def test_pairs_that_are_no_one_number_are_copied(device):
    """They start at an odd element, or rows are of odd length, or neighbours lie apart."""
    wide = torch.randn(4, 13, device=device)
    flat = torch.randn(25, device=device)
    for x in (
        wide[:, :12],
        wide[:, 1:],
        flat[1:].view(2, 12),
        wide[:, :12].t().contiguous().t(),
        wide[:, :6].repeat(1, 2),
    ):
        leaf = x.detach().requires_grad_()
        with sigtorch.use_backend("triton"):
            found = gradients(lambda x: sigtorch.swiglu(x, interleaved=True), [leaf], torch.ones_like)
        torch.testing.assert_close(found, gradients(lambda x: variant(x[:, 0::2], x[:, 1::2]), [leaf], torch.ones_like))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_numbers_of_models_before(dtype):
    """On a CPU those of gpt-oss' and of DeepSeek-V4's lines, bit for bit."""
    gate, up = (3 * torch.randn(2, 5, 8)).to(dtype)
    clamped, near = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    gpt_oss = (near + 1) * (clamped * torch.sigmoid(clamped * 1.702))
    found = sigtorch.swiglu(torch.stack((gate, up), -1).flatten(-2), interleaved=True, alpha=1.702, limit=1.5, offset=1)
    torch.testing.assert_close(found, gpt_oss, rtol=0, atol=0)
    torch.testing.assert_close(sigtorch.swiglu(gate, up, limit=1.5), F.silu(clamped) * near, rtol=0, atol=0)


X, ROWS = torch.randn(4, 6), torch.randn(4, 1)
MISTAKES = {
    "negative": ({"limit": -1.0}, "limit must be at least 0, got -1.0"),
    "nan": ({"limit": math.nan}, "limit must be at least 0, got nan"),
    "no number": ({"limit": "7"}, "limit must be a number, got str"),
    "alpha": ({"alpha": None}, "alpha must be a number, got NoneType"),
    "offset": ({"offset": "1"}, "offset must be a number, got str"),
    "both": ({"up": X, "interleaved": True}, r"interleaved reads both from gate, but up was given, of shape \(4, 6\)"),
    "odd": ({"gate": X[:, :5], "interleaved": True}, r"must have an even size, got gate of shape \(4, 5\)"),
    "weight": ({"up": X, "weight": X[0]}, r"weight must be one number a row, \(..., 1\), got \(6,\) for gate \(4, 6\)"),
    "weights": ({"weight": X}, r"weight must be one number a row, \(..., 1\), got \(4, 6\) for gate \(4, 6\)"),
    "of one": ({"up": X, "weight": ROWS[:1]}, r"weight must be one number a row, \(..., 1\), got \(1, 1\)"),
    "scalar": ({"gate": X[0, 0], "up": X[0, 0], "weight": ROWS[0]}, "weight must be one number a row"),
    "no tensor": ({"up": X, "weight": 2.0}, "weight must be a Tensor, got float"),
    "shapes": ({"up": X[:, :4], "limit": 1.0}, "shapes do not broadcast: gate"),
    "learned": ({"alpha": torch.ones((), requires_grad=True)}, "alpha gets no gradient, but requires one"),
    "text": ({"up": "x", "interleaved": True}, "up must be a Tensor, got str"),
}  # fmt: skip


@every_backend
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, backend, device):
    given, message = MISTAKES[name]
    given = {"gate": X} | given
    given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with sigtorch.use_backend(backend), pytest.raises((TypeError, ValueError), match=message) as seen:
        sigtorch.swiglu(given.pop("gate"), given.pop("up", None), **given)
    assert "\n" not in str(seen.value)
    assert str(seen.value).startswith("swiglu(): ")


def test_a_module_is_its_function():
    x, up, weight = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 1)
    act = nn.SwiGLU(**GPT_OSS)
    torch.testing.assert_close(act(x, up), variant(x, up, **GPT_OSS))
    torch.testing.assert_close(act(x, up, weight), variant(x, up, weight, **GPT_OSS))
    act = nn.SwiGLU(interleaved=True, **GPT_OSS)
    torch.testing.assert_close(act(x), variant(x[:, 0::2], x[:, 1::2], **GPT_OSS))
    assert repr(act) == "SwiGLU(alpha=1.702, limit=1.75, offset=1.0, interleaved=True)"
    with pytest.raises(ValueError, match=r"SwiGLU\(\): limit must be at least 0, got -1.0"):
        nn.SwiGLU(limit=-1)
