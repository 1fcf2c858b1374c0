"""The autograd Function: forward computes the gradients and saves them, backward multiplies them and returns them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch.autograd import Function
from torch.utils.weak import TensorWeakRef

from sigtorch import _eligible
from sigtorch._autograd import marker, saved, unseen_by_hooks, with_strides_of
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
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

P = ParamSpec("P")
T = TypeVar("T")


class Gradient(NamedTuple):
    """A gradient as forward saves it, for an incoming gradient of 1: values, of float16 in multiples of units, one a row."""

    values: Number = None  # None if no gradient is needed
    units: Number = None

    def times(self, factor: torch.Tensor) -> Number:
        """Returns the gradient for another incoming one, by operators that can be differentiated and transformed."""
        if self.values is None:
            return None
        factor = factor.to(self.values.device)
        return self.values * (factor if self.units is None else self.units * factor)

    def times_plain(self, factor: torch.Tensor, in_place: bool) -> Number:
        """Returns the same of plain tensors, in place or with no wide copy of the values."""
        if self.values is None:
            return None
        factor = factor.to(self.values.device)
        if self.units is None:
            return self.values.mul_(factor) if in_place else self.values * factor
        out = self.values if in_place else torch.empty_like(self.values)
        return multiply_in_units(self.values, self.units, factor, out)


class Result(NamedTuple):
    """The loss, and its gradients in the order of the operands."""

    loss: torch.Tensor
    gradients: Sequence[Gradient]
    any_needs_grad: bool = True  # any process of a group, if this one does not


Compute = Callable[[Needs, Operands], Result]


def breaks_graphs(needs_break: Callable[..., bool]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a loss that torch.compile must not look into if its arguments need a break of the graph."""

    def decorate(loss: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(loss)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            # The flag: Dynamo in torch 2.8 takes is_exporting() to be true always.
            if needs_break(*args, **kwargs) and _dynamo_looks() and not torch.compiler._is_exporting_flag:
                return torch._dynamo.disable(loss)(*args, **kwargs)  # type: ignore[no-any-return]
            return loss(*args, **kwargs)

        return called

    return decorate


def _dynamo_looks() -> bool:
    """Tells whether Dynamo traces this call, or may try each function that it calls, having given up on this one."""
    return torch.compiler.is_dynamo_compiling() or "torch._dynamo" in sys.modules


def needs_of(operands: Operands) -> Needs:
    """Tells which operands need a gradient."""
    recorded = torch.is_grad_enabled()
    return Needs(*(recorded and t is not None and t.requires_grad for t in operands))


def loss_of(op: str, group: ProcessGroup | None, compute: Compute, operands: Operands) -> torch.Tensor:
    """Computes the loss of plain tensors."""
    needs = needs_of(operands)
    # In a group backward is called, and looks at the others' gradient, also where only another process needs one.
    joins = group is not None and torch.is_grad_enabled() and not any(needs)
    joint = torch.empty((), requires_grad=True) if joins else None
    return ChunkedLoss.apply(op, group, compute, needs, joint, *operands)  # type: ignore[no-any-return]


def loss_and_gradients(work: Work, tile: Tile, needs: Needs, operands: Operands) -> Result:
    """Returns the loss and the gradients that are needed."""
    rows, cols, scale, bias = operands
    if scale is not None:
        scale = scale.reshape(()).to(rows.device, work.wide)
    if bias is not None:
        bias = bias.reshape(() if bias.numel() == 1 else -1).to(rows.device, work.wide)
    with unrounded(rows):
        # In a group, another process may need the gradient of its cols.
        sums = Sums(work, tile, needs._replace(cols=needs.cols or work.any_wants_cols_grad), rows, scale, bias)
        grad_cols = sums.add(cols) if work.group is None else ring.around(work.group, sums, cols)
    loss, grad_scale = sums.totals()
    if work.shares is not None:
        loss, grad_cols = work.shares.summed(loss, grad_cols)
    grad_scale = None if grad_scale is None else grad_scale / work.divisor
    grad_bias = None if sums.grad_bias is None else sums.grad_bias.div_(work.divisor)
    if grad_bias is not None and bias is not None and not bias.dim():
        grad_bias = grad_bias.sum()
    found = (sums.grad_rows, grad_cols, grad_scale, grad_bias)
    gradients = [
        _as_saved(sums.steps, t, g, units) if needed and g is not None and t is not None else Gradient()
        for t, g, units, needed in zip(operands, found, (sums.row_units, None, None, None), needs, strict=True)
    ]
    return Result((loss / work.divisor).to(work.dtype), gradients, work.any_needs_grad)


def saved_dtype(t: torch.Tensor) -> torch.dtype:
    """Returns the dtype in which the gradient of t is saved: a scalar or a bias of float16 is rounded by backward."""
    return torch.float32 if t.dtype == torch.float16 and not has_units(t) else t.dtype


def _as_saved(steps: ModuleType, t: torch.Tensor, grad: torch.Tensor, units: Number) -> Gradient:
    """Returns the gradient of t, with t's strides."""
    grad = grad.reshape(t.shape).to(t.device)
    if has_units(t) and units is None:
        wide, grad = grad, torch.empty_like(t)
        units = wide.new_empty(len(t), 1)
        steps.write_in_units(wide, grad, units)
    return Gradient(with_strides_of(t, grad.to(saved_dtype(t))), units)


class ChunkedLoss(Function):
    """Saves its gradients; and its inputs, so that changing them in place or differentiating twice is an error."""

    @staticmethod
    def forward(ctx: Any, op: str, group: Any, compute: Compute, needs: Needs, _: Number, *given: Any) -> torch.Tensor:
        loss, gradients, any_needs_grad = compute(needs, Operands(*given))
        if not any_needs_grad:
            ctx.mark_non_differentiable(loss)
        if not any(needs):
            given = (None,) * len(given)  # backward returns no gradient of them
        ctx.op, ctx.group = op, group  # not compute: its targets would live as long as the loss
        values, units = [g.values for g in gradients], [g.units for g in gradients]
        ctx.save_for_backward(marker(op), *given, *values, *units)
        unseen = unseen_by_hooks()
        ctx.made_here = [TensorWeakRef(t) if t is not None and unseen else None for t in values]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.made_here is None:
            raise checks.error_taken(ctx.op)
        tensors = saved(ctx, ctx.op)
        count = len(Operands._fields)
        given, values, units = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        if ctx.group is not None:
            ring.check_same_gradient(ctx.op, ctx.group, grad)
        if torch.is_grad_enabled():  # these may be differentiated
            values = NotTwice.apply(ctx.op, *given, *values)
        gradients = [Gradient(*each) for each in zip(values, units, strict=True)]
        if torch.is_grad_enabled() or not _eligible.plain(grad):
            found = [g.times(grad) for g in gradients]
        else:
            found = _multiplied(ctx, gradients, grad)
        return *[None] * 5, *(g if g is None else g.to(t.dtype) for g, t in zip(found, given, strict=True))


def _multiplied(ctx: Any, gradients: Sequence[Gradient], grad: torch.Tensor) -> list[Number]:
    """Multiplies the gradients by the incoming one, in place unless the graph or a hook keeps them."""
    freed = not torch._C._autograd._get_current_graph_task_keep_graph()
    in_place = [
        freed and made is not None and made() is g.values for made, g in zip(ctx.made_here, gradients, strict=True)
    ]
    if any(in_place):
        ctx.made_here = None  # if backward fails before the graph is freed, these are spent
    return [g.times_plain(grad, here) for g, here in zip(gradients, in_place, strict=True)]


class NotTwice(Function):
    """Passes gradients on, which cannot be differentiated: that is an error."""

    generate_vmap_rule = True  # for a batched incoming gradient

    @staticmethod
    def forward(op: str, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return tuple(t if t is None else t.view_as(t) for t in tensors[-len(Operands._fields) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op, *_ = inputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise checks.error_twice(ctx.op)
