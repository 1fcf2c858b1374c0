"""The losses' passes: forward reads each logit and target once, backward once more and writes the gradient."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._layout import INDEX, Operand, axes_of, exact, is_reachable
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_sum

# An int 1, not 1.0, stands for what nobody asked for: Triton compiles it as a constant, and drops the multiplication.
NAMES = {"binary_cross_entropy_with_logits": "bce", "sigmoid_focal_loss": "focal"}
SIGNS: dict[float, Operand] = {0.0: 1, 1.0: -1.0}  # of a negative number to the power of gamma, by gamma modulo 2


def loss_forward(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand, normalizer: Operand
) -> tuple[torch.Tensor, Operand]:
    """The loss, and the normalizer that backward is given: where a mean leaves some out, the count of the others."""
    x = _readable(loss, x, target)
    fn, operands = _function(loss.name, target.dtype), _operands(loss, x, target, weight, pos_weight)
    target_input = None if loss.ignore_index is None else 2  # behind the divisor and x
    if loss.reduction != "none":
        counted = target_input is not None and loss.reduction == "mean"
        divisor = None if counted else _divisor(loss, x, normalizer)
        total, divisor = launch_sum(fn, (1, *operands), x, divisor, loss.dtype, target_input=target_input)
        return total, divisor if counted else normalizer
    out = _result(loss, x, target, loss.dtype)
    launch_map(fn, exact((_divisor(loss, x, normalizer), *operands), x), (out,), target_input=target_input)
    return out, normalizer


def loss_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand,
    pos_weight: Operand,
    normalizer: Operand,
) -> torch.Tensor:
    grad_x = _result(loss, x, target, x.dtype)
    operands = _operands(loss, x, target, weight, pos_weight)
    fn = _function(loss.name, target.dtype, "d")
    target_input = None if loss.ignore_index is None else 3
    launch_map(fn, exact((grad, _divisor(loss, x, normalizer), *operands), x), (grad_x,), target_input=target_input)
    return grad_x


@functools.cache  # a look-up: two threads get the same
def _function(name: str, target: torch.dtype, derivative: str = "") -> Any:
    """The scalar function of a loss for this kind of target."""
    kind = {torch.int64: "_of_class", torch.uint8: "_of_mask"}.get(target, "")
    return getattr(_math, derivative + NAMES[name] + kind)


def _operands(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand
) -> tuple[Operand, ...]:
    """The operands of a loss' scalar function, and the number to ignore, if there is one.

    A class index comes with each element's index, which it is compared to.
    """
    if loss.name == "sigmoid_focal_loss":
        pos, neg = (1, 1) if loss.alpha < 0 else (loss.alpha, 1 - loss.alpha)
        sign = SIGNS.get(loss.gamma % 2, math.nan)
        rest: tuple[Operand, ...] = (pos, neg, loss.gamma, sign)
        if pos_weight is not None:
            rest = *rest, pos_weight
    else:
        rest = (1 if pos_weight is None else pos_weight, 1 - loss.label_smoothing if loss.label_smoothing else 1)
    if loss.ignore_index is not None:
        rest = *rest, float(loss.ignore_index)
    weight = 1 if weight is None else weight
    if loss.indexed(target):
        return x, target.unsqueeze(-1), INDEX, float(loss.background_index), float(x.shape[-1]), weight, *rest
    return x, target, weight, *rest


def _readable(loss: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Gives x itself, or a contiguous copy where its strides cannot lead a reduction, which has no output to do that."""
    if loss.reduction == "none" or x.is_contiguous():
        return x
    indexed = loss.indexed(target)  # by an axis that is found by its stride, which must be one axis' alone
    led = not indexed or torch.ops.aten.is_non_overlapping_and_dense(x)
    return x if led and is_reachable(axes_of((x, x), x, indexed)) else x.contiguous()


def _result(loss: Any, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result with x's strides; contiguous where x has more rows of matrices than a grid has programs for."""
    out = torch.empty_like(x, dtype=dtype)
    if out.is_contiguous() or not loss.indexed(target) or is_reachable(axes_of((out,), out, True)):
        return out
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _divisor(loss: Any, x: torch.Tensor, normalizer: Operand) -> Operand:
    """One number or 0-d tensor."""
    if loss.reduction == "mean" and normalizer is None:
        return float(x.numel())
    return (loss.normalizer or 1) if normalizer is None else normalizer
