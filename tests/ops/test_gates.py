"""Tests of the gates alone: shapes that no kernel takes, and modules."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.cases import Case, check, gate, lerp, swiglu

import sigtorch
from sigtorch import nn


def gate_residual(x, g, residual):
    return gate(x, g) + residual


def column(shape):
    return (*shape[:-1], 1)


summing = partial(Case, cancels=True)
BROADCAST = [
    summing("gate, one for a column", sigtorch.sigmoid_gate, gate, lambda s: (column(s), (1,))),
    summing("gate, larger than x", sigtorch.sigmoid_gate, gate, lambda s: (column(s), s)),
    summing("residual, a column", sigtorch.sigmoid_gate, gate_residual, lambda s: (s, s, column(s))),
    summing("residual, larger than x", sigtorch.sigmoid_gate, gate_residual, lambda s: (column(s), column(s), s)),
    summing("lerp, a gate a row", sigtorch.sigmoid_lerp, lerp, lambda s: (s, s, column(s))),
    summing("lerp, a larger gate", sigtorch.sigmoid_lerp, lerp, lambda s: (column(s), column(s), s)),
    summing("lerp, one x", sigtorch.sigmoid_lerp, lerp, lambda s: ((1,), s, s)),
    summing("swiglu, an up a row", sigtorch.swiglu, swiglu, lambda s: (s, column(s))),
    summing("swiglu, a gate a row", sigtorch.swiglu, swiglu, lambda s: (column(s), s)),
]


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("case", BROADCAST, ids=lambda c: c.name)
def test_what_else_broadcasts_is_pytorchs(case, backend, device):
    check(case, case.inputs((4, 6), torch.float32, device), backend=backend)


def test_modules_are_their_functions():
    x, g, residual = torch.randn(3, 4, 6).unbind()
    for dim in (0, 1, -1):
        torch.testing.assert_close(nn.GLU(dim)(x), F.glu(x, dim))
    torch.testing.assert_close(nn.SigmoidGate()(x, g), gate(x, g))
    torch.testing.assert_close(nn.SigmoidGate()(x, g, residual), gate(x, g) + residual)
    torch.testing.assert_close(nn.SwiGLU()(x, g), swiglu(x, g))
    torch.testing.assert_close(nn.SwiGLU()(x), swiglu(*x.chunk(2, -1)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_is_llamas(bias):
    mlp, x = nn.GatedMLP(6, 8, bias), torch.randn(4, 6)
    parts = [getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    assert [tuple(part.weight.shape) for part in parts] == [(8, 6), (8, 6), (6, 8)]
    assert [part.bias is not None for part in parts] == [bias] * 3
    gate_proj, up_proj, down_proj = parts
    torch.testing.assert_close(mlp(x), down_proj(F.silu(gate_proj(x)) * up_proj(x)))
