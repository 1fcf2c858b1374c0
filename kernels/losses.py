"""The losses' passes.

A sum reads each logit and target once, and writes the gradient beside it, where one is wanted. A loss of each element has a
second pass for its gradient, and so has the dice loss, whose gradient needs its sums. A gradient that is written already is
multiplied by the incoming one, in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sigtorch.kernels import _loss_math
from sigtorch.kernels._layout import INDEX, LossPass, Operand, axes_of, exact, is_straight
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_sum, launch_sums
from sigtorch.kernels._scale import launch_scale

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# How a target is read, by its dtype.
DENSE = {**dict.fromkeys((*FLOATS, torch.bool), _loss_math.dense), torch.uint8: _loss_math.mask}
TARGETS = {**DENSE, torch.int64: _loss_math.class_index}


class LossPasses(NamedTuple):
    """The passes of a loss over one kind of target."""

    value: LossPass
    gradient: LossPass
    gradient_and_value: LossPass


def _by_dtype(loss: Any) -> dict[torch.dtype, LossPasses]:
    """The passes of a loss, by the dtype of its target."""
    returns = (_loss_math.value, _loss_math.gradient, _loss_math.gradient_and_value)
    return {dtype: LossPasses(*(LossPass(fn, loss, target) for fn in returns)) for dtype, target in TARGETS.items()}


BCE_PASSES = _by_dtype(_loss_math.bce)
FOCAL_PASSES = _by_dtype(_loss_math.focal)
QUALITY_FOCAL_PASSES = _by_dtype(_loss_math.quality_focal)
VARIFOCAL_PASSES = _by_dtype(_loss_math.varifocal)
ASYMMETRIC_PASSES = _by_dtype(_loss_math.asymmetric)
TARGET_INPUT = 3  # among the operands of every loss: the incoming gradient, the divisor, the logits, the target, ...


class DicePasses(NamedTuple):
    """The passes of the dice loss over one kind of target."""

    terms: LossPass
    terms_with_bce: LossPass
    gradient: LossPass


DICE_PASSES = {
    dtype: DicePasses(
        LossPass(_loss_math.terms, _loss_math.dice_terms, target),
        LossPass(_loss_math.terms, _loss_math.dice_and_bce_terms, target),
        LossPass(_loss_math.gradient, _loss_math.dice, target),
    )
    for dtype, target in DENSE.items()
}


class Result(NamedTuple):
    """A forward pass' results."""

    value: torch.Tensor
    gradient: torch.Tensor | None  # if the loss asks for it; of a mean that ignores elements, times their count
    normalizer: Operand | None  # of backward: the count of the elements if a mean ignores some


def loss_forward(
    loss: Any,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand | None,
    pos_weight: Operand | None,
    normalizer: Operand | None,
) -> Result:
    """Computes the loss; loss has the settings of the call, a ``Loss`` from ``ops/losses/loss.py``.

    Classes are the last dimension of x.
    """
    passes, target_input = loss.passes()[target.dtype], _target_input(loss)
    divisor = None if loss.counts else _divisor(loss, x, normalizer)
    if loss.reduction == "none":
        operands = _operands(loss, x, target, weight, pos_weight)
        out = _result(x, target, loss.dtype)
        launch_map(passes.value, exact((1, divisor, *operands), x), (out,), target_input=target_input)
        return Result(out, None, normalizer)
    if loss.with_gradient:
        gradient = _result(x, target, x.dtype)
        inner, fn = 1 if divisor is None else divisor, passes.gradient_and_value
    else:
        x, gradient = _reducible(x, target), None
        inner, fn = 1, passes.value
    operands = _operands(loss, x, target, weight, pos_weight)
    total, divisor = launch_sum(
        fn, (1, inner, *operands), x, divisor, loss.dtype, target_input=target_input, gradient=gradient
    )
    return Result(total, gradient, divisor if loss.counts else normalizer)


def loss_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand | None,
    pos_weight: Operand | None,
    normalizer: Operand | None,
) -> torch.Tensor:
    """Returns the gradient of x, with the strides of x."""
    grad_x = _result(x, target, x.dtype)
    operands = _operands(loss, x, target, weight, pos_weight)
    inputs = exact((grad, _divisor(loss, x, normalizer), *operands), x)
    launch_map(loss.passes()[target.dtype].gradient, inputs, (grad_x,), target_input=_target_input(loss))
    return grad_x


def loss_scale(gradient: torch.Tensor, grad: torch.Tensor, count: torch.Tensor | None) -> None:
    """Multiplies a gradient that forward wrote by the incoming one, and divides it by a count, in place."""
    launch_scale(gradient, grad, count)


def _target_input(loss: Any) -> int | None:
    return None if loss.ignore_index is None else TARGET_INPUT


def _operands(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand | None, pos_weight: Operand | None
) -> tuple[Operand, ...]:
    """The operands of a pass after the divisor, then the number to ignore, if there is one.

    A class index comes with the index of the column that it is compared with, INDEX.
    """
    # An int 1 is a default, or not used: Triton compiles it as a constant, and drops the multiplication.
    rest = (1 if weight is None else weight, *loss.operands(pos_weight))
    if loss.ignore_index is not None:
        rest = *rest, float(loss.ignore_index)
    if target.dtype == torch.int64:
        return x, target.unsqueeze(-1), INDEX, float(loss.background_index), float(x.shape[-1]), *rest
    return x, target, 1, 1, 1, *rest


def _reducible(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns x, or a contiguous copy if the kernel of a sum cannot follow its strides: it has no output to lead it."""
    if x.is_contiguous():
        return x
    indexed = target.dtype == torch.int64  # the axis of the classes is found by its stride, which must be its alone
    can_lead = not indexed or torch.ops.aten.is_non_overlapping_and_dense(x)
    return x if can_lead and is_straight(axes_of((x, x), x, indexed), indexed) else x.contiguous()


def _result(x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result with x's strides; contiguous if x has more rows of matrices than a grid has programs for."""
    out = torch.empty_like(x, dtype=dtype)
    if out.is_contiguous() or target.dtype != torch.int64 or is_straight(axes_of((out,), out, True), True):
        return out
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _divisor(loss: Any, x: torch.Tensor, normalizer: Operand | None) -> Operand:
    """A number or a 0-d tensor."""
    if loss.reduction == "mean" and normalizer is None:
        return float(x.numel())
    return (loss.divisor or 1) if normalizer is None else normalizer


def dice_sums(loss: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the sums of which a dice loss is made, a ``Dice`` from ``ops/losses/dice.py``: (sums, *shape of one)."""
    passes = DICE_PASSES[target.dtype]
    fn, count = (passes.terms_with_bce, 3) if loss.bce_weight else (passes.terms, 2)
    if not torch.ops.aten.is_non_overlapping_and_dense(x):
        x = x.contiguous()
    return launch_sums(fn, (1, 1, x, target, 1, 1, 1, 1), x, torch.Size(loss.shape_of_sums(x)), loss.dtype, count)


def dice_backward(
    loss: Any, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, sums: torch.Tensor
) -> torch.Tensor:
    """Returns the gradient of x, with the strides of x."""
    grad_x = torch.empty_like(x)
    apart, overlap, *_ = sums
    divisor = float(apart.numel()) if loss.reduction == "mean" else 1
    bce = (loss.bce_weight * apart.numel() / x.numel(),) if loss.bce_weight else ()
    if loss.reduction == "none":
        grad = grad.reshape(apart.shape)
    inputs = exact((grad, divisor, x, target, 1, 1, 1, 1, apart, overlap, loss.smooth, *bce), x)
    launch_map(DICE_PASSES[target.dtype].gradient, inputs, (grad_x,))
    return grad_x
