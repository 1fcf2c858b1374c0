"""Forward and backward passes of the gates. Views are read in place, and backward computes the sigmoid again.

Halves of a packed tensor come from ``unsafe_chunk``: autograd does not track its views, which makes them cheaper.
"""

from __future__ import annotations

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._layout import WARPS
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_map_and_sum

LERP_WARPS = 2 * WARPS  # three tensors or more: with more elements per thread, some compilers spill


def _result(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Returns an empty tensor with the strides of x, and the dtype to which all promote."""
    dtype = first = x.dtype
    for t in others:
        if t.dtype != dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    return torch.empty_like(x) if dtype is first else torch.empty_like(x, dtype=dtype)  # omitting dtype is faster


def sigmoid_gate_forward(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    if residual is None:
        out = _result(x, gate)
        launch_map(_math.sigmoid_gate, (x, gate), (out,))
    else:
        out = _result(x, gate, residual)
        launch_map(_math.sigmoid_gate_residual, (x, gate, residual), (out,))
    return out


def sigmoid_gate_backward(grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of x and gate; that of a broadcast gate is summed in the same pass."""
    grad_x = torch.empty_like(x)
    if gate.shape == x.shape:
        grad_gate = torch.empty_like(grad_x, dtype=gate.dtype)
        launch_map(_math.dsigmoid_gate, (grad, x, gate), (grad_x, grad_gate))
        return grad_x, grad_gate
    if x.numel():
        summed = launch_map_and_sum(_math.dsigmoid_gate, (grad, x, gate), (grad_x,))
        if summed is not None:
            return grad_x, _with_strides_of(gate, summed)
    wide = torch.empty_like(grad_x, dtype=torch.promote_types(gate.dtype, torch.float32))  # the addends
    launch_map(_math.dsigmoid_gate, (grad, x, gate), (grad_x, wide))
    return grad_x, _with_strides_of(gate, wide.sum_to_size(gate.shape).to(gate.dtype))


def _with_strides_of(gate: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Returns the gradient with the gate's strides; a sum is contiguous."""
    return grad if gate.is_contiguous() else torch.empty_like(gate).copy_(grad)


def sigmoid_lerp_forward(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    out = _result(x, y, gate)
    launch_map(_math.sigmoid_lerp, (x, y, gate), (out,), warps=LERP_WARPS)
    return out


def sigmoid_lerp_backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    grad_x = torch.empty_like(x)
    grads = (grad_x, torch.empty_like(grad_x, dtype=y.dtype), torch.empty_like(grad_x, dtype=gate.dtype))
    launch_map(_math.dsigmoid_lerp, (grad, x, y, gate), grads, warps=LERP_WARPS)
    return grads


def glu_forward(x: torch.Tensor, dim: int) -> torch.Tensor:
    value, gate = x.unsafe_chunk(2, dim)
    return sigmoid_gate_forward(value, gate)


def glu_backward(grad: torch.Tensor, x: torch.Tensor, dim: int) -> tuple[torch.Tensor]:
    grad_x = torch.empty_like(x)
    launch_map(_math.dsigmoid_gate, (grad, *x.unsafe_chunk(2, dim)), grad_x.unsafe_chunk(2, dim))
    return (grad_x,)


def swiglu_forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    out = _result(gate, up)
    launch_map(_math.swiglu, (gate, up), (out,))
    return out


def swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grad_gate = torch.empty_like(gate)
    grad_up = torch.empty_like(grad_gate, dtype=up.dtype)
    launch_map(_math.dswiglu, (grad, gate, up), (grad_gate, grad_up))
    return grad_gate, grad_up


def swiglu_packed_forward(x: torch.Tensor) -> torch.Tensor:
    return swiglu_forward(*x.unsafe_chunk(2, -1))


def swiglu_packed_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    grad_x = torch.empty_like(x)
    launch_map(_math.dswiglu, (grad, *x.unsafe_chunk(2, -1)), grad_x.unsafe_chunk(2, -1))
    return (grad_x,)
