"""The autograd Function: gradients are computed in forward, kept as saved tensors are, and handed out by backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import Function
from torch.utils.weak import TensorWeakRef

from sigtorch import _backend
from sigtorch._autograd import marker, saved, with_strides_of
from sigtorch.ops.chunked_losses import checks, ring
from sigtorch.ops.chunked_losses.products import Needs, Sums, Tile, Work, unrounded

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
    work: Work,
    tile: Tile,
    rows: torch.Tensor,
    cols: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The loss of plain tensors."""
    given = (rows, cols, scale, bias)
    recorded = torch.is_grad_enabled()
    needs = Needs(*(recorded and t is not None and t.requires_grad for t in given))
    return ChunkedLoss.apply(work, tile, needs, *given)  # type: ignore[no-any-return]


def computed(
    work: Work,
    tile: Tile,
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
        # In a group others may want what this process has to say of their cols.
        sums = Sums(work, tile, needs._replace(cols=needs.cols or work.wanted), rows, scale, bias)
        grad_cols = sums.add(cols, work.find) if work.group is None else ring.around(sums, cols)
    grad_scale = None if sums.grad_scale is None else sums.grad_scale / work.divisor
    grad_bias = None if sums.grad_bias is None else sums.grad_bias.div_(work.divisor)
    if grad_bias is not None and bias is not None and not bias.dim():
        grad_bias = grad_bias.sum()
    grads: Grads = [
        with_strides_of(t, g.reshape(t.shape).to(t.device, work.kept(t)))
        if wanted and g is not None and t is not None
        else None
        for g, t, wanted in zip((sums.grad_rows, grad_cols, grad_scale, grad_bias), given, needs, strict=True)
    ]
    return (sums.loss / work.divisor).to(work.dtype), grads


class ChunkedLoss(Function):
    """Saves its gradients, and its inputs: an error where these are changed in place, or differentiated twice."""

    @staticmethod
    def forward(ctx: Any, work: Work, tile: Tile, needs: Needs, *given: torch.Tensor | None) -> torch.Tensor:
        loss, grads = computed(work, tile, needs, *given)  # type: ignore[arg-type]
        ctx.op, ctx.group = work.op, work.group  # no more of the work, whose targets would live as long as the loss
        ctx.save_for_backward(marker(work.op), *given, *grads)
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ctx.own = [None if g is None or hooked else TensorWeakRef(g) for g in grads]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.own is None:
            raise checks.taken(ctx.op)
        tensors = saved(ctx, ctx.op)
        given, kept = tensors[: len(Needs._fields)], tensors[len(Needs._fields) :]
        scaled: Grads
        if ctx.group is not None:
            ring.same_gradient(ctx.op, ctx.group, grad)
        if torch.is_grad_enabled():  # somebody means to differentiate these, or may
            kept = NotTwice.apply(ctx.op, *given, *kept)
            scaled = [g if g is None else g * grad.to(g.device) for g in kept]
        else:
            scaled = _scaled(ctx, kept, grad)
        return None, None, None, *(g if g is None else g.to(t.dtype) for g, t in zip(scaled, given, strict=True))


def _scaled(ctx: Any, kept: Sequence[torch.Tensor | None], grad: torch.Tensor) -> Grads:
    """Multiplies gradients by the incoming one, in place where neither the graph nor a hook keeps them."""
    in_place = not torch._C._autograd._get_current_graph_task_keep_graph() and _backend.plain(grad)
    own = [in_place and ref is not None and ref() is g for ref, g in zip(ctx.own, kept, strict=True)]
    if any(own):
        ctx.own = None  # should backward fail before the graph is freed, these are gone
    return [
        g if g is None else g.mul_(grad.to(g.device)) if mine else g * grad.to(g.device)
        for g, mine in zip(kept, own, strict=True)
    ]


class NotTwice(Function):
    """Hands gradients on, and says that they have none."""

    generate_vmap_rule = True  # whoever batches the incoming gradient

    @staticmethod
    def forward(op: str, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return tuple(t if t is None else t.view_as(t) for t in tensors[-len(Needs._fields) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise checks.twice(ctx.op)
