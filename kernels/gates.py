"""Forward and backward passes of the gates. Views are read in place, and backward computes the sigmoid again.

Halves of a packed tensor come from ``unsafe_chunk``: autograd does not track its views, which makes them cheaper.
"""

from __future__ import annotations

from typing import Any

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._layout import WARPS
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_map_and_sum

LERP_WARPS = 2 * WARPS  # three tensors or more: with more elements per thread, some compilers spill


def _result(*inputs: torch.Tensor) -> torch.Tensor:
    """Returns an empty tensor of the shape and dtype to which all inputs broadcast and promote.

    It has the strides of the first input of that shape; if there is none, it is contiguous.
    """
    first, *others = inputs
    dtype, shape = first.dtype, first.shape
    for t in others:
        if t.dtype != dtype:
            dtype = torch.promote_types(dtype, t.dtype)
        if t.shape != shape:
            shape = _broadcast(shape, t.shape)
    if shape != first.shape:
        lead = next((t for t in others if t.shape == shape), None)
        return first.new_empty(shape, dtype=dtype) if lead is None else torch.empty_like(lead, dtype=dtype)
    return (
        torch.empty_like(first) if dtype is first.dtype else torch.empty_like(first, dtype=dtype)
    )  # omitting is faster


def _broadcast(shape: torch.Size, other: torch.Size) -> torch.Size:
    """Returns the shape to which these two broadcast; torch.broadcast_shapes takes ten times as long."""
    if len(shape) < len(other):
        shape, other = other, shape
    ahead = len(shape) - len(other)
    return torch.Size((*shape[:ahead], *[m if n == 1 else n for n, m in zip(shape[ahead:], other, strict=True)]))


def _grads(
    fn: Any, grad: torch.Tensor, inputs: tuple[torch.Tensor, ...], warps: int = WARPS
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of inputs by fn, which takes the incoming one first; those of broadcast inputs are summed.

    A launch writes the gradients that have grad's shape and sums one of the others; each further one takes a launch more.
    """
    for t in inputs:
        if t.shape != grad.shape:
            break
    else:  # the usual case, without what broadcasts cost the host
        first = torch.empty_like(inputs[0])
        grads = first, *[torch.empty_like(first, dtype=t.dtype) for t in inputs[1:]]
        launch_map(fn, (grad, *inputs), grads, warps=warps)
        return grads
    if not grad.numel():
        return tuple(torch.zeros_like(t) for t in inputs)
    whole = tuple(i for i, t in enumerate(inputs) if t.numel() == grad.numel())
    summed = [i for i in range(len(inputs)) if i not in whole]
    lead = inputs[whole[0]].expand(grad.shape) if whole else grad
    written = tuple(torch.empty_like(lead, dtype=inputs[i].dtype) for i in whole)
    found = {i: t.view(inputs[i].shape) for i, t in zip(whole, written, strict=True)}
    if not summed:
        launch_map(fn, (grad, *inputs), written, warps=warps)
    elif not whole and not torch.ops.aten.is_non_overlapping_and_dense(grad):
        grad = grad.contiguous()  # leads the kernels, which have no output of its shape
    for i in summed:
        sums = launch_map_and_sum(fn, (grad, *inputs), written, inputs[i], (*whole, i), warps=warps)
        found[i] = _with_strides_of(inputs[i], sums)
        whole, written = (), ()
    return tuple(found[i] for i in range(len(inputs)))


def _with_strides_of(t: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of t with the strides of ``torch.empty_like(t)``, copied if it has others."""
    if sums.stride() == t.stride() or (sums.is_contiguous() and t.is_contiguous()):
        return sums
    grad = torch.empty_like(t)
    return sums if grad.stride() == sums.stride() else grad.copy_(sums)


def sigmoid_gate_forward(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    if residual is None:
        out = _result(x, gate)
        launch_map(_math.sigmoid_gate, (x, gate), (out,))
    else:
        out = _result(x, gate, residual)
        launch_map(_math.sigmoid_gate_residual, (x, gate, residual), (out,))
    return out


def sigmoid_gate_backward(grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of x and gate."""
    return _grads(_math.dsigmoid_gate, grad, (x, gate))


def sigmoid_lerp_forward(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    out = _result(x, y, gate)
    launch_map(_math.sigmoid_lerp, (x, y, gate), (out,), warps=LERP_WARPS)
    return out


def sigmoid_lerp_backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of x, y and gate."""
    return _grads(_math.dsigmoid_lerp, grad, (x, y, gate), LERP_WARPS)


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


def swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of gate and up."""
    return _grads(_math.dswiglu, grad, (gate, up))


def swiglu_packed_forward(x: torch.Tensor) -> torch.Tensor:
    return swiglu_forward(*x.unsafe_chunk(2, -1))


def swiglu_packed_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    grad_x = torch.empty_like(x)
    launch_map(_math.dswiglu, (grad, *x.unsafe_chunk(2, -1)), grad_x.unsafe_chunk(2, -1))
    return (grad_x,)
