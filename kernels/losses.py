"""The losses' passes: forward reads each logit and target once, backward once more and writes the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._layout import INDEX, Operand, axes_of, exact, is_reachable
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_sum


class Scalars(NamedTuple):
    """A loss of one element and its derivative, functions from ``_math.py``."""

    forward: Any
    backward: Any


def _by_dtype(dense: Scalars, mask: Scalars, class_index: Scalars) -> dict[torch.dtype, Scalars]:
    """The scalar functions of a loss, by the dtype of its target."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return {**dict.fromkeys((*floats, torch.bool), dense), torch.uint8: mask, torch.int64: class_index}


BCE_SCALARS = _by_dtype(
    dense=Scalars(_math.bce, _math.dbce),
    mask=Scalars(_math.bce_of_mask, _math.dbce_of_mask),
    class_index=Scalars(_math.bce_of_class, _math.dbce_of_class),
)
FOCAL_SCALARS = _by_dtype(
    dense=Scalars(_math.focal, _math.dfocal),
    mask=Scalars(_math.focal_of_mask, _math.dfocal_of_mask),
    class_index=Scalars(_math.focal_of_class, _math.dfocal_of_class),
)
# The index of the target among the inputs: forward reads divisor, x, target, ...; backward grad, divisor, x, target, ...
FORWARD_TARGET, BACKWARD_TARGET = 2, 3


def loss_forward(
    loss: Any,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand | None,
    pos_weight: Operand | None,
    normalizer: Operand | None,
) -> tuple[torch.Tensor, Operand | None]:
    """Returns the loss, and backward's normalizer: the count of the elements if a mean ignores some.

    loss has the settings of the call, a ``Loss`` from ``ops/losses/loss.py``. Classes are the last dimension of x.
    """
    x = _reducible(loss, x, target)
    fn, operands = loss.kernels()[target.dtype].forward, _operands(loss, x, target, weight, pos_weight)
    target_input = None if loss.ignore_index is None else FORWARD_TARGET
    if loss.reduction != "none":
        counted = target_input is not None and loss.reduction == "mean"
        divisor = None if counted else _divisor(loss, x, normalizer)
        total, divisor = launch_sum(fn, (1, *operands), x, divisor, loss.dtype, target_input=target_input)
        return total, divisor if counted else normalizer
    out = _result(x, target, loss.dtype)
    launch_map(fn, exact((_divisor(loss, x, normalizer), *operands), x), (out,), target_input=target_input)
    return out, normalizer


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
    target_input = None if loss.ignore_index is None else BACKWARD_TARGET
    inputs = exact((grad, _divisor(loss, x, normalizer), *operands), x)
    launch_map(loss.kernels()[target.dtype].backward, inputs, (grad_x,), target_input=target_input)
    return grad_x


def _operands(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand | None, pos_weight: Operand | None
) -> tuple[Operand, ...]:
    """The operands of a loss' scalar function after the divisor, then the number to ignore, if there is one.

    A class index comes with the index of the column that it is compared with, INDEX.
    """
    # An int 1 is the default: Triton compiles it as a constant, and drops the multiplication.
    rest = (1 if weight is None else weight, *loss.operands(pos_weight))
    if loss.ignore_index is not None:
        rest = *rest, float(loss.ignore_index)
    if target.dtype == torch.int64:
        return x, target.unsqueeze(-1), INDEX, float(loss.background_index), float(x.shape[-1]), *rest
    return x, target, *rest


def _reducible(loss: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns x, or a contiguous copy if the reduction kernel cannot follow its strides: it has no output to lead it."""
    if loss.reduction == "none" or x.is_contiguous():
        return x
    indexed = target.dtype == torch.int64  # the axis of the classes is found by its stride, which must be its alone
    can_lead = not indexed or torch.ops.aten.is_non_overlapping_and_dense(x)
    return x if can_lead and is_reachable(axes_of((x, x), x, indexed)) else x.contiguous()


def _result(x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result with x's strides; contiguous if x has more rows of matrices than a grid has programs for."""
    out = torch.empty_like(x, dtype=dtype)
    if out.is_contiguous() or target.dtype != torch.int64 or is_reachable(axes_of((out,), out, True)):
        return out
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _divisor(loss: Any, x: torch.Tensor, normalizer: Operand | None) -> Operand:
    """A number or a 0-d tensor."""
    if loss.reduction == "mean" and normalizer is None:
        return float(x.numel())
    return (loss.divisor or 1) if normalizer is None else normalizer
