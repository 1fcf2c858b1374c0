"""What each operation means, in PyTorch's own operators, differentiable in every way that PyTorch knows.

They run wherever a fused pass does not: on other devices and subclasses, compiled, traced, transformed, differentiated twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

HALF_DTYPES = (torch.float16, torch.bfloat16)


def sigmoid_from_input(x: torch.Tensor) -> torch.Tensor:
    """exp(-softplus(-x)): its gradient is that times sigmoid(-x), where nothing cancels.

    PyTorch's own threshold of 20 would cost float64 its last digits.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout != torch.strided or x.is_nested:
        return torch.sigmoid(x)
    wide = x.float() if x.dtype in HALF_DTYPES else x
    return torch.exp(-F.softplus(-wide, threshold=50)).to(x.dtype)


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    gated = torch.sigmoid(gate) * x
    return gated if residual is None else gated + residual


def sigmoid_lerp(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(gate)
    return s * x + (1 - s) * y


def glu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return F.glu(x, dim)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def swiglu_packed(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up
