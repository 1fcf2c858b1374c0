"""The asymmetric loss: its formula and kernels, the function and the module."""

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
from sigtorch.ops.losses.loss import FAR, STEEPEST, TINY, Factors, Loss
from sigtorch.ops.losses.run import run_without_options


@dataclass(kw_only=True, eq=False)
class Asymmetric(Loss):
    """A call of the asymmetric loss; the kernels' operands are the gammas, and clip if it is not 0."""

    function: ClassVar[str] = "asymmetric_loss"
    input_name: ClassVar[str] = "input"
    target_name: ClassVar[str] = "target"
    EAGER_KEEPS_STRIDES: ClassVar[bool] = False  # the mean's gradient has none, and products take those of the target
    FACTORS: ClassVar[tuple[str, ...]] = ()
    SETTINGS: ClassVar[dict[str, str]] = {
        "reduction": "str", "dtype": "ScalarType", "gamma_neg": "float", "gamma_pos": "float", "clip": "float",
    }  # fmt: skip

    gamma_neg: float
    gamma_pos: float
    clip: float

    def element_losses(self, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
        near = x.clamp(-FAR, FAR)  # beyond, sigmoid's derivative is 0, and its factor can be infinite
        shifted, rest = aten_sigmoid(near), aten_sigmoid(-near)
        if self.clip:
            others = rest + self.clip
            # Of the smaller one of s and 1 - s, whose slope does not cancel.
            shifted = torch.where(near > 0, (1 - self.clip) - rest, shifted - self.clip).clamp(min=0)
            # The logarithm of the larger one; 0.75 keeps log1p's slope finite where it is not taken.
            negative = -torch.where(shifted > 0.5, torch.log(others), torch.log1p(-shifted.clamp(max=0.75)))
        else:
            negative = F.softplus(x, threshold=50)
        values = t * F.softplus(-x, threshold=50) + (1 - t) * negative
        q = t * rest + (1 - t) * shifted
        tiny = torch.finfo(q.dtype).tiny
        # A power's derivative at 0 is infinite for a gamma below 1, and the loss there is 0.
        return values * torch.where(q.abs() < tiny, tiny, q) ** (self.gamma_pos * t + self.gamma_neg * (1 - t))

    def eager_loss(
        self, x: torch.Tensor, t: torch.Tensor, factors: Factors, ignored: torch.Tensor | None
    ) -> torch.Tensor:
        x = x.to(self.wide(x))  # float32 for half types, as in timm
        s = aten_sigmoid(x)
        if self.clip:
            shifted = torch.relu(s - self.clip)
            negative = torch.log1p(-shifted)
            values = torch.addcmul(negative, t, F.logsigmoid(x) - negative).neg()
        else:
            shifted, values = s, F.binary_cross_entropy_with_logits(x, t, reduction="none")
        q = torch.addcmul(shifted, t, 1 - s - shifted)
        gamma = torch.rsub(t, self.gamma_neg, alpha=self.gamma_neg - self.gamma_pos)
        return self.reduced(values * q**gamma, None, None)

    def eager_serves(self, differentiated: bool, target: torch.Tensor, *others: torch.Tensor) -> bool:
        # A power is infinitely steep at 0 for a gamma below 1; and 1 - s rounds, which a small clip does not hide.
        is_steep = 0 < self.gamma_neg < 1 or 0 < self.gamma_pos < 1
        return not differentiated and not is_steep and not 0 < self.clip < 1e-2

    def check_numbers(self, where: str) -> None:
        checks.check_setting(where, "gamma_neg", self.gamma_neg)
        checks.check_setting(where, "gamma_pos", self.gamma_pos)
        _check_clip(where, self.clip)

    @staticmethod
    @once
    def passes() -> Any:
        from sigtorch.kernels.losses import ASYMMETRIC_PASSES

        return ASYMMETRIC_PASSES

    def operands(self, pos_weight: Any) -> tuple[Any, ...]:
        gammas = min(self.gamma_pos, STEEPEST), min(self.gamma_neg, STEEPEST)
        return (*gammas, self.clip) if self.clip else gammas


operators.define(Asymmetric)


def asymmetric_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    r"""Computes the asymmetric loss of logits, for many labels of which few are positive.

    .. math::
        \ell = \left( t\,(1 - \sigma(x)) + (1 - t)\,m \right)^\gamma
        \left( -t \log \sigma(x) - (1 - t) \log (1 - m) \right)

    with :math:`m = \max(\sigma(x) - c, 0)` and :math:`\gamma = \gamma_+ t + \gamma_- (1 - t)`. The factor has a gradient, too.

    The kernels and the formula take each logarithm without rounding its argument: float32 losses are right to 1e-5 of their
    value, where σ(x) is not close to c, and half types are computed in float32 and rounded once. Eager code on a CPU gets
    timm's arithmetic, in fewer operators. ``docs/losses.md`` has the table of targets, and of what is checked where.

    Args:
        input: logits x of any shape, of 16, 32 or 64 bits floating.
        target: t. Dense (floating or bool) or a mask (uint8 of 0 and 1), of input's shape; or class indices (int64), of
            input's shape without the last dimension, where -1 and the number of classes mean no class.
        gamma_neg: the exponent of negatives, a number of at least 0, which reduces the loss of easy ones.
        gamma_pos: the exponent of positives, likewise.
        clip: c, the probability below which a negative has no loss, at least 0 and below 1; no positive number below 1.18e-38.
        reduction: ``"mean"``, ``"sum"`` (the paper's) or ``"none"``.

    Returns:
        A scalar, or a tensor of input's shape for ``"none"``. The dtype is a floating target's, else input's; float32 for
        half types under autocast. Input and target can have a gradient.

    Raises:
        TypeError: an argument that is no tensor or no number, or has another dtype.
        ValueError: a shape that does not fit, a number out of range, several devices, an unknown reduction; on a CPU also a
            class index or a mask out of range.

    Example:
        >>> x = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
        >>> sigtorch.asymmetric_loss(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.0311)
        >>> sigtorch.asymmetric_loss(x, torch.tensor([0, -1]), reduction="sum")  # the second has no class
        tensor(0.2861)

    Source:
        Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021.
    """
    where = "asymmetric_loss()"
    gamma_neg = checks.check_setting(where, "gamma_neg", gamma_neg)
    gamma_pos = checks.check_setting(where, "gamma_pos", gamma_pos)
    clip = _check_clip(where, clip)
    numbers = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    return run_without_options(Asymmetric, input, target, reduction, **numbers)


def _check_clip(where: str, value: Any) -> float:
    """Returns it as a Python number; its logarithm and its inverse are taken in float32."""
    clip = checks.check_setting(where, "clip", value, below=1)
    if 0 < clip < TINY:
        raise ValueError(f"{where}: clip must be 0 or at least {TINY:.3g}, got {value!r}")
    return clip


# One call in what torch.fx traces: a loss looks at its tensors, and a proxy has none.
torch.fx.wrap("asymmetric_loss")


class AsymmetricLoss(torch.nn.Module):
    """:func:`sigtorch.asymmetric_loss` as a module.

    Args:
        gamma_neg: the exponent of negatives, at least 0.
        gamma_pos: the exponent of positives, at least 0.
        clip: the probability below which a negative has no loss, at least 0 and below 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: a gamma or clip that is no number.
        ValueError: an unknown reduction, a gamma or clip out of range.

    Example:
        >>> loss = sigtorch.nn.AsymmetricLoss(reduction="sum")
        >>> loss(torch.full((2, 3), -4.0), torch.zeros(2, 3))  # probabilities below clip
        tensor(0.)
    """

    def __init__(
        self, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        where = "AsymmetricLoss()"
        checks.check_reduction(where, reduction)
        self.gamma_neg = checks.check_setting(where, "gamma_neg", gamma_neg)
        self.gamma_pos = checks.check_setting(where, "gamma_pos", gamma_pos)
        self.clip = _check_clip(where, clip)
        self.reduction: Reduction = reduction

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss: a scalar, or a tensor of input's shape for ``"none"``."""
        return asymmetric_loss(input, target, self.gamma_neg, self.gamma_pos, self.clip, self.reduction)

    def extra_repr(self) -> str:
        return _checks.shown(
            gamma_neg=self.gamma_neg, gamma_pos=self.gamma_pos, clip=self.clip, reduction=self.reduction
        )
