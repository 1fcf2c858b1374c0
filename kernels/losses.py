"""The losses' passes: forward reads each logit and target once, backward once more and writes the gradient."""

from __future__ import annotations

from typing import Any

import torch

from sigtorch.kernels import _loss_math
from sigtorch.kernels._layout import Operand, axes_of, reachable
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import LOSS_TILE_BYTES, reduce

# An int 1, not 1.0, stands for what nobody asked for: Triton compiles it as a constant, and drops the multiplication.


def _function(name: str, loss: Any, target: torch.Tensor) -> Any:
    """The scalar function of that name for this kind of target."""
    kind = "_of_class" if loss.indexed(target) else "_of_mask" if target.dtype == torch.uint8 else ""
    return getattr(_loss_math, name + kind)


def _operands(loss: Any, x: torch.Tensor, target: torch.Tensor, *rest: Operand) -> tuple[Operand, ...]:
    """What a scalar function takes: a class index comes with the column it is compared to."""
    if loss.indexed(target):
        # Contiguous, as x or the output is, so that the innermost axis is the classes'.
        index = target.contiguous().unsqueeze(-1)
        return x, index, None, float(loss.background_index), float(x.shape[-1]), *rest
    return x, target.view(torch.uint8) if target.dtype == torch.bool else target, *rest


def _weight(x: torch.Tensor, weight: Input) -> Input:
    """A kernel takes whole numbers for float32, which of float64 logits are more than that holds."""
    if isinstance(weight, torch.Tensor) and x.dtype == torch.float64:
        return weight.double()
    return 1 if weight is None else weight


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


def _bce_operands(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand
) -> tuple[Operand, ...]:
    keep = 1 - loss.label_smoothing if loss.label_smoothing else 1
    return _operands(loss, x, target, _weight(x, weight), _weight(x, pos_weight), keep)


def _focal_operands(loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand) -> tuple[Operand, ...]:
    pos, neg = (1, 1) if loss.alpha < 0 else (loss.alpha, 1 - loss.alpha)
    sign = {0.0: 1, 1.0: -1.0}.get(loss.gamma % 2, float("nan"))
    return _operands(loss, x, target, _weight(x, weight), pos, neg, loss.gamma, sign)


def binary_cross_entropy_with_logits_forward(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand, normalizer: Operand
) -> torch.Tensor:
    x = _readable(loss, x, target)
    operands = _bce_operands(loss, x, target, weight, pos_weight)
    fn = _function("bce", loss, target)
    if loss.reduction != "none":
        return reduce(fn, operands, x, _divisor(loss, x, normalizer), loss.dtype)
    out = _like(loss, x, target, loss.dtype)
    launch_map(fn, operands, (out,), LOSS_TILE_BYTES)
    return out


def binary_cross_entropy_with_logits_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand,
    pos_weight: Operand,
    normalizer: Operand,
) -> torch.Tensor:
    fn = _function("dbce", loss, target)
    grad_x = _like(loss, x, target, x.dtype)
    operands = _bce_operands(loss, x, target, weight, pos_weight)
    launch_map(fn, (grad, _divisor(loss, x, normalizer), *operands), (grad_x,), LOSS_TILE_BYTES)
    return grad_x


def sigmoid_focal_loss_forward(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Operand, pos_weight: Operand, normalizer: Operand
) -> torch.Tensor:
    x = _readable(loss, x, target)
    operands = _focal_operands(loss, x, target, weight)
    fn = _function("focal", loss, target)
    divisor = _divisor(loss, x, normalizer)
    if loss.reduction != "none":
        return reduce(fn, (1, *operands), x, divisor, loss.dtype)
    out = _like(loss, x, target, loss.dtype)
    launch_map(fn, (divisor, *operands), (out,), LOSS_TILE_BYTES)
    return out


def sigmoid_focal_loss_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Operand,
    pos_weight: Operand,
    normalizer: Operand,
) -> torch.Tensor:
    fn = _function("dfocal", loss, target)
    grad_x = _like(loss, x, target, x.dtype)
    launch_map(
        fn, (grad, _divisor(loss, x, normalizer), *_focal_operands(loss, x, target, weight)), (grad_x,), LOSS_TILE_BYTES
    )
    return grad_x
