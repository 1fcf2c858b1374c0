"""The base class of the losses: the settings of a call, and its formula in PyTorch's operators, differentiable in every way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from sigtorch._autograd import Passes, register_op
from sigtorch._eligible import HALF_DTYPES
from sigtorch.ops.losses import checks

TINY = torch.finfo(torch.float32).tiny
STEEPEST = 1e30  # an exponent that a kernel multiplies by a logarithm: infinity minus infinity would be NaN
FAR = 800.0  # exp(-800) is 0 in float64 too


class Factors(NamedTuple):
    """Tensors that multiply a loss, its positive term, and divide the result; None for 1."""

    weight: torch.Tensor | None = None
    pos_weight: torch.Tensor | None = None
    normalizer: torch.Tensor | None = None


@dataclass(kw_only=True, eq=False)
class Loss(ABC):
    """A call of a loss: all of its arguments that are no tensors.

    A subclass is one loss: its formula, PyTorch's own arithmetic, and the operands and scalar functions of its kernels.
    """

    function: ClassVar[str]  # the public name, and the operator's
    input_name: ClassVar[str]
    target_name: ClassVar[str]
    operators: ClassVar[Passes]
    EAGER_KEEPS_STRIDES: ClassVar[bool] = True  # whether eager_loss gives the gradient the strides of the logits
    FACTORS: ClassVar[tuple[str, ...]] = Factors._fields  # those that its operators take: all, or none
    # The fields that an operator takes, with their types in its schema.
    SETTINGS: ClassVar[dict[str, str]] = {
        "reduction": "str", "dtype": "ScalarType", "background_index": "int", "ignore_index": "int?", "divisor": "float?",
    }  # fmt: skip

    reduction: str
    dtype: torch.dtype  # of the result
    dim: int = -1  # the dimension of the logits that class indices lack
    background_index: int = -1
    ignore_index: int | None = None  # that a target's dtype can hold
    divisor: float | None = None  # the normalizer where that is no tensor
    with_gradient: bool = False  # whether forward computes the gradient too, of a reduced loss

    def __init_subclass__(cls) -> None:
        register_op(cls.function)

    @abstractmethod
    def element_losses(self, x: torch.Tensor, t: torch.Tensor | float, pos_weight: torch.Tensor | None) -> torch.Tensor:
        """Computes every element's loss by the formula; t may be 0.0 or 1.0 for all."""

    @abstractmethod
    def eager_loss(
        self, x: torch.Tensor, t: torch.Tensor, factors: Factors, ignored: torch.Tensor | None
    ) -> torch.Tensor:
        """Computes the loss as PyTorch or torchvision does, of a dense target in which ignored elements are 0."""

    @abstractmethod
    def eager_serves(self, differentiated: bool, target: torch.Tensor, *others: torch.Tensor) -> bool:
        """Tells whether ``eager_loss`` is right for this call; differentiated: more than the logits wants a gradient."""

    @abstractmethod
    def check_numbers(self, where: str) -> None:
        """Refuses numbers that the public function refuses."""

    def numbers(self) -> tuple[Any, ...]:
        """Returns the settings that are 0-d tensors where something differentiates, transforms or traces them."""
        return ()

    @staticmethod
    @abstractmethod
    def passes() -> Any:
        """Returns the table of passes in ``kernels/losses.py``, by the target's dtype."""

    @abstractmethod
    def operands(self, pos_weight: Any) -> tuple[Any, ...]:
        """Returns the operands of the scalar functions after weight."""

    def formula(self, x: torch.Tensor, target: torch.Tensor, factors: Factors) -> torch.Tensor:
        """Computes the loss of tensors that the public function has checked."""
        x, target, ignored = self._without_ignored(x.to(self.wide(x)), target)
        if target.dtype == torch.int64:
            values = self._class_losses(x, target, factors.pos_weight)
        else:
            values = self.element_losses(x, as_float(target, x.dtype), factors.pos_weight)
        if factors.weight is not None:
            values = values * factors.weight
        return self.reduced(values, ignored, factors.normalizer)

    def eager(self, x: torch.Tensor, target: torch.Tensor, factors: Factors) -> torch.Tensor:
        """Computes the loss with PyTorch's or torchvision's arithmetic and rounding, in fewer operators than the formula."""
        x, target, ignored = self._without_ignored(x, target)
        t = self._one_hot(x, target) if target.dtype == torch.int64 else as_float(target, x.dtype)
        weight, pos_weight = (
            w if w is None or w.is_floating_point() else w.to(x.dtype) for w in (factors.weight, factors.pos_weight)
        )
        return self.eager_loss(x, t, Factors(weight, pos_weight, factors.normalizer), ignored)

    def kernel_takes(self, input: torch.Tensor, target: torch.Tensor) -> bool:
        """Tells whether a kernel supports this call, of tensors that kernels run on."""
        if not input.numel():
            return False
        if self.divisor is not None and self.divisor < TINY and input.dtype != torch.float64:
            return False  # its inverse is more than float32 holds
        # Compared in float32.
        if self.ignore_index is not None and abs(self.ignore_index) >= 2**24 and input.dtype != torch.float64:
            return False
        return target.dtype != torch.int64 or max(input.shape[self.dim], abs(self.background_index)) < 2**24

    @property
    def takes_indices(self) -> bool:
        """Tells whether a caller can give ``background_index`` and ``ignore_index``."""
        return "ignore_index" in self.SETTINGS

    @property
    def counts(self) -> bool:
        """Tells whether the mean is over the elements that are not ignored, whose count forward returns for backward."""
        return self.reduction == "mean" and self.ignore_index is not None

    def count(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns that count."""
        _, _, ignored = self._without_ignored(x, target)
        return x.new_ones(()) if ignored is None else self._count(ignored, x)

    def settings(self) -> list[Any]:
        """Returns an operator's arguments after the tensors."""
        return [getattr(self, name) for name in self.SETTINGS]

    def wide(self, x: torch.Tensor) -> torch.dtype:
        """Returns the dtype to compute in."""
        return wide(x.dtype, self.dtype)

    def reduced(
        self, values: torch.Tensor, ignored: torch.Tensor | None, normalizer: torch.Tensor | None
    ) -> torch.Tensor:
        """Reduces every element's loss, divides, and casts to the result's dtype."""
        if ignored is not None:
            values = torch.where(ignored, 0, values)
        if self.reduction == "mean" and ignored is not None:
            normalizer = self._count(ignored, values) if normalizer is None else normalizer
            values = values.sum(dtype=self.wide(values))
        elif self.reduction == "mean":
            values = values.mean()
        elif self.reduction == "sum":
            values = values.sum()
        divisor = self.divisor if normalizer is None else normalizer
        # A GPU multiplies by the inverse, infinite for a tiny number. Compiled code may not ask how large the number is.
        if not torch.compiler.is_compiling() and isinstance(divisor, float) and divisor < TINY:
            divisor = torch.full((), divisor, dtype=torch.float64, device=values.device)
            values = values.double()
        return (values if divisor is None else values / divisor).to(self.dtype)

    def _count(self, ignored: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Counts the values that are not ignored, at least 1: the mean of none is 0."""
        count = ignored.logical_not().sum()
        return (count if ignored.shape == values.shape else count * values.shape[self.dim]).clamp(min=1)

    def _without_ignored(
        self, x: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Zeroes ignored logits and targets, for 0 times infinity is NaN; also returns their mask."""
        if self.ignore_index is None:
            return x, target, None
        ignored = target == self.ignore_index
        target = target.masked_fill(ignored, 0)
        if target.dtype == torch.int64:
            ignored = ignored.unsqueeze(self.dim)
        ignored = _with_strides_of(x, ignored)
        return torch.where(ignored, 0, x), target, ignored

    def _one_hot(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Class indices as a dense target; NaN in the row of an unchecked index that is out of range."""
        position, is_class, is_known = self._class_positions(x, index)
        t, ones = torch.zeros_like(x), is_class.to(x.dtype)
        if checks.can_look_at(index):
            return t.scatter_(self.dim, position, ones)  # in place, which keeps the strides of x
        return torch.where(is_known, t.scatter(self.dim, position, ones), torch.nan)

    def _class_losses(self, x: torch.Tensor, index: torch.Tensor, pos_weight: torch.Tensor | None) -> torch.Tensor:
        """Computes all elements as negatives, then replaces one a row: no one-hot matrix."""
        values = self.element_losses(x, 0.0, pos_weight)
        position, is_class, is_known = self._class_positions(x, index)
        if pos_weight is not None:
            pos_weight = pos_weight.expand(x.shape).gather(self.dim, position)
        positives = self.element_losses(x.gather(self.dim, position), 1.0, pos_weight)
        positives = torch.where(is_class, positives, values.gather(self.dim, position))
        return torch.where(_with_strides_of(x, is_known), values.scatter(self.dim, position, positives), torch.nan)

    def _class_positions(self, x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns each row's position, whether it has a class, and whether its index is in range, with x's dimensions."""
        index, classes = index.unsqueeze(self.dim), x.shape[self.dim]
        is_background = index == self.background_index
        is_class = (index >= 0) & (index < classes) & ~is_background
        is_known = ((index >= 0) & (index <= classes)) | is_background
        return torch.where(is_class, index, 0), is_class, is_known


def wide(of_logits: torch.dtype, of_result: torch.dtype) -> torch.dtype:
    """Returns the dtype to compute in."""
    dtype = torch.promote_types(of_logits, of_result)
    return torch.float32 if dtype in HALF_DTYPES else dtype


def cross_entropy(
    x: torch.Tensor, t: torch.Tensor | float, rest: torch.Tensor | float, pos_weight: torch.Tensor | None
) -> torch.Tensor:
    """Adds t of softplus(-x) to rest of softplus(x): terms that do not cancel, and are infinite where x is."""
    # PyTorch's own threshold of 20 would cost float64 its last digits.
    negative, positive = F.softplus(x, threshold=50), F.softplus(-x, threshold=50)
    if pos_weight is not None:
        positive = positive * pos_weight.to(x.dtype)
    return rest * negative + t * positive


def as_float(target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A dense target as numbers; NaN for an unchecked uint8 above 1."""
    t = target.to(dtype)
    return t if target.dtype != torch.uint8 or checks.can_look_at(target) else torch.where(target > 1, torch.nan, t)


def _with_strides_of(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """The condition with x's strides, which the result of torch.where takes from its condition."""
    return condition if x.is_contiguous() else torch.ones_like(x, dtype=torch.bool) & condition
