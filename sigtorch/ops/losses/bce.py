"""Binary cross-entropy with logits: its formula and kernels, the function and the module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from sigtorch import _backend, _checks, _eligible
from sigtorch._checks import Reduction
from sigtorch._once import once
from sigtorch.ops.losses import checks, operators
from sigtorch.ops.losses.checks import Indices
from sigtorch.ops.losses.loss import Factors, Loss, cross_entropy
from sigtorch.ops.losses.run import number, result_dtype, run


@dataclass(kw_only=True, eq=False)
class BCE(Loss):
    """A call of the binary cross-entropy; the kernels' operands are pos_weight and 1 - label_smoothing."""

    function: ClassVar[str] = "binary_cross_entropy_with_logits"
    input_name: ClassVar[str] = "input"
    target_name: ClassVar[str] = "target"
    SETTINGS: ClassVar[dict[str, str]] = {**Loss.SETTINGS, "label_smoothing": "float"}

    label_smoothing: Any = 0.0  # a number, or a 0-d tensor that is differentiated, transformed or traced

    def element_losses(self, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
        rest, smoothing = 1 - t, self.label_smoothing
        if isinstance(smoothing, torch.Tensor) or smoothing:
            t, rest = t * (1 - smoothing) + smoothing / 2, rest * (1 - smoothing) + smoothing / 2
        return cross_entropy(x, t, rest, pos_weight)

    def eager_loss(
        self, x: torch.Tensor, t: torch.Tensor, factors: Factors, ignored: torch.Tensor | None
    ) -> torch.Tensor:
        if self.label_smoothing:
            t = t * (1 - self.label_smoothing) + self.label_smoothing / 2
        reduction = self.reduction if ignored is None else "none"
        values = F.binary_cross_entropy_with_logits(
            x, t, factors.weight, reduction=reduction, pos_weight=factors.pos_weight
        )
        return values.to(self.dtype) if ignored is None else self.reduced(values, ignored, None)

    def eager_serves(self, differentiated: bool, target: torch.Tensor, *others: torch.Tensor) -> bool:
        """PyTorch's own function has a gradient for the target, but none for a weight."""
        if not differentiated:
            return True
        is_pytorchs = self.ignore_index is None and type(self.label_smoothing) is float and self.label_smoothing == 0
        return is_pytorchs and target.is_floating_point() and not any(w.requires_grad for w in others)

    def numbers(self) -> tuple[Any, ...]:
        return (self.label_smoothing,)

    def check_numbers(self, where: str) -> None:
        checks.check_label_smoothing(where, self.label_smoothing)

    @staticmethod
    @once
    def passes() -> Any:
        from sigtorch.kernels.losses import BCE_PASSES

        return BCE_PASSES

    def operands(self, pos_weight: Any) -> tuple[Any, ...]:
        # An int 1 is the default: Triton compiles it as a constant, and drops the multiplication.
        return 1 if pos_weight is None else pos_weight, 1 - self.label_smoothing if self.label_smoothing else 1


operators.define(BCE)


def binary_cross_entropy_with_logits(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
    pos_weight: torch.Tensor | None = None,
    *,
    label_smoothing: float | torch.Tensor = 0.0,
    background_index: int = -1,
    ignore_index: int | None = None,
    dim: int = -1,
) -> torch.Tensor:
    r"""Computes the binary cross-entropy of logits, as :func:`torch.nn.functional.binary_cross_entropy_with_logits` does.

    .. math:: \ell = w \left( -p\,t \log \sigma(x) - (1 - t) \log \sigma(-x) \right)

    The kernels and the formula add terms that do not cancel: float32 losses are right to 1e-6 of their value, and half
    types are computed in float32 and rounded once. Eager code on a CPU gets PyTorch's own arithmetic. ``docs/losses.md``
    has the table of targets, of the indices with a meaning, and of what is checked where.

    Args:
        input: logits x of any shape, of 16, 32 or 64 bits floating.
        target: t. Dense (floating or bool) or a mask (uint8 of 0 and 1), of input's shape; or class indices (int64), of
            input's shape without the dimension ``dim``.
        weight: w, broadcastable to input's shape.
        size_average: not supported; use reduction.
        reduce: not supported; use reduction.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: p, broadcastable to input's shape.
        label_smoothing: ε in [0, 1], a number or a 0-d tensor, which replaces t by t (1 - ε) + ε / 2.
        background_index: the class index that means no class; so does the number of classes.
        ignore_index: the target that adds no loss and no gradient, and that a mean does not count.
        dim: the dimension of input that class indices lack; ignored for other targets.

    Returns:
        A scalar, or a tensor of input's shape for ``"none"``. The dtype is a floating target's, else input's; float32 for
        half types under autocast. Every tensor argument can have a gradient.

    Raises:
        TypeError: an argument that is no tensor or no number, or has another dtype.
        ValueError: a shape or dimension that does not fit, a number out of range, several devices, an unknown reduction; on
            a CPU also a class index or a mask out of range.

    Example:
        >>> x = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
        >>> sigtorch.binary_cross_entropy_with_logits(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.3616)
        >>> sigtorch.binary_cross_entropy_with_logits(x, torch.tensor([0, 1]))  # the same as class indices
        tensor(0.3616)
        >>> sigtorch.binary_cross_entropy_with_logits(x, torch.tensor([0, 255]), ignore_index=255)
        tensor(0.2201)

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, for the smoothing.
    """
    where = "binary_cross_entropy_with_logits()"
    is_default = type(label_smoothing) is float and label_smoothing == 0 and size_average is None and reduce is None
    is_default = is_default and ignore_index is None and type(dim) is int and dim == -1
    is_default = is_default and type(background_index) is int and background_index == -1
    is_eager = is_default and not torch.compiler.is_compiling() and _eligible.on_cpu(input, target)
    is_eager = is_eager and not _backend.kernels_chosen()
    if is_eager and input.is_floating_point() and target.is_floating_point():
        try:  # PyTorch's function first: a right call costs no check
            return F.binary_cross_entropy_with_logits(input, target, weight, None, None, reduction, pos_weight)
        except (RuntimeError, TypeError, ValueError):
            pass  # explained below
    if not is_default or not checks.is_common(input, target, reduction, weight, pos_weight):
        checks.check_legacy(where, size_average, reduce)
        checks.check_label_smoothing(where, label_smoothing)
        dim, background_index, ignore_index = checks.check_call(
            where, {"input": input, "target": target}, reduction, Indices(dim, background_index, ignore_index),
            weight=weight, pos_weight=pos_weight, label_smoothing=label_smoothing,
        )  # fmt: skip
        label_smoothing = number(label_smoothing)
    loss = BCE(
        reduction=reduction, dtype=result_dtype(input, target), dim=dim,
        background_index=background_index, ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return run(loss, input, target, Factors(weight, pos_weight))


# One call in what torch.fx traces: a loss looks at its tensors, and a proxy has none.
torch.fx.wrap("binary_cross_entropy_with_logits")


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:func:`sigtorch.binary_cross_entropy_with_logits` as a module, a subclass of :class:`torch.nn.BCEWithLogitsLoss`.

    Args:
        weight: broadcastable to the input's shape; a buffer.
        size_average: not supported; use reduction.
        reduce: not supported; use reduction.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: broadcastable to the input's shape; a buffer.
        label_smoothing: ε in [0, 1], a number or a 0-d tensor.
        background_index: the class index that means no class.
        ignore_index: the target that adds no loss and no gradient.
        dim: the dimension of the input that class indices lack.

    Raises:
        TypeError: a weight that is no tensor, an index or dimension that is no whole number.
        ValueError: an unknown reduction, a smoothing outside of [0, 1].

    Example:
        >>> loss = sigtorch.nn.BCEWithLogitsLoss(ignore_index=255, dim=1)
        >>> logits, classes = torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), 255)
        >>> loss(logits, classes)  # all are ignored
        tensor(0.)
    """

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        size_average: None = None,
        reduce: None = None,
        reduction: Reduction = "mean",
        pos_weight: torch.Tensor | None = None,
        *,
        label_smoothing: float | torch.Tensor = 0.0,
        background_index: int = -1,
        ignore_index: int | None = None,
        dim: int = -1,
    ) -> None:
        where = "BCEWithLogitsLoss()"
        checks.check_legacy(where, size_average, reduce)
        checks.check_reduction(where, reduction)
        checks.check_label_smoothing(where, label_smoothing)
        checks.check_weights(where, weight=weight, pos_weight=pos_weight)
        super().__init__(weight, reduction=reduction, pos_weight=pos_weight)
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing
        self.background_index = checks.check_index(where, "background_index", background_index)
        if ignore_index is not None:
            ignore_index = checks.check_index(where, "ignore_index", ignore_index)
        self.ignore_index = ignore_index
        self.dim = _checks.check_whole(where, "dim", dim)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss: a scalar, or a tensor of input's shape for ``"none"``."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, None, None, self.reduction, self.pos_weight,
            label_smoothing=self.label_smoothing, background_index=self.background_index,
            ignore_index=self.ignore_index, dim=self.dim,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _checks.shown(
            weight=self.weight, reduction=self.reduction, pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing, background_index=self.background_index,
            ignore_index=self.ignore_index, dim=self.dim,
        )  # fmt: skip
