"""The gradient that forward computes beside a summed loss: kept for backward, which multiplies it by the incoming scalar.

Backward writes into it, once: a second pass computes it anew. A hook for saved tensors may keep what it sees, so backward
copies a gradient that a hook saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sigtorch.ops.losses.loss import Factors, Loss


class LossPasses(NamedTuple):
    """The passes of a loss, by what runs it."""

    forward: Callable[..., Any]  # returns the loss, its gradient or None, and the count or the normalizer
    backward: Callable[..., torch.Tensor]  # without a gradient from forward
    scale: Callable[..., None]  # with one, in place


UNSEEN = "_sigtorch_unseen"  # an attribute of a gradient that no hook has seen, and that backward has not returned


def is_wanted(loss: Loss, x: torch.Tensor) -> bool:
    """Tells whether forward computes the gradient of x.

    In float16 it does not: a mean's small gradients would be lost before the scale of a loss saves them. Two passes read and
    write no more there than one that keeps them in a unit of its own, and multiplies by it.
    """
    return loss.reduction != "none" and x.dtype != torch.float16 and x.requires_grad and torch.is_grad_enabled()


def keep(ctx: Any, gradient: torch.Tensor | None) -> None:
    """Notes on ctx that forward saves its gradient."""
    ctx.is_spent = False
    if gradient is not None and torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        setattr(gradient, UNSEEN, True)


class Saved(NamedTuple):
    """What forward saved."""

    x: torch.Tensor
    target: torch.Tensor
    factors: Factors  # with the count as the normalizer, if the loss counts
    gradient: torch.Tensor


def scaled(ctx: Any, passes: LossPasses, grad: torch.Tensor, saved: Saved) -> torch.Tensor:
    """Returns the saved gradient times the incoming one: in place, or the second time an equal tensor, to the last bit."""
    loss, (x, target, factors, gradient), count = ctx.loss, saved, None
    if loss.counts:
        count, factors = factors.normalizer, factors._replace(normalizer=None)
    if torch.compiler.is_compiling():  # it fuses the product with what follows, and would copy what is written to
        factor = grad if count is None else grad / count
        return (gradient.to(loss.wide(x)) * factor).to(x.dtype)
    if ctx.is_spent:
        gradient = passes.forward(loss, x, target, *factors).gradient
    elif vars(gradient).pop(UNSEEN, False):
        ctx.is_spent = True
        gradient = gradient.data  # writes by others are no writes to what ctx saved, which a second pass does not read
    else:
        gradient = gradient.clone()
    passes.scale(gradient, grad, count)
    return gradient
