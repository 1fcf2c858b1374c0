"""The sigmoid focal loss: its formula and kernels, the function and the module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch._checks import Reduction
from sigtorch._eligible import aten_sigmoid
from sigtorch._once import once
from sigtorch.ops.losses import checks, operators
from sigtorch.ops.losses.checks import Indices
from sigtorch.ops.losses.loss import FAR, STEEPEST, TINY, Factors, Loss, cross_entropy
from sigtorch.ops.losses.run import number, result_dtype, run

# The sign of a negative number to the power of gamma, by gamma modulo 2; NaN for all others. An int 1 compiles to nothing.
SIGNS: dict[float, float] = {0.0: 1, 1.0: -1.0}


@dataclass(kw_only=True, eq=False)
class Focal(Loss):
    """A call of the focal loss; the kernels' operands are alpha, 1 - alpha, gamma, a sign and pos_weight."""

    function: ClassVar[str] = "sigmoid_focal_loss"
    input_name: ClassVar[str] = "inputs"
    target_name: ClassVar[str] = "targets"
    SETTINGS: ClassVar[dict[str, str]] = {**Loss.SETTINGS, "alpha": "float", "gamma": "float"}

    # Numbers, or 0-d tensors that are differentiated, transformed or traced.
    alpha: Any
    gamma: Any

    def element_losses(self, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
        values = cross_entropy(x, t, 1 - t, pos_weight)
        near = x.clamp(-FAR, FAR)  # beyond, sigmoid's derivative is 0, and its factor can be infinite
        q = t * aten_sigmoid(-near) + (1 - t) * aten_sigmoid(near)
        tiny = torch.finfo(q.dtype).tiny
        # The derivative of q ** gamma at 0 is infinite for a gamma below 1, and the loss there is 0.
        values = values * torch.where(q.abs() < tiny, tiny, q) ** self.gamma
        alpha = self.alpha
        if isinstance(alpha, torch.Tensor):  # a branch would have to read its value
            values = values * torch.where(alpha >= 0, alpha * t + (1 - alpha) * (1 - t), 1.0)
        elif alpha >= 0:
            values = values * (alpha * t + (1 - alpha) * (1 - t))
        return values

    def eager_loss(
        self, x: torch.Tensor, t: torch.Tensor, factors: Factors, ignored: torch.Tensor | None
    ) -> torch.Tensor:
        # 1 - p_t, which is t + p (1 - 2 t), and alpha_t, each in as few operators as possible.
        missed = torch.addcmul(t, aten_sigmoid(x), torch.rsub(t, 1, alpha=2))
        weight = factors.weight
        if self.alpha >= 0:
            alpha_t = torch.rsub(t, 1 - self.alpha, alpha=1 - 2 * self.alpha)
            weight = alpha_t if weight is None else alpha_t * weight
        values = F.binary_cross_entropy_with_logits(x, t, weight, reduction="none", pos_weight=factors.pos_weight)
        return self.reduced(values * missed**self.gamma, ignored, factors.normalizer)

    def eager_serves(self, differentiated: bool, target: torch.Tensor, *others: torch.Tensor) -> bool:
        if differentiated or 0 < self.gamma < 1:  # infinitely steep where 1 - p_t is 0
            return False
        # Compiled code may not ask how large a number is that it traces.
        return self.divisor is None or torch.compiler.is_compiling() or self.divisor >= TINY

    def numbers(self) -> tuple[Any, ...]:
        return self.alpha, self.gamma

    def check_numbers(self, where: str) -> None:
        checks.check_alpha_and_gamma(where, self.alpha, self.gamma)

    @staticmethod
    @once
    def passes() -> Any:
        from sigtorch.kernels.losses import FOCAL_PASSES

        return FOCAL_PASSES

    def operands(self, pos_weight: Any) -> tuple[Any, ...]:
        # An int 1 is the default: Triton compiles it as a constant, and drops the multiplication.
        positive, negative = (1, 1) if self.alpha < 0 else (self.alpha, 1 - self.alpha)
        gamma, sign = min(self.gamma, STEEPEST), SIGNS.get(self.gamma % 2, math.nan)
        if pos_weight is None:
            return positive, negative, gamma, sign
        return positive, negative, gamma, sign, pos_weight


operators.define(Focal)


def sigmoid_focal_loss(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    alpha: float | torch.Tensor = 0.25,
    gamma: float | torch.Tensor = 2.0,
    reduction: Reduction = "none",
    *,
    weight: torch.Tensor | None = None,
    normalizer: float | torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
    background_index: int = -1,
    ignore_index: int | None = None,
    dim: int = -1,
) -> torch.Tensor:
    r"""Computes the focal loss of logits, as torchvision's ``sigmoid_focal_loss`` does.

    .. math:: \ell = w\, \alpha_t\, (1 - p_t)^\gamma \left( -p\,t \log \sigma(x) - (1 - t) \log \sigma(-x) \right)

    with :math:`p_t = t\,\sigma(x) + (1 - t)\,\sigma(-x)` and :math:`\alpha_t = \alpha t + (1 - \alpha)(1 - t)`.

    The kernels and the formula add terms that do not cancel: float32 losses are right to 1e-5 of their value, and half
    types are computed in float32 and rounded once. Eager code on a CPU gets torchvision's arithmetic, in fewer operators.
    ``docs/losses.md`` has the table of targets, of the indices with a meaning, and of what is checked where.

    Args:
        inputs: logits x of any shape, of 16, 32 or 64 bits floating.
        targets: t. Dense (floating or bool) or a mask (uint8 of 0 and 1), of inputs' shape; or class indices (int64), of
            inputs' shape without the dimension ``dim``.
        alpha: weight of the positive class in [0, 1], or -1 for none; a number or a 0-d tensor.
        gamma: the exponent, at least 0, which reduces the loss of easy elements; a number or a 0-d tensor.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: w, broadcastable to inputs' shape.
        normalizer: a positive number or 0-d tensor that divides the result of ``"none"`` or ``"sum"``, such as a
            detector's number of positives.
        pos_weight: p, broadcastable to inputs' shape, the weight of the positive class in the cross-entropy.
        background_index: the class index that means no class; so does the number of classes.
        ignore_index: the target that adds no loss and no gradient, and that a mean does not count.
        dim: the dimension of inputs that class indices lack; ignored for other targets.

    Returns:
        A scalar, or a tensor of inputs' shape for ``"none"``. The dtype is that of floating targets, else inputs'; float32
        for half types under autocast. Every tensor argument can have a gradient.

    Raises:
        TypeError: an argument that is no tensor or no number, or has another dtype.
        ValueError: a shape or dimension that does not fit, a number out of range, several devices, an unknown reduction, a
            normalizer with ``"mean"``; on a CPU also a class index or a mask out of range.

    Example:
        >>> x = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
        >>> sigtorch.sigmoid_focal_loss(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), reduction="mean")
        tensor(0.0383)
        >>> sigtorch.sigmoid_focal_loss(x, torch.tensor([0, -1]), reduction="sum", normalizer=2)  # the second has no class
        tensor(0.3369)

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """
    where = "sigmoid_focal_loss()"
    is_default = ignore_index is None and type(dim) is int and dim == -1
    are_common = checks.are_common_numbers(alpha, gamma, background_index, normalizer, reduction)
    if not is_default or not are_common or not checks.is_common(inputs, targets, reduction, weight, pos_weight):
        checks.check_alpha_and_gamma(where, alpha, gamma)
        checks.check_normalizer(where, normalizer, reduction)
        dim, background_index, ignore_index = checks.check_call(
            where, {"inputs": inputs, "targets": targets}, reduction, Indices(dim, background_index, ignore_index),
            weight=weight, pos_weight=pos_weight, alpha=alpha, gamma=gamma, normalizer=normalizer,
        )  # fmt: skip
        alpha, gamma = number(alpha), number(gamma)
    divisor = None
    if normalizer is not None and not isinstance(normalizer, torch.Tensor):
        normalizer, divisor = None, number(normalizer)
    loss = Focal(
        reduction=reduction, dtype=result_dtype(inputs, targets), dim=dim,
        background_index=background_index, ignore_index=ignore_index,
        divisor=divisor, alpha=alpha, gamma=gamma,
    )  # fmt: skip
    if normalizer is not None and not normalizer.is_floating_point():  # a count
        normalizer = normalizer.to(loss.wide(inputs))
    return run(loss, inputs, targets, Factors(weight, pos_weight, normalizer))


# One call in what torch.fx traces: a loss looks at its tensors, and a proxy has none.
torch.fx.wrap("sigmoid_focal_loss")


class SigmoidFocalLoss(torch.nn.Module):
    """:func:`sigtorch.sigmoid_focal_loss` as a module.

    Args:
        alpha: weight of the positive class in [0, 1], or -1 for none; a parameter where it is one.
        gamma: the exponent, at least 0; likewise.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: broadcastable to the inputs' shape; a buffer.
        pos_weight: broadcastable to the inputs' shape; a buffer.
        background_index: the class index that means no class.
        ignore_index: the target that adds no loss and no gradient.
        dim: the dimension of the inputs that class indices lack.

    Raises:
        TypeError: a weight that is no tensor, an index or dimension that is no whole number.
        ValueError: an unknown reduction, an alpha or gamma out of range.

    Example:
        >>> loss = sigtorch.nn.SigmoidFocalLoss(reduction="sum")
        >>> loss(torch.zeros(2, 3), torch.tensor([0, -1]), normalizer=1)  # the second has no class
        tensor(0.6931)
    """

    weight: torch.Tensor | None
    pos_weight: torch.Tensor | None

    def __init__(
        self,
        alpha: float | torch.Tensor = 0.25,
        gamma: float | torch.Tensor = 2.0,
        reduction: Reduction = "none",
        *,
        weight: torch.Tensor | None = None,
        pos_weight: torch.Tensor | None = None,
        background_index: int = -1,
        ignore_index: int | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__()
        where = "SigmoidFocalLoss()"
        checks.check_reduction(where, reduction)
        checks.check_alpha_and_gamma(where, alpha, gamma)
        checks.check_weights(where, weight=weight, pos_weight=pos_weight)
        self.alpha, self.gamma = alpha, gamma
        self.reduction: Reduction = reduction
        self.background_index = checks.check_index(where, "background_index", background_index)
        if ignore_index is not None:
            ignore_index = checks.check_index(where, "ignore_index", ignore_index)
        self.ignore_index = ignore_index
        self.dim = _checks.check_whole(where, "dim", dim)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(
        self, inputs: torch.Tensor, targets: torch.Tensor, *, normalizer: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the loss, divided by normalizer, which changes from batch to batch."""
        return sigmoid_focal_loss(
            inputs, targets, self.alpha, self.gamma, self.reduction,
            weight=self.weight, normalizer=normalizer, pos_weight=self.pos_weight,
            background_index=self.background_index, ignore_index=self.ignore_index, dim=self.dim,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _checks.shown(
            alpha=self.alpha, gamma=self.gamma, reduction=self.reduction,
            weight=self.weight, pos_weight=self.pos_weight, background_index=self.background_index,
            ignore_index=self.ignore_index, dim=self.dim,
        )  # fmt: skip
