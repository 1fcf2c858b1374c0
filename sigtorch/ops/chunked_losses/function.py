"""The autograd Function: gradients are computed in forward, handed out by the first backward, computed anew by others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import Function

from sigtorch import _backend
from sigtorch._autograd import marker, saved
from sigtorch.ops.chunked_losses import checks, ring
from sigtorch.ops.chunked_losses.products import Needs, Sums, Work, unrounded

Grads = list[torch.Tensor | None]
P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(loss: Callable[P, T]) -> Callable[P, T]:
    """The loss, which torch.compile does not look into: a compiled formula would hold all logits."""

    @functools.wraps(loss)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        # The flag, for Dynamo in torch 2.8 takes is_exporting() for true whatever it traces for.
        if torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag:
            return torch._dynamo.disable(loss)(*args, **kwargs)  # type: ignore[no-any-return]
        return loss(*args, **kwargs)

    return called


def loss_of(
    work: Work, rows: torch.Tensor, cols: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """The loss of plain tensors."""
    given = (rows, cols, scale, bias)
    recorded = torch.is_grad_enabled()
    needs = Needs(*(recorded and t is not None and t.requires_grad for t in given))
    return ChunkedLoss.apply(work, needs, *given)  # type: ignore[no-any-return]


def computed(
    work: Work,
    needs: Needs,
    rows: torch.Tensor,
    cols: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, Grads]:
    """The loss, and its gradients for an incoming one of 1, as they are kept; a None is not wanted."""
    given = (rows, cols, scale, bias)
    if scale is not None:
        scale = scale.reshape(()).to(rows.device, work.wide)
    if bias is not None:
        bias = bias.reshape(() if bias.numel() == 1 else -1).to(rows.device, work.wide)
    with unrounded(rows):
        if work.group is None:
            sums = Sums(work, needs, rows, scale, bias)
            grad_cols = sums.add(cols, work.find)
        else:
            sums, grad_cols = ring.around(work, needs, rows, cols, scale, bias)
    grad_scale = None if sums.grad_scale is None else sums.grad_scale / work.divisor
    grad_bias = None if sums.grad_bias is None else sums.grad_bias / work.divisor
    if grad_bias is not None and bias is not None and not bias.dim():
        grad_bias = grad_bias.sum()
    grads: Grads = [
        None if g is None or t is None else g.reshape(t.shape).to(t.device, work.kept(t))
        for g, t in zip((sums.grad_rows, grad_cols, grad_scale, grad_bias), given, strict=True)
    ]
    return (sums.loss / work.divisor).to(work.dtype), grads


class ChunkedLoss(Function):
    """Saves what it was given for those who differentiate again, and finds there what has changed since."""

    @staticmethod
    def forward(ctx: Any, work: Work, needs: Needs, *given: torch.Tensor | None) -> torch.Tensor:
        ctx.work, ctx.needs = work, needs
        ctx.save_for_backward(marker(work.op), *given, *work.held)
        loss, ctx.grads = computed(work, needs, *given)  # type: ignore[arg-type]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        work, grads, ctx.grads = ctx.work, ctx.grads, None
        given = saved(ctx, work.op)[: len(ctx.needs)]
        if work.group is not None:
            ring.same_gradient(work, grad)
        in_place = _backend.plain(grad)  # else a batched one, say, which makes a batch of each
        with torch.no_grad():
            if grads is None:
                grads = computed(work, ctx.needs, *given)[1]
            scaled = [g if g is None else g.mul_(grad) if in_place else g * grad for g in grads]
            scaled = [g if g is None else g.to(t.dtype) for g, t in zip(scaled, given, strict=True)]
        if torch.is_grad_enabled():  # somebody means to differentiate these, or may
            scaled = list(NotTwice.apply(work.op, grad, *given, *scaled))
        return None, None, *scaled


class NotTwice(Function):
    """Hands gradients on, and says that they have none."""

    @staticmethod
    def forward(ctx: Any, op: str, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        ctx.op = op
        return tensors[-len(Needs._fields) :]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise checks.twice(ctx.op)
