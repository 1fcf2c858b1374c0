"""The gradient that forward computes beside a summed loss: kept for backward, which multiplies it by the incoming scalar.

The first backward pass writes into it and returns it. A later one computes it again. Saved-tensor hooks and dispatch modes may
keep a gradient that they see: backward copies such a one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sigtorch import _eligible
from sigtorch._autograd import unseen_by_hooks
from sigtorch.ops.losses.loss import Factors, Loss


class Implementation(NamedTuple):
    """The passes of a loss, as kernels or as operators."""

    forward: Callable[..., Any]  # returns the loss, its gradient or None, and the count or the normalizer
    backward: Callable[..., torch.Tensor]  # without a gradient from forward
    scale: Callable[..., None]  # with one, in place


UNSEEN = "_sigtorch_unseen"  # an attribute of a gradient that nothing but its graph has seen


def is_wanted(loss: Loss, x: torch.Tensor) -> bool:
    """Tells whether forward computes the gradient of x.

    In float16 it does not: a mean's small gradients would be lost before the scale of a loss saves them. Two passes read and
    write no more there than one that keeps them in a unit of its own, and multiplies by it.
    """
    return loss.reduction != "none" and x.dtype != torch.float16 and x.requires_grad and torch.is_grad_enabled()


def keep(ctx: Any, gradient: torch.Tensor | None) -> None:
    """Notes on ctx, and on a gradient that it saves, whether backward may write into it."""
    ctx.is_unseen = gradient is not None and not _eligible.observed() and unseen_by_hooks()
    if ctx.is_unseen:
        setattr(gradient, UNSEEN, True)


class Saved(NamedTuple):
    """The tensors that forward saved."""

    x: torch.Tensor
    target: torch.Tensor
    factors: Factors  # with the count as the normalizer, if the loss counts
    gradient: torch.Tensor


def scaled(ctx: Any, run: Implementation, grad: torch.Tensor, saved: Saved) -> torch.Tensor:
    """Returns the saved gradient times the incoming one: in place, or the second time an equal tensor, to the last bit."""
    loss, (x, target, factors, gradient), count = ctx.loss, saved, None
    if loss.counts:
        count, factors = factors.normalizer, factors._replace(normalizer=None)
    if torch.compiler.is_compiling():  # it fuses the product with what follows, and would copy what is written to
        factor = grad if count is None else grad / count
        return (gradient.to(loss.wide(x)) * factor).to(x.dtype)
    is_first = vars(gradient).pop(UNSEEN, False)  # of two threads, one
    if ctx.is_unseen and not is_first:
        gradient = run.forward(loss, x, target, *factors).gradient
    elif is_first and not (grad.is_cuda and torch.cuda.is_current_stream_capturing()):
        gradient = gradient.data  # with a version of its own: a caller may write into it, and run backward again
    else:  # a captured graph may run backward again without forward
        gradient = gradient.clone()
    run.scale(gradient, grad, count)
    return gradient
