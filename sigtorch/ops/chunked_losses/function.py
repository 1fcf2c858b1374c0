"""The autograd Function: forward computes the gradients and saves them, backward multiplies them and returns them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import Function
from torch.utils.weak import TensorWeakRef

from sigtorch import _eligible
from sigtorch._autograd import marker, saved, with_strides_of
from sigtorch.ops.chunked_losses import checks, ring
from sigtorch.ops.chunked_losses.products import (
    Needs,
    Number,
    Operands,
    Sums,
    Tile,
    Work,
    has_units,
    multiply_in_units,
    unrounded,
    write_in_units,
)

Grads = list[Number]
P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(loss: Callable[P, T]) -> Callable[P, T]:
    """Decorates a loss that torch.compile must not look into: a compiled formula would hold all logits."""

    @functools.wraps(loss)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        # The flag: Dynamo in torch 2.8 takes is_exporting() to be true always.
        if torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag:
            return torch._dynamo.disable(loss)(*args, **kwargs)  # type: ignore[no-any-return]
        return loss(*args, **kwargs)

    return called


def loss_of(work: Work, tile: Tile, operands: Operands) -> torch.Tensor:
    """Computes the loss of plain tensors."""
    recorded = torch.is_grad_enabled()
    needs = Needs(*(recorded and t is not None and t.requires_grad for t in operands))
    return ChunkedLoss.apply(work, tile, needs, *operands)  # type: ignore[no-any-return]


def loss_and_grads(work: Work, tile: Tile, needs: Needs, operands: Operands) -> tuple[torch.Tensor, Grads, Grads]:
    """Returns the loss, its gradients for an incoming gradient of 1, and the units of those that have them.

    A gradient that is not needed is None.
    """
    rows, cols, scale, bias = operands
    if scale is not None:
        scale = scale.reshape(()).to(rows.device, work.wide)
    if bias is not None:
        bias = bias.reshape(() if bias.numel() == 1 else -1).to(rows.device, work.wide)
    with unrounded(rows):
        # In a group, another process may need the gradient of its cols.
        sums = Sums(work, tile, needs._replace(cols=needs.cols or work.any_wants_cols_grad), rows, scale, bias)
        grad_cols = sums.add(cols, work.find) if work.group is None else ring.around(work.group, sums, cols)
    grad_scale = None if sums.grad_scale is None else sums.grad_scale / work.divisor
    grad_bias = None if sums.grad_bias is None else sums.grad_bias.div_(work.divisor)
    if grad_bias is not None and bias is not None and not bias.dim():
        grad_bias = grad_bias.sum()
    found = (sums.grad_rows, grad_cols, grad_scale, grad_bias)
    kept = [
        _kept(t, g, units) if needed and g is not None and t is not None else (None, None)
        for t, g, units, needed in zip(operands, found, (sums.row_units, None, None, None), needs, strict=True)
    ]
    grads, units = (list(each) for each in zip(*kept, strict=True))
    return (sums.loss / work.divisor).to(work.dtype), grads, units


def _kept(t: torch.Tensor, grad: torch.Tensor, units: Number) -> tuple[torch.Tensor, Number]:
    """Returns the gradient of t as it is saved, with t's strides, and its units."""
    grad = grad.reshape(t.shape).to(t.device)
    if has_units(t) and units is None:
        wide, grad = grad, torch.empty_like(t)
        units = wide.new_empty(len(t), 1)
        write_in_units(wide, grad, units)
    elif t.dtype != torch.float16:  # else a scalar or a bias: backward rounds it
        grad = grad.to(t.dtype)
    return with_strides_of(t, grad), units


class ChunkedLoss(Function):
    """Saves its gradients; and its inputs, so that changing them in place or differentiating twice is an error."""

    @staticmethod
    def forward(ctx: Any, work: Work, tile: Tile, needs: Needs, *given: Any) -> torch.Tensor:
        loss, grads, units = loss_and_grads(work, tile, needs, Operands(*given))
        ctx.op, ctx.group = work.op, work.group  # not the work: its targets would live as long as the loss
        ctx.save_for_backward(marker(work.op), *given, *grads, *units)
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ctx.own = [None if g is None or hooked else TensorWeakRef(g) for g in grads]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.own is None:
            raise checks.error_taken(ctx.op)
        tensors = saved(ctx, ctx.op)
        count = len(Needs._fields)
        given, kept, units = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        scaled: Grads
        if ctx.group is not None:
            ring.check_same_gradient(ctx.op, ctx.group, grad)
        if torch.is_grad_enabled():  # these may be differentiated
            kept = NotTwice.apply(ctx.op, *given, *kept)
            factors = [grad if unit is None else unit * grad.to(unit.device) for unit in units]
            scaled = [g if g is None else g * factor.to(g.device) for g, factor in zip(kept, factors, strict=True)]
        else:
            scaled = _scaled(ctx, kept, units, grad)
        return None, None, None, *(g if g is None else g.to(t.dtype) for g, t in zip(scaled, given, strict=True))


def _scaled(ctx: Any, kept: Sequence[Number], units: Sequence[Number], grad: torch.Tensor) -> Grads:
    """Multiplies the gradients by the incoming one, in place unless the graph or a hook keeps them."""
    plain = _eligible.plain(grad)
    in_place = not torch._C._autograd._get_current_graph_task_keep_graph() and plain
    own = [in_place and ref is not None and ref() is g for ref, g in zip(ctx.own, kept, strict=True)]
    if any(own):
        ctx.own = None  # if backward fails before the graph is freed, these are spent
    scaled: Grads = []
    for g, unit, mine in zip(kept, units, own, strict=True):
        if g is None:
            scaled.append(None)
            continue
        factor = grad.to(g.device)
        if unit is None:
            scaled.append(g.mul_(factor) if mine else g * factor)
        elif plain:
            scaled.append(multiply_in_units(g, unit, factor, g if mine else torch.empty_like(g)))
        else:
            scaled.append(g * (unit * factor))
    return scaled


class NotTwice(Function):
    """Passes gradients on, which cannot be differentiated: that is an error."""

    generate_vmap_rule = True  # for a batched incoming gradient

    @staticmethod
    def forward(op: str, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return tuple(t if t is None else t.view_as(t) for t in tensors[-len(Needs._fields) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise checks.error_twice(ctx.op)
