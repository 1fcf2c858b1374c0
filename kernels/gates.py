"""Forward and backward passes of the gates. Views are read in place, and backward computes the sigmoid again.

Halves of a packed tensor come from ``unsafe_chunk``: autograd does not track its views, which makes them cheaper.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch._C import DispatchKey

from sigtorch.kernels import _math
from sigtorch.kernels._layout import PAIRS, WARPS, Operand, exact
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
        return first.new_empty(shape, dtype=dtype) if lead is None else _empty_like(lead, dtype)
    return _empty_like(first, dtype)


def _empty_like(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(t) if dtype is t.dtype else torch.empty_like(t, dtype=dtype)  # omitting it is faster


def _of_shape(t: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns t with dimensions of size 1 added or dropped in front."""
    return t if t.shape == shape else t.view(shape)


@functools.lru_cache(4096)
def _broadcast(shape: torch.Size, other: torch.Size) -> torch.Size:
    """Returns the shape to which these two broadcast; torch.broadcast_shapes takes ten times as long."""
    if len(shape) < len(other):
        shape, other = other, shape
    ahead = len(shape) - len(other)
    return torch.Size((*shape[:ahead], *[m if n == 1 else n for n, m in zip(shape[ahead:], other, strict=True)]))


def _grads(
    fn: Any,
    grad: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    numbers: tuple[Operand, ...] = (),
    warps: int = WARPS,
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of inputs by fn, which takes the incoming one before and numbers behind; sums broadcast ones.

    A launch writes the gradients that have grad's shape and sums one of the others; each further one takes a launch more.
    """
    for t in inputs:
        if t.shape != grad.shape:
            break
    else:  # the usual case, without what broadcasts cost the host
        first = torch.empty_like(inputs[0])
        grads = first, *[_empty_like(first, t.dtype) for t in inputs[1:]]
        launch_map(fn, (grad, *inputs, *numbers), grads, warps=warps)
        return grads
    if not grad.numel():
        return tuple(torch.zeros_like(t) for t in inputs)
    whole = tuple(i for i, t in enumerate(inputs) if t.numel() == grad.numel())
    summed = [i for i in range(len(inputs)) if i not in whole]
    lead = _of_shape(inputs[whole[0]], grad.shape) if whole else grad
    written = tuple([_empty_like(lead, inputs[i].dtype) for i in whole])
    found = {i: _of_shape(t, inputs[i].shape) for i, t in zip(whole, written, strict=True)}
    if not summed:
        launch_map(fn, (grad, *inputs, *numbers), written, warps=warps)
    elif not whole and not torch.ops.aten.is_non_overlapping_and_dense(grad):
        grad = grad.contiguous()  # leads the kernels, which have no output of its shape
    for i in summed:
        sums = launch_map_and_sum(fn, (grad, *inputs, *numbers), written, inputs[i], (*whole, i), warps=warps)
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
    return _grads(_math.dsigmoid_lerp, grad, (x, y, gate), warps=LERP_WARPS)


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


# SwiGLU with alpha, limit, offset and weight.


class Variant(NamedTuple):
    """The numbers of a SwiGLU, in the order of its operators' arguments."""

    alpha: float
    limit: float | None
    offset: float

    @property
    def forward(self) -> Any:
        """The scalar function of the forward pass."""
        return _math.swiglu_variant if self.limit is None else _math.swiglu_clamped

    @property
    def backward(self) -> Any:
        """The scalar function of the backward pass."""
        if self.limit is None:
            return _math.dswiglu_variant
        return _math.dswiglu_clamped if _clamp_passes_its_limit() else _math.dswiglu_clamped_from_limit

    def operands(self, like: torch.Tensor) -> tuple[Operand, ...]:
        """Returns the last operands of the scalar function; an alpha of 1 is compiled as a constant."""
        numbers: tuple[Operand, ...] = (1 if self.alpha == 1 else self.alpha, self.offset)
        return exact(numbers if self.limit is None else (*numbers, self.limit), like)


@functools.cache
def _clamp_passes_its_limit() -> bool:
    """Tells whether torch.clamp hands a gradient to a value at its limit, as before PyTorch 2.14."""
    guard = torch._C._SetExcludeDispatchKeyGuard(
        DispatchKey.AutogradFunctionality, False
    )  # an operator's body has none
    with torch.inference_mode(False), torch.enable_grad(), guard:
        x = torch.ones((), device="cpu", requires_grad=True)
        (grad,) = torch.autograd.grad(x.clamp(max=1.0), x)
    return bool(grad)


def swiglu_variant_forward(gate: torch.Tensor, up: torch.Tensor, *numbers: Any) -> torch.Tensor:
    return _variant_forward(_result(gate, up), (gate, up), 1, Variant(*numbers))


def swiglu_variant_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of gate and up."""
    variant = Variant(*numbers)
    return _grads(variant.backward, grad, (gate, up), (1, *variant.operands(grad)))


def swiglu_recompute(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of gate and up, tensors of one shape, and their product."""
    variant, first = Variant(*numbers), torch.empty_like(gate)
    outputs = first, torch.empty_like(first, dtype=up.dtype), torch.empty_like(first)
    inputs = (grad, gate, up, 1, *variant.operands(grad))
    launch_map(variant.backward, inputs, outputs, warps=LERP_WARPS, results=(0, 1, 3))
    return outputs


def swiglu_weighted_forward(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, *numbers: Any) -> torch.Tensor:
    return _variant_forward(_result(gate, up), (gate, up), weight, Variant(*numbers))


def swiglu_weighted_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of gate, up and weight."""
    variant = Variant(*numbers)
    return _grads(variant.backward, grad, (gate, up, weight), variant.operands(grad))


def swiglu_packed_variant_forward(x: torch.Tensor, interleaved: bool, *numbers: Any) -> torch.Tensor:
    halves = _halves(x, interleaved)
    return _variant_forward(torch.empty_like(halves[0]), _read(x, halves, interleaved), 1, Variant(*numbers))


def swiglu_packed_variant_backward(
    grad: torch.Tensor, x: torch.Tensor, interleaved: bool, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    return _packed_backward(grad, x, None, interleaved, Variant(*numbers))


def swiglu_packed_weighted_forward(
    x: torch.Tensor, weight: torch.Tensor, interleaved: bool, *numbers: Any
) -> torch.Tensor:
    halves = _halves(x, interleaved)
    return _variant_forward(torch.empty_like(halves[0]), _read(x, halves, interleaved), weight, Variant(*numbers))


def swiglu_packed_weighted_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, interleaved: bool, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    return _packed_backward(grad, x, weight, interleaved, Variant(*numbers))


def _variant_forward(
    out: torch.Tensor, inputs: tuple[torch.Tensor, ...], weight: Operand, variant: Variant
) -> torch.Tensor:
    launch_map(variant.forward, (*inputs, weight, *variant.operands(out)), (out,))
    return out


def _halves(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, ...]:
    return (x[..., 0::2], x[..., 1::2]) if interleaved else x.unsafe_chunk(2, -1)


def _read(x: torch.Tensor, halves: tuple[torch.Tensor, ...], interleaved: bool) -> tuple[torch.Tensor, ...]:
    """Returns the operands that gate and up are read from: pairs if they are interleaved, of a dtype that has such."""
    if not interleaved or x.dtype not in PAIRS or not x.numel():
        return halves
    return (_pairs(x) if _is_in_pairs(x) else _pairs(x.clone(memory_format=torch.contiguous_format)),)


def _is_in_pairs(x: torch.Tensor) -> bool:
    """Tells whether neighbours along the last dimension are one aligned number in memory."""
    *outer, inner = x.stride()
    even = all(stride % 2 == 0 for stride in (*outer, x.storage_offset()))
    return inner == 1 and even and x.data_ptr() % (2 * x.element_size()) == 0


def _pairs(x: torch.Tensor) -> torch.Tensor:
    return x.view(PAIRS[x.dtype])


def _packed_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, interleaved: bool, variant: Variant
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of x and, if there is one, of weight."""
    fn, numbers = variant.backward, variant.operands(grad)
    halves, grad_x = _halves(x, interleaved), torch.empty_like(x)
    in_place = not interleaved or (x.dtype in PAIRS and _is_in_pairs(grad_x))
    if not in_place or (weight is not None and (grad.shape[-1] < 2 or not grad.numel())):
        return _packed_from_halves(fn, grad, halves, grad_x, weight, interleaved, numbers)
    written = (_pairs(grad_x),) if interleaved else grad_x.unsafe_chunk(2, -1)
    read = _read(x, halves, interleaved)
    if weight is None:
        launch_map(fn, (grad, *read, 1, *numbers), written)
        return (grad_x,)
    results = (0, 2) if interleaved else (0, 1, 2)  # a pair is of the first two
    sums = launch_map_and_sum(fn, (grad, *read, weight, *numbers), written, weight, results)
    return grad_x, _with_strides_of(weight, sums)


def _packed_from_halves(
    fn: Any,
    grad: torch.Tensor,
    halves: tuple[torch.Tensor, ...],
    grad_x: torch.Tensor,
    weight: torch.Tensor | None,
    interleaved: bool,
    numbers: tuple[Operand, ...],
) -> tuple[torch.Tensor, ...]:
    """Returns the same, where no kernel writes them in place: of pairs that are no one number, or of no two columns to sum."""
    inputs, numbers = (halves, (1, *numbers)) if weight is None else ((*halves, weight), numbers)
    grad_gate, grad_up, *others = _grads(fn, grad, inputs, numbers)
    for half, found in zip(_halves(grad_x, interleaved), (grad_gate, grad_up), strict=True):
        half.copy_(found)
    return grad_x, *others
