"""The dice loss of sigmoids: its formula, what runs it, its operators, the function and the module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.autograd import Function

from sigtorch import _backend, _checks, _operators
from sigtorch._autograd import Passes, backward_runner, formula_grads, marker, register_op, saved
from sigtorch._backend import Runner
from sigtorch._checks import Reduction
from sigtorch._eligible import aten_sigmoid
from sigtorch._once import once
from sigtorch.ops.losses import checks
from sigtorch.ops.losses.loss import STEEPEST, as_float, cross_entropy, wide
from sigtorch.ops.losses.run import keeping_strides, result_dtype

OP = "sigmoid_dice_loss"
SETTINGS = "int[] dims, str reduction, ScalarType dtype, float smooth, float bce_weight"
register_op(OP)


@dataclass(kw_only=True, eq=False)
class Dice:
    """A call of the dice loss: all of its arguments that are no tensors."""

    function: ClassVar[str] = OP
    target_name: ClassVar[str] = "target"
    takes_indices: ClassVar[bool] = False
    ignore_index: ClassVar[None] = None

    dims: tuple[int, ...]  # that are summed over: at least 0, ascending
    reduction: str
    dtype: torch.dtype  # of the result
    smooth: float
    bce_weight: float

    def formula(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Computes the loss of tensors that the public function has checked."""
        return self.of_sums(x, *self.sums(x, target))

    def sums(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns apart, overlap and, if it has a weight, the sum of the cross-entropy; summed dimensions have size 1."""
        x = x.to(wide(x.dtype, self.dtype))
        t = as_float(target, x.dtype)
        # At most 1/2, and not by abs(), whose derivative at 0 is neither side's: its own derivative does not cancel.
        far = aten_sigmoid(torch.where(x >= 0, -x, x))
        s, rest = torch.where(x >= 0, 1 - far, far), torch.where(x >= 0, far, 1 - far)
        terms = [s * (1 - t) + rest * t, s * t]
        if self.bce_weight:
            terms.append(cross_entropy(x, t, 1 - t, None))
        return tuple(values.sum(self.dims, keepdim=True) for values in terms)

    def of_sums(
        self, x: torch.Tensor, apart: torch.Tensor, overlap: torch.Tensor, cross_entropies: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the loss from its sums."""
        values = apart / (apart + 2 * overlap + self.smooth)
        if cross_entropies is not None:
            count = 1
            for d in self.dims:
                count = count * x.shape[d]
            values = values + self.bce_weight * (cross_entropies / count)
        if self.reduction == "none":
            values = values.squeeze(self.dims)
        else:
            values = values.mean() if self.reduction == "mean" else values.sum()
        return values.to(self.dtype)

    def shape_of_sums(self, x: torch.Tensor) -> list[int]:
        """Returns the shape of a sum, in which the dimensions summed over have size 1."""
        return [1 if d in self.dims else size for d, size in enumerate(x.shape)]

    def kernel_takes(self, x: torch.Tensor) -> bool:
        """Tells whether a kernel supports this call, of tensors that kernels run on."""
        elements = 1
        for d in self.dims:
            elements *= x.shape[d]
        fits = x.dtype == torch.float64 or max(self.smooth, self.bce_weight) <= STEEPEST
        return elements > 1 and x.numel() > 0 and fits

    def settings(self) -> list[Any]:
        """Returns the operator's arguments after the tensors."""
        return [self.dims, self.reduction, self.dtype, self.smooth, self.bce_weight]


def run(loss: Dice, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Computes the loss: by kernels, or by the formula."""
    if not (target.requires_grad and torch.is_grad_enabled()):
        runner = _select(input, target, opaque=True)
        if runner == "compiled":
            return OPERATORS.forward(input, target, *loss.settings())[0]  # type: ignore[no-any-return]
        if runner != "aten" and loss.kernel_takes(input):
            return DiceFunction.apply(loss, runner, input, target)  # type: ignore[no-any-return]
    checks.check_mask(loss, target)
    return loss.formula(keeping_strides(input), target)


def _select(x: torch.Tensor, target: torch.Tensor, *grads: torch.Tensor, opaque: bool = False) -> Runner:
    if target.is_floating_point():
        return _backend.select(x, target, beside=grads, opaque=opaque)
    return _backend.select(x, beside=(target, *grads), opaque=opaque)


class DiceFunction(Function):
    """Saves the tensors and the sums, of which backward computes the gradient in one more pass.

    Only the logits get a gradient: the formula gives one to a target.
    """

    @staticmethod
    @once
    def passes(runner: Runner) -> Passes:
        """Returns functions of a loss and its tensors; kernels are imported when the first tensor needs them."""
        if runner == "operator":
            return Passes(_call_forward, _call_backward)
        from sigtorch.kernels.losses import dice_backward

        return Passes(_forward_of_kernels, dice_backward)

    @staticmethod
    def forward(ctx: Any, loss: Dice, runner: Runner, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ctx.loss, ctx.runner = loss, runner
        value, sums = DiceFunction.passes(runner).forward(loss, x, target)
        ctx.save_for_backward(marker(OP), x, target, sums)
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        loss, (x, target, sums) = ctx.loss, saved(ctx, OP)
        runner = backward_runner(ctx.runner, grad, x, target, sums)
        if runner == "aten":
            (grad_x,) = formula_grads([True], lambda x: loss.formula(x, target), (x,), grad)
        else:
            grad_x = DiceFunction.passes(runner).backward(loss, grad, x, target, sums)
        return None, None, grad_x, None


def _forward_of_kernels(loss: Dice, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from sigtorch.kernels.losses import dice_sums

    sums = dice_sums(loss, x, target)
    return loss.of_sums(x, *sums.unbind()), sums


def _call_forward(loss: Dice, x: torch.Tensor, target: torch.Tensor) -> Any:
    return OPERATORS.forward(x, target, *loss.settings())


def _call_backward(loss: Dice, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, sums: torch.Tensor) -> Any:
    return OPERATORS.backward(grad, x, target, sums, *loss.settings())


# The operators: bodies, results without data, and autograd.


def _checked(
    where: str, x: torch.Tensor, target: torch.Tensor, dims: Sequence[int], reduction: str, dtype: torch.dtype,
    smooth: float, bce_weight: float,
) -> Dice:  # fmt: skip
    """Refuses what the public function refuses, for operators have other callers too."""
    checks.check_reduction(where, reduction)
    checks.check_setting(where, "smooth", smooth)
    checks.check_setting(where, "bce_weight", bce_weight)
    checks.check_dense_target(where, ("input", "target"), x, target, "bool or uint8")
    dims = _checks.check_dims(where, dims, "input", x)
    return Dice(dims=dims, reduction=reduction, dtype=dtype, smooth=smooth, bce_weight=bce_weight)


def _forward(x: torch.Tensor, target: torch.Tensor, *settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = _checked(f"torch.ops.sigtorch.{OP}", x, target, *settings)
    if loss.kernel_takes(x) and _select(x, target) != "aten":
        return _forward_of_kernels(loss, x, target)
    checks.check_mask(loss, target)
    sums = loss.sums(x, target)
    return loss.of_sums(x, *sums), torch.stack(sums)


def _forward_meta(x: torch.Tensor, target: torch.Tensor, *settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = _checked(f"torch.ops.sigtorch.{OP}", x, target, *settings)
    shape = loss.shape_of_sums(x)
    kept = [size for d, size in enumerate(shape) if d not in loss.dims]
    sums = x.new_empty([3 if loss.bce_weight else 2, *shape], dtype=wide(x.dtype, loss.dtype))
    return x.new_empty(kept if loss.reduction == "none" else [], dtype=loss.dtype), sums


def _backward(
    grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, sums: torch.Tensor, *settings: Any
) -> torch.Tensor:
    where = f"torch.ops.sigtorch.{OP}_backward"
    loss = _checked(where, x, target, *settings)
    checks.check_sums(where, sums, [3 if loss.bce_weight else 2, *loss.shape_of_sums(x)])
    if loss.kernel_takes(x) and _select(x, target, grad, sums) != "aten":
        from sigtorch.kernels.losses import dice_backward

        grad_x: Any = dice_backward(loss, grad, x, target, sums)
    else:
        with _operators.differentiable():
            (grad_x,) = formula_grads([True], lambda x: loss.formula(x, target), (x,), grad)
    return _operators.laid_out(x, grad_x)


def _save(ctx: Any, args: Sequence[Any], results: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, target, dims, reduction, dtype, smooth, bce_weight = args
    ctx.loss = Dice(dims=tuple(dims), reduction=reduction, dtype=dtype, smooth=smooth, bce_weight=bce_weight)
    _, sums = results
    ctx.save_for_backward(x, target, sums)
    ctx.mark_non_differentiable(sums)


def _differentiate(ctx: Any, grad: torch.Tensor, *_: Any) -> Sequence[torch.Tensor | None]:
    loss, (x, target, sums), (need, target_needs, *rest) = ctx.loss, ctx.saved_tensors, ctx.needs
    if torch.is_grad_enabled() or target_needs:
        grads = formula_grads([need, target_needs], loss.formula, (x, target), grad)
    else:
        grads = [_call_backward(loss, grad, x, target, sums), None]
    return *grads, *[None] * len(rest)


OPERATORS = Passes(
    _operators.define(
        OP, f"(Tensor input, Tensor target, {SETTINGS}) -> (Tensor loss, Tensor sums)", _forward, _forward_meta,
        _operators.Gradient(_save, _differentiate),
    ),
    _operators.define(
        f"{OP}_backward", f"(Tensor grad, Tensor input, Tensor target, Tensor sums, {SETTINGS}) -> Tensor", _backward,
        lambda grad, x, *_: torch.empty_like(x),
    ),
)  # fmt: skip


def sigmoid_dice_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    smooth: float = 1.0,
    dims: int | Sequence[int] | None = None,
    reduction: Reduction = "mean",
    *,
    bce_weight: float = 0.0,
) -> torch.Tensor:
    r"""Computes the dice loss of logits, which measures how little sigmoids and targets overlap, as of a segmented image.

    .. math:: \ell = 1 - \frac{2 \sum \sigma(x) \, t + \mathrm{smooth}}{\sum \sigma(x) + \sum t + \mathrm{smooth}}

    The sums are over ``dims``. Each index of the other dimensions has a loss of its own, which ``reduction`` reduces. Kernels
    read input and target once forward and once backward, and add in one order: two runs agree to the last bit. Nothing cancels,
    so small losses keep their digits. ``docs/losses.md`` has the table of targets, and of what is checked where.

    Args:
        input: logits x of any shape, of 16, 32 or 64 bits floating.
        target: t, dense (floating or bool) or a mask (uint8 of 0 and 1), of input's shape.
        smooth: a number of at least 0, added above and below the fraction. With 0, sums that are all 0 give NaN.
        dims: the dimensions to sum over, one or several. By default all but the first two, ``(N, C)``: a loss for each class
            of each sample. ``(0, 2, 3)`` gives images a loss for each class of the batch.
        reduction: ``"mean"`` or ``"sum"`` of the losses, or ``"none"``.
        bce_weight: a number of at least 0, by which the mean binary cross-entropy is multiplied and added. With ``"none"``
            each loss gets the mean over the elements of its own sums, so that ``"mean"`` adds the mean over all elements.

    Returns:
        A scalar, or for ``"none"`` a tensor of the shape of the dimensions that are not summed over. The dtype is a floating
        target's, else input's; float32 for half types under autocast. Input and target can have a gradient.

    Raises:
        TypeError: an argument that is no tensor or no number, or has another dtype; class indices.
        ValueError: a shape that does not fit, a number out of range, a dimension that input lacks or that is named twice, no
            dims for an input of fewer than three dimensions, several devices, an unknown reduction; on a CPU also a mask out
            of range.

    Example:
        >>> x, target = torch.tensor([[2.0, -1.0], [0.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])
        >>> sigtorch.sigmoid_dice_loss(x, target.bool(), dims=-1)
        tensor(0.1806)
        >>> sigtorch.sigmoid_dice_loss(x, target.bool(), dims=-1, reduction="none", bce_weight=0.5)
        tensor([0.2333, 0.4896])

    Source:
        Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation", 2016, with
        squares below the fraction; as here in Drozdzal et al., "The Importance of Skip Connections in Biomedical Image
        Segmentation", 2016.
    """
    where = f"{OP}()"
    smooth = checks.check_setting(where, "smooth", smooth)
    bce_weight = checks.check_setting(where, "bce_weight", bce_weight)
    if not checks.is_common(input, target, reduction) or target.dtype == torch.int64:
        checks.check_dense_call(where, {"input": input, "target": target}, reduction)
    dims = _checks.check_dims(where, dims, "input", input)
    dtype = result_dtype(input, target)
    return run(Dice(dims=dims, reduction=reduction, dtype=dtype, smooth=smooth, bce_weight=bce_weight), input, target)


# One call in what torch.fx traces: a loss looks at its tensors, and a proxy has none.
torch.fx.wrap("sigmoid_dice_loss")


class SigmoidDiceLoss(torch.nn.Module):
    """:func:`sigtorch.sigmoid_dice_loss` as a module.

    Args:
        smooth: a number of at least 0 above and below the fraction.
        dims: the dimensions to sum over, one or several; all but the first two by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        bce_weight: a number of at least 0, times which the mean binary cross-entropy is added.

    Raises:
        TypeError: a smooth, bce_weight or dims that is no number.
        ValueError: an unknown reduction, a number out of range, empty dims.

    Example:
        >>> loss = sigtorch.nn.SigmoidDiceLoss(bce_weight=1.0)
        >>> loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
        tensor(1.0131)
    """

    def __init__(
        self,
        smooth: float = 1.0,
        dims: int | Sequence[int] | None = None,
        reduction: Reduction = "mean",
        *,
        bce_weight: float = 0.0,
    ) -> None:
        super().__init__()
        where = "SigmoidDiceLoss()"
        checks.check_reduction(where, reduction)
        self.smooth = checks.check_setting(where, "smooth", smooth)
        self.dims = None if dims is None else _checks.check_whole_dims(where, dims)
        self.reduction: Reduction = reduction
        self.bce_weight = checks.check_setting(where, "bce_weight", bce_weight)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss: a scalar, or for ``"none"`` a tensor of the shape of the dimensions not summed over."""
        return sigmoid_dice_loss(input, target, self.smooth, self.dims, self.reduction, bce_weight=self.bce_weight)

    def extra_repr(self) -> str:
        return _checks.shown(smooth=self.smooth, dims=self.dims, reduction=self.reduction, bce_weight=self.bce_weight)
