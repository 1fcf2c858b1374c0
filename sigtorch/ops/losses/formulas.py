"""The losses in PyTorch's own operators, differentiable in every way that PyTorch knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sigtorch._backend import HALF_DTYPES, aten_sigmoid
from sigtorch.ops.losses import checks

FAR = 800.0  # exp(-800) is 0 in float64 too
TINY = torch.finfo(torch.float32).tiny


class Loss(NamedTuple):
    """A loss with all of its options that are no tensors."""

    name: str
    reduction: str
    dtype: torch.dtype  # of the result
    class_dim: int = -1  # the dimension of the logits that class indices lack
    background_index: int = -1
    ignore_index: int | None = None  # that a target's dtype can hold
    # Numbers, or 0-d tensors that are differentiated, transformed or traced.
    label_smoothing: Any = 0.0
    alpha: Any = -1.0
    gamma: Any = 0.0
    normalizer: float | None = None  # where that is no tensor

    def indexed(self, target: torch.Tensor) -> bool:
        return target.dtype == torch.int64

    def tamed(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Zeroes ignored logits and targets, for 0 times infinity is NaN; gives where these are, too."""
        if self.ignore_index is None:
            return x, target, None
        ignored = target == self.ignore_index
        target = target.masked_fill(ignored, 0)
        if self.indexed(target):
            ignored = ignored.unsqueeze(self.class_dim)
        ignored = _with_strides_of(x, ignored)
        return torch.where(ignored, 0, x), target, ignored

    def wide(self, x: torch.Tensor) -> torch.dtype:
        """The dtype to compute in."""
        dtype = torch.promote_types(x.dtype, self.dtype)
        return torch.float32 if dtype in HALF_DTYPES else dtype


def _with_strides_of(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """The condition with x's strides, which the result of torch.where takes from its condition."""
    return condition if x.is_contiguous() else torch.ones_like(x, dtype=torch.bool) & condition


def formula(
    loss: Loss,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    pos_weight: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> torch.Tensor:
    """The loss, of tensors that its public function has checked."""
    wide = loss.wide(x)
    x, target, ignored = loss.tamed(x.to(wide), target)
    values = (
        _of_classes(loss, x, target, pos_weight)
        if loss.indexed(target)
        else _one(loss, x, _share(target, wide), pos_weight)
    )
    if weight is not None:
        values = values * weight
    return _reduced(loss, values, ignored, normalizer)


def _reduced(
    loss: Loss, values: torch.Tensor, ignored: torch.Tensor | None, normalizer: torch.Tensor | None
) -> torch.Tensor:
    """Reduces every element's loss as was asked, divides, and gives the result its dtype."""
    if ignored is not None:
        values = torch.where(ignored, 0, values)
    if loss.reduction == "mean" and ignored is not None:
        normalizer = _count(loss, ignored, values) if normalizer is None else normalizer
        values = values.sum(dtype=loss.wide(values))
    elif loss.reduction == "mean":
        values = values.mean()
    elif loss.reduction == "sum":
        values = values.sum()
    divisor = loss.normalizer if normalizer is None else normalizer
    # A GPU multiplies by the inverse of a number, here an infinite one. What is compiled may not ask how large one is.
    if not torch.compiler.is_compiling() and isinstance(divisor, float) and divisor < TINY:
        divisor = torch.full((), divisor, dtype=torch.float64, device=values.device)
        values = values.double()
    return (values if divisor is None else values / divisor).to(loss.dtype)


def _count(loss: Loss, ignored: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many values are not ignored; 1 where all are, for a mean of nothing is 0."""
    count = ignored.logical_not().sum()
    return (count if ignored.shape == values.shape else count * values.shape[loss.class_dim]).clamp(min=1)


def eager(
    loss: Loss,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    pos_weight: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> torch.Tensor:
    """The loss as PyTorch and torchvision compute it, with their rounding: fewer operators than the formula, none of ours."""
    x, target, ignored = loss.tamed(x, target)
    t = _matrix(loss, x, target) if loss.indexed(target) else _share(target, x.dtype)
    weight, pos_weight = (w if w is None or w.is_floating_point() else w.to(x.dtype) for w in (weight, pos_weight))
    if loss.name == "binary_cross_entropy_with_logits":
        if loss.label_smoothing:
            t = t * (1 - loss.label_smoothing) + loss.label_smoothing / 2
        reduction = loss.reduction if ignored is None else "none"
        values = F.binary_cross_entropy_with_logits(x, t, weight, reduction=reduction, pos_weight=pos_weight)
        return values.to(loss.dtype) if ignored is None else _reduced(loss, values, ignored, None)
    # 1 - p_t, which is t + p (1 - 2 t), and the positives' share of alpha, each in as few operators as there are.
    missed = torch.addcmul(t, aten_sigmoid(x), torch.rsub(t, 1, alpha=2))
    if loss.alpha >= 0:
        share = torch.rsub(t, 1 - loss.alpha, alpha=1 - 2 * loss.alpha)
        weight = share if weight is None else share * weight
    values = F.binary_cross_entropy_with_logits(x, t, weight, reduction="none", pos_weight=pos_weight)
    return _reduced(loss, values * missed**loss.gamma, ignored, normalizer)


def _share(target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A dense target as the share of the positive class; NaN for a uint8 above 1 that could not be looked at before."""
    t = target.to(dtype)
    return t if target.dtype != torch.uint8 or checks.looked_at(target) else torch.where(target > 1, torch.nan, t)


def _matrix(loss: Loss, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Class indices as a dense target; NaN in the row of an index that is out of range and could not be looked at."""
    at, hit, known = _places(loss, x, index)
    t, share = torch.zeros_like(x), hit.to(x.dtype)
    if checks.looked_at(index):
        return t.scatter_(loss.class_dim, at, share)  # in place, for else it would not have x's strides
    return torch.where(known, t.scatter(loss.class_dim, at, share), torch.nan)


def _places(loss: Loss, x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A place for each row's index, whether there is a class, and whether the index is in range, of x's dimensions."""
    index, classes = index.unsqueeze(loss.class_dim), x.shape[loss.class_dim]
    background = index == loss.background_index
    hit = (index >= 0) & (index < classes) & ~background
    known = ((index >= 0) & (index <= classes)) | background
    return torch.where(hit, index, 0), hit, known


def _one(loss: Loss, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
    """Every element's loss: shares of softplus(x) and softplus(-x), which cancel nowhere, and are inf where x is."""
    # PyTorch's own threshold of 20 would cost float64 its last digits.
    negative, positive = F.softplus(x, threshold=50), F.softplus(-x, threshold=50)
    if pos_weight is not None:
        positive = positive * pos_weight.to(x.dtype)
    share, rest, smoothing = t, 1 - t, loss.label_smoothing
    if isinstance(smoothing, torch.Tensor) or smoothing:
        share, rest = share * (1 - smoothing) + smoothing / 2, rest * (1 - smoothing) + smoothing / 2
    values = rest * negative + share * positive
    if loss.name == "sigmoid_focal_loss":
        near = x.clamp(-FAR, FAR)  # beyond, sigmoid's derivative is 0, and what it is multiplied with can be infinite
        q = t * aten_sigmoid(-near) + (1 - t) * aten_sigmoid(near)
        tiny = torch.finfo(q.dtype).tiny
        # The derivative of q ** gamma at 0 is infinite for a gamma below 1, and the loss there is 0.
        values = values * torch.where(q.abs() < tiny, tiny, q) ** loss.gamma
        alpha = loss.alpha
        if isinstance(alpha, torch.Tensor):  # whose value a branch would have to look at
            values = values * torch.where(alpha >= 0, alpha * t + (1 - alpha) * (1 - t), 1.0)
        elif alpha >= 0:
            values = values * (alpha * t + (1 - alpha) * (1 - t))
    return values


def _of_classes(loss: Loss, x: torch.Tensor, index: torch.Tensor, pos_weight: torch.Tensor | None) -> torch.Tensor:
    """A target of 0 everywhere, then one element a row replaced: no one-hot matrix."""
    values, dim = _one(loss, x, 0.0, pos_weight), loss.class_dim
    at, hit, known = _places(loss, x, index)
    if pos_weight is not None:
        pos_weight = pos_weight.expand(x.shape).gather(dim, at)
    of_classes = torch.where(hit, _one(loss, x.gather(dim, at), 1.0, pos_weight), values.gather(dim, at))
    return torch.where(_with_strides_of(x, known), values.scatter(dim, at, of_classes), torch.nan)
