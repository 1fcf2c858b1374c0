"""The losses as modules: they store arguments and call the functions."""

from __future__ import annotations

import torch

from sigtorch import _checks
from sigtorch.ops.losses import checks
from sigtorch.ops.losses.functions import binary_cross_entropy_with_logits, sigmoid_focal_loss

# Calls in what torch.fx traces, for a loss looks at its tensors, which a proxy has none of.
torch.fx.wrap("binary_cross_entropy_with_logits")
torch.fx.wrap("sigmoid_focal_loss")


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:func:`sigtorch.binary_cross_entropy_with_logits` as a module, which is a :class:`torch.nn.BCEWithLogitsLoss`.

    Args:
        weight: broadcastable to the input's shape; a buffer.
        size_average: not supported, give a reduction.
        reduce: not supported, give a reduction.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: broadcastable to the input's shape; a buffer.
        label_smoothing: ε in [0, 1], which replaces a target t by t (1 - ε) + ε / 2.
        ignore_index: the target, a class index too, that adds no loss and no gradient, and is not counted by a mean.
        class_dim: the dimension of the input that class indices lack.

    Raises:
        TypeError: a weight that is no tensor, an index or dimension that is no whole number.
        ValueError: an unknown reduction, a smoothing outside of [0, 1].
    """

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        size_average: None = None,
        reduce: None = None,
        reduction: str = "mean",
        pos_weight: torch.Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        class_dim: int = -1,
    ) -> None:
        where = "BCEWithLogitsLoss()"
        checks.legacy(where, size_average, reduce)
        checks.reduction(reduction, where)
        checks.label_smoothing(label_smoothing, where)
        tensors = {"weight": weight, "pos_weight": pos_weight}
        _checks.tensors(where, **{name: t for name, t in tensors.items() if t is not None})
        super().__init__(weight, reduction=reduction, pos_weight=pos_weight)
        self.label_smoothing = label_smoothing
        self.ignore_index = checks.ignore_index(ignore_index, where)
        self.class_dim = _checks.whole(where, "class_dim", class_dim)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, or of input's shape for ``"none"``."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, self.reduction, self.pos_weight,
            label_smoothing=self.label_smoothing, ignore_index=self.ignore_index, class_dim=self.class_dim,
        )  # fmt: skip

    def extra_repr(self) -> str:
        shown = f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
        return f"{shown}, ignore_index={self.ignore_index}, class_dim={self.class_dim}"


class SigmoidFocalLoss(torch.nn.Module):
    """:func:`sigtorch.sigmoid_focal_loss` as a module.

    Args:
        alpha: weight of the positive class in [0, 1], or -1 for none.
        gamma: how much less an easy element counts, at least 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: broadcastable to the inputs' shape; a buffer.
        background_index: the class index that means no class.
        pos_weight: broadcastable to the inputs' shape; a buffer.
        ignore_index: the target, a class index too, that adds no loss and no gradient, and is not counted by a mean.
        class_dim: the dimension of the inputs that class indices lack.

    Raises:
        TypeError: a weight that is no tensor, an index or dimension that is no whole number.
        ValueError: an unknown reduction, an alpha or gamma out of range.
    """

    weight: torch.Tensor | None
    pos_weight: torch.Tensor | None

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: str = "none",
        *,
        weight: torch.Tensor | None = None,
        background_index: int = -1,
        pos_weight: torch.Tensor | None = None,
        ignore_index: int | None = None,
        class_dim: int = -1,
    ) -> None:
        super().__init__()
        where = "SigmoidFocalLoss()"
        checks.reduction(reduction, where)
        background_index = checks.focal(alpha, gamma, background_index, where)
        tensors = {"weight": weight, "pos_weight": pos_weight}
        _checks.tensors(where, **{name: t for name, t in tensors.items() if t is not None})
        self.ignore_index = checks.ignore_index(ignore_index, where)
        self.class_dim = _checks.whole(where, "class_dim", class_dim)
        self.alpha, self.gamma, self.reduction, self.background_index = alpha, gamma, reduction, background_index
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(
        self, inputs: torch.Tensor, targets: torch.Tensor, *, normalizer: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss; normalizer, which changes from batch to batch, divides it."""
        return sigmoid_focal_loss(
            inputs, targets, self.alpha, self.gamma, self.reduction,
            weight=self.weight, normalizer=normalizer, background_index=self.background_index,
            pos_weight=self.pos_weight, ignore_index=self.ignore_index, class_dim=self.class_dim,
        )  # fmt: skip

    def extra_repr(self) -> str:
        shown = f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"
        return f"{shown}, ignore_index={self.ignore_index}, class_dim={self.class_dim}"
