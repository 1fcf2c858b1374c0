"""The varifocal loss: its formula and kernels, the function and the module."""

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
from sigtorch.ops.losses.loss import STEEPEST, Factors, Loss, cross_entropy
from sigtorch.ops.losses.run import run_without_options


@dataclass(kw_only=True, eq=False)
class Varifocal(Loss):
    """A call of the varifocal loss; the kernels' operands are alpha and gamma."""

    function: ClassVar[str] = "varifocal_loss"
    input_name: ClassVar[str] = "input"
    target_name: ClassVar[str] = "target"
    FACTORS: ClassVar[tuple[str, ...]] = ()
    SETTINGS: ClassVar[dict[str, str]] = {
        "reduction": "str", "dtype": "ScalarType", "alpha": "float", "gamma": "float",
    }  # fmt: skip

    alpha: float
    gamma: float

    def element_losses(self, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
        return self._weight(x, t) * cross_entropy(x, t, 1 - t, None)

    def eager_loss(
        self, x: torch.Tensor, t: torch.Tensor, factors: Factors, ignored: torch.Tensor | None
    ) -> torch.Tensor:
        weight = self._weight(x, t)
        return F.binary_cross_entropy_with_logits(x, t, weight, reduction=self.reduction).to(self.dtype)

    def _weight(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """Computes the weights, which have no gradient."""
        weight = self.alpha * aten_sigmoid(x.detach()) ** self.gamma
        if isinstance(t, torch.Tensor):
            return torch.where(t > 0, t.detach(), weight)
        return torch.full_like(weight, t) if t else weight

    def eager_serves(self, differentiated: bool, target: torch.Tensor, *others: torch.Tensor) -> bool:
        return not differentiated

    def check_numbers(self, where: str) -> None:
        checks.check_setting(where, "alpha", self.alpha)
        checks.check_setting(where, "gamma", self.gamma)

    @staticmethod
    @once
    def passes() -> Any:
        from sigtorch.kernels.losses import VARIFOCAL_PASSES

        return VARIFOCAL_PASSES

    def operands(self, pos_weight: Any) -> tuple[Any, ...]:
        return self.alpha, min(self.gamma, STEEPEST)


operators.define(Varifocal)


def varifocal_loss(
    input: torch.Tensor, target: torch.Tensor, alpha: float = 0.75, gamma: float = 2.0, reduction: Reduction = "mean"
) -> torch.Tensor:
    r"""Computes the varifocal loss of logits, whose positives are weighted by their quality, such as the overlap of a box.

    .. math:: \ell = w \left( -t \log \sigma(x) - (1 - t) \log \sigma(-x) \right)

    with :math:`w = t` where :math:`t > 0`, else :math:`w = \alpha\,\sigma(x)^\gamma`. The weight is a constant: it has no
    gradient.

    The kernels and the formula add terms that do not cancel: float32 losses are right to 1e-5 of their value, and half
    types are computed in float32 and rounded once. Eager code on a CPU gets PyTorch's arithmetic. ``docs/losses.md`` has the
    table of targets, and of what is checked where.

    Args:
        input: logits x of any shape, of 16, 32 or 64 bits floating.
        target: t. Dense (floating or bool) or a mask (uint8 of 0 and 1), of input's shape; or class indices (int64), of
            input's shape without the last dimension, where -1 and the number of classes mean no class.
        alpha: weight of the negatives, a number of at least 0.
        gamma: the exponent, a number of at least 0, which reduces the loss of easy negatives.
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
        >>> sigtorch.varifocal_loss(x, torch.tensor([[0.7, 0.0], [0.0, 0.9]]))
        tensor(0.2569)
        >>> sigtorch.varifocal_loss(x, torch.tensor([0, -1]), reduction="sum")  # the second has no class
        tensor(0.8003)

    Source:
        Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", 2021.
    """
    where = "varifocal_loss()"
    alpha = checks.check_setting(where, "alpha", alpha)
    gamma = checks.check_setting(where, "gamma", gamma)
    return run_without_options(Varifocal, input, target, reduction, alpha=alpha, gamma=gamma)


# One call in what torch.fx traces: a loss looks at its tensors, and a proxy has none.
torch.fx.wrap("varifocal_loss")


class VarifocalLoss(torch.nn.Module):
    """:func:`sigtorch.varifocal_loss` as a module.

    Args:
        alpha: weight of the negatives, at least 0.
        gamma: the exponent, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: an alpha or gamma that is no number.
        ValueError: an unknown reduction, an alpha or gamma out of range.

    Example:
        >>> loss = sigtorch.nn.VarifocalLoss(reduction="sum")
        >>> loss(torch.zeros(2, 3), torch.full((2, 3), 0.5))
        tensor(2.0794)
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        where = "VarifocalLoss()"
        checks.check_reduction(where, reduction)
        self.alpha = checks.check_setting(where, "alpha", alpha)
        self.gamma = checks.check_setting(where, "gamma", gamma)
        self.reduction: Reduction = reduction

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss: a scalar, or a tensor of input's shape for ``"none"``."""
        return varifocal_loss(input, target, self.alpha, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        return _checks.shown(alpha=self.alpha, gamma=self.gamma, reduction=self.reduction)
