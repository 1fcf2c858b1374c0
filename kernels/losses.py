"""The losses' passes: forward reads each logit and target once, backward once more and writes the gradient."""

from __future__ import annotations

import functools
from typing import Any

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._launch import HALF_A_TILE, exact
from sigtorch.kernels._layout import Operand, axes_of, reachable
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import reduce

# An int 1, not 1.0, stands for what nobody asked for: Triton compiles it as a constant, and drops the multiplication.
NAMES = {"binary_cross_entropy_with_logits": "bce", "sigmoid_focal_loss": "focal"}


def loss_forward(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand, normalizer: Operand
) -> torch.Tensor:
    x, divisor = _readable(loss, x, target), _divisor(loss, x, normalizer)
    fn, operands = _function(loss.name, target.dtype), _operands(loss, x, target, weight, pos_weight)
    if loss.reduction != "none":
        return reduce(fn, (1, *operands), x, divisor, loss.dtype)
    out = _like(loss, x, target, loss.dtype)
    launch_map(fn, exact((divisor, *operands), x), (out,), HALF_A_TILE)
    return out


def loss_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand,
    pos_weight: Operand,
    normalizer: Operand,
) -> torch.Tensor:
    grad_x = _like(loss, x, target, x.dtype)
    operands = _operands(loss, x, target, weight, pos_weight)
    fn = _function(loss.name, target.dtype, "d")
    launch_map(fn, exact((grad, _divisor(loss, x, normalizer), *operands), x), (grad_x,), HALF_A_TILE)
    return grad_x


@functools.cache
def _function(name: str, target: torch.dtype, derivative: str = "") -> Any:
    """The scalar function of a loss for this kind of target."""
    kind = {torch.int64: "_of_class", torch.uint8: "_of_mask"}.get(target, "")
    return getattr(_math, derivative + NAMES[name] + kind)


def _operands(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand
) -> tuple[Operand, ...]:
    """What a scalar function takes of the loss; a class index comes with the column it is compared to."""
    if loss.name == "sigmoid_focal_loss":
        pos, neg = (1, 1) if loss.alpha < 0 else (loss.alpha, 1 - loss.alpha)
        sign = {0.0: 1, 1.0: -1.0}.get(loss.gamma % 2, float("nan"))
        rest: tuple[Operand, ...] = (pos, neg, loss.gamma, sign)
    else:
        rest = (1 if pos_weight is None else pos_weight, 1 - loss.label_smoothing if loss.label_smoothing else 1)
    weight = 1 if weight is None else weight
    if loss.indexed(target):
        # Contiguous, as x or the output is, so that the innermost axis is the classes'.
        index = target.contiguous().unsqueeze(-1)
        return x, index, None, float(loss.background_index), float(x.shape[-1]), weight, *rest
    return x, target.view(torch.uint8) if target.dtype == torch.bool else target, weight, *rest


def _readable(loss: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Gives x itself, or a contiguous copy where its strides cannot lead a reduction, which has no output to do that."""
    if loss.reduction == "none" or x.is_contiguous() or (not loss.indexed(target) and reachable(axes_of((x, x), x))):
        return x
    return x.contiguous()


def _divisor(loss: Any, x: torch.Tensor, normalizer: Operand) -> Operand:
    """One number or 0-d tensor."""
    if loss.reduction == "mean":
        return float(x.numel())
    return (loss.normalizer or 1) if normalizer is None else normalizer


def _like(loss: Any, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    layout = torch.contiguous_format if loss.indexed(target) else torch.preserve_format
    return torch.empty_like(x, dtype=dtype, memory_format=layout)
