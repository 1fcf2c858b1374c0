"""The quality focal loss: its formula and kernels, the function and the module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch._checks import Reduction
from sigtorch._eligible import aten_sigmoid
from sigtorch._once import once
from sigtorch.ops.losses import checks, operators
from sigtorch.ops.losses.loss import FAR, STEEPEST, Factors, Loss, cross_entropy
from sigtorch.ops.losses.run import run_without_options


@dataclass(kw_only=True, eq=False)
class QualityFocal(Loss):
    """A call of the quality focal loss; the kernels' operand is beta."""

    function: ClassVar[str] = "quality_focal_loss"
    input_name: ClassVar[str] = "input"
    target_name: ClassVar[str] = "target"
    FACTORS: ClassVar[tuple[str, ...]] = ()
    SETTINGS: ClassVar[dict[str, str]] = {"reduction": "str", "dtype": "ScalarType", "beta": "float"}

    beta: float

    def element_losses(self, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
        values = cross_entropy(x, t, 1 - t, None)
        if not self.beta:
            return values
        near = x.clamp(-FAR, FAR)  # beyond, sigmoid's derivative is 0, and its factor can be infinite
        distance = (t * aten_sigmoid(-near) - (1 - t) * aten_sigmoid(near)).abs()
        # A power's derivative at 0 is infinite for a beta below 1, and the loss there has its minimum, 0.
        is_there = distance < torch.finfo(distance.dtype).tiny
        return values * torch.where(is_there, 0, torch.where(is_there, 1, distance) ** self.beta)

    def eager_loss(
        self, x: torch.Tensor, t: torch.Tensor, factors: Factors, ignored: torch.Tensor | None
    ) -> torch.Tensor:
        distance = t - aten_sigmoid(x)
        power = distance * distance if self.beta == 2 else distance.abs() ** self.beta
        return self.reduced(F.binary_cross_entropy_with_logits(x, t, reduction="none") * power, None, None)

    def eager_serves(self, differentiated: bool, target: torch.Tensor, *others: torch.Tensor) -> bool:
        return not differentiated and not 0 < self.beta < 1  # infinitely steep where the distance is 0

    def check_numbers(self, where: str) -> None:
        checks.check_setting(where, "beta", self.beta)

    @staticmethod
    @once
    def passes() -> Any:
        from sigtorch.kernels.losses import QUALITY_FOCAL_PASSES

        return QUALITY_FOCAL_PASSES

    def operands(self, pos_weight: Any) -> tuple[Any, ...]:
        return (min(self.beta, STEEPEST),)


operators.define(QualityFocal)


def quality_focal_loss(
    input: torch.Tensor, target: torch.Tensor, beta: float = 2.0, reduction: Reduction = "mean"
) -> torch.Tensor:
    r"""Computes the quality focal loss of logits, whose targets are qualities such as the overlap of a box.

    .. math:: \ell = |t - \sigma(x)|^\beta \left( -t \log \sigma(x) - (1 - t) \log \sigma(-x) \right)

    The kernels and the formula subtract t from σ(x) without rounding either: float32 losses of targets 0 and 1 are right to
    1e-5 of their value, those of other targets where t and σ(x) are not close, and half types are computed in float32 and
    rounded once. Eager code on a CPU gets PyTorch's arithmetic. ``docs/losses.md`` has the table of targets, and of what is
    checked where.

    Args:
        input: logits x of any shape, of 16, 32 or 64 bits floating.
        target: t. Dense (floating or bool) or a mask (uint8 of 0 and 1), of input's shape; or class indices (int64), of
            input's shape without the last dimension, where -1 and the number of classes mean no class.
        beta: the exponent, a number of at least 0, which reduces the loss of elements that are close to their target.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or a tensor of input's shape for ``"none"``. The dtype is a floating target's, else input's; float32 for
        half types under autocast. Input and target can have a gradient.

    Raises:
        TypeError: an argument that is no tensor or no number, or has another dtype.
        ValueError: a shape that does not fit, a number out of range, several devices, an unknown reduction; on a CPU also a
            class index or a mask out of range.

    Example:
        >>> x = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
        >>> sigtorch.quality_focal_loss(x, torch.tensor([[0.7, 0.0], [0.0, 0.9]]))
        tensor(0.0579)
        >>> sigtorch.quality_focal_loss(x, torch.tensor([0, -1]), reduction="sum")  # the second has no class
        tensor(0.8996)

    Source:
        Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection",
        2020.
    """
    beta = checks.check_setting("quality_focal_loss()", "beta", beta)
    return run_without_options(QualityFocal, input, target, reduction, beta=beta)


# One call in what torch.fx traces: a loss looks at its tensors, and a proxy has none.
torch.fx.wrap("quality_focal_loss")


class QualityFocalLoss(torch.nn.Module):
    """:func:`sigtorch.quality_focal_loss` as a module.

    Args:
        beta: the exponent, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: a beta that is no number.
        ValueError: an unknown reduction, a beta out of range.

    Example:
        >>> loss = sigtorch.nn.QualityFocalLoss(reduction="sum")
        >>> loss(torch.zeros(2, 3), torch.full((2, 3), 0.5))  # each logit has its target
        tensor(0.)
    """

    def __init__(self, beta: float = 2.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        where = "QualityFocalLoss()"
        checks.check_reduction(where, reduction)
        self.beta = checks.check_setting(where, "beta", beta)
        self.reduction: Reduction = reduction

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss: a scalar, or a tensor of input's shape for ``"none"``."""
        return quality_focal_loss(input, target, self.beta, self.reduction)

    def extra_repr(self) -> str:
        return _checks.shown(beta=self.beta, reduction=self.reduction)
