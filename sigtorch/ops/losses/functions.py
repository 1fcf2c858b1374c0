"""The public losses: checks, then the autograd Function over fused passes, or the formula."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _backend
from sigtorch._autograd import formula_grads, fused, marker, passes_of, saved, with_strides_of
from sigtorch._backend import HALF_DTYPES
from sigtorch.ops.losses import checks
from sigtorch.ops.losses.formulas import TINY, Loss, eager, formula


class _Spoken(NamedTuple):
    """How a user knows a loss, its target, and the index of no class."""

    where: str
    target: str
    background: str


SPOKEN = {
    "binary_cross_entropy_with_logits": _Spoken("binary_cross_entropy_with_logits()", "target", "{}"),
    "sigmoid_focal_loss": _Spoken("sigmoid_focal_loss()", "targets", "background_index={}"),
}


def binary_cross_entropy_with_logits(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    pos_weight: torch.Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    class_dim: int = -1,
    size_average: None = None,
    reduce: None = None,
) -> torch.Tensor:
    r"""Computes the binary cross-entropy of logits, as the function of that name in :mod:`torch.nn.functional` does.

    .. math:: \ell = w \left( -p\,t \log \sigma(x) - (1 - t) \log \sigma(-x) \right)

    in terms that do not cancel: in kernels and in the formula, float32 losses are right to 1e-6 of their value,
    however small, and half types are computed and summed in float32 and rounded once. Plain CPU tensors get PyTorch's
    own arithmetic. Every path adds in one order, so that two runs of it agree to the last bit. Two paths may not: a
    target that requires a gradient takes the formula, whose last bit is not always the kernel's.

    Args:
        input: logits x of any shape and floating dtype.
        target: t of input's shape, floating, bool, or uint8 of 0 and 1; or int64 class indices, of two classes or more,
            of the shape of input without its last dimension, or ``class_dim``, in which -1 and the number of classes mean
            no class.
        weight: w, broadcastable to input's shape.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: p, broadcastable to input's shape.
        label_smoothing: ε in [0, 1], which replaces t by t (1 - ε) + ε / 2.
        ignore_index: the target that is left out: elements of a dense target, 255 in a uint8 mask or -100 in a floating one,
            or rows of class indices, whatever else that index means. They add no loss and no gradient, whatever their logits
            are, infinity and NaN too, and ``"mean"`` divides by how many elements are left; where none is, it is 0.
            :func:`torch.nn.functional.cross_entropy` leaves such rows out of its value, but not NaN out of its gradient.
        class_dim: the dimension of input that class indices lack, as 1 where logits are (N, C, H, W) and indices (N, H, W).
            Kernels read it where it is, channels_last or not. Of no account to dense targets.
        size_average: not supported, give a reduction.
        reduce: not supported, give a reduction.

    Returns:
        A scalar, or a tensor of input's shape for ``"none"``, of the dtype of a floating target, else of input's; under
        autocast float32 for half types. Differentiable in input, target, weight, pos_weight and, where that is a 0-d
        tensor, label_smoothing.

    Raises:
        TypeError: what is no tensor, or of no dtype above, or no whole number where one is meant.
        ValueError: a shape or dimension that does not fit, an unknown reduction, a smoothing outside of [0, 1], a class index
            out of range, a uint8 above 1 that is not ignored. On a device other than the CPU, where looking would stall, in
            kernels, in compiled, traced or transformed code and in subclasses of tensors such an index makes its row's
            losses NaN, and such a uint8 its element's.

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, for the smoothing.
    """
    where = "binary_cross_entropy_with_logits()"
    plain = type(label_smoothing) is float and label_smoothing == 0 and size_average is None and reduce is None
    plain = plain and ignore_index is None and type(class_dim) is int and class_dim == -1
    eagerly = plain and _backend.on_cpu(input, target) and not _backend.kernels_chosen()
    if eagerly and input.is_floating_point() and target.is_floating_point():
        try:  # PyTorch's own, first: what is right costs no check
            return F.binary_cross_entropy_with_logits(input, target, weight, None, None, reduction, pos_weight)
        except (RuntimeError, TypeError, ValueError):
            pass  # what is wrong is said below
    if not plain or not checks.right(input, target, reduction, weight, pos_weight):
        checks.legacy(where, size_average, reduce)
        checks.reduction(reduction, where)
        checks.label_smoothing(label_smoothing, where)
        numbers = {"label_smoothing": label_smoothing}
        tensors = {"weight": weight, "pos_weight": pos_weight}
        ignore_index = checks.ignore_index(ignore_index, where)
        class_dim = _check_tensors(where, ("input", "target"), input, target, class_dim, numbers, **tensors)
        ignore_index = checks.ignorable(ignore_index, target.dtype)
        label_smoothing = _number(label_smoothing)
    loss = Loss(
        "binary_cross_entropy_with_logits", reduction, _dtype(input, target), class_dim,
        ignore_index=ignore_index, label_smoothing=label_smoothing,
    )  # fmt: skip
    return _run(loss, input, target, weight, pos_weight, None)


def sigmoid_focal_loss(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    weight: torch.Tensor | None = None,
    normalizer: float | torch.Tensor | None = None,
    background_index: int = -1,
    pos_weight: torch.Tensor | None = None,
    ignore_index: int | None = None,
    class_dim: int = -1,
) -> torch.Tensor:
    r"""Computes the focal loss of logits, as torchvision's ``sigmoid_focal_loss`` does.

    .. math:: \ell = w\, \alpha_t\, (1 - p_t)^\gamma \left( -p\,t \log \sigma(x) - (1 - t) \log \sigma(-x) \right)

    with :math:`p_t = t\,\sigma(x) + (1 - t)\,\sigma(-x)` and :math:`\alpha_t = \alpha t + (1 - \alpha)(1 - t)`, in
    terms that do not cancel: in kernels and in the formula, float32 losses are right to 1e-5 of their value,
    however small, and half types are computed and summed in float32 and rounded once. Plain CPU tensors get PyTorch's
    own arithmetic. Every path adds in one order, so that two runs of it agree to the last bit. Two paths may not: a
    target that requires a gradient takes the formula, whose last bit is not always the kernel's.

    Args:
        inputs: logits x of any shape and floating dtype.
        targets: t of inputs' shape, floating, bool, or uint8 of 0 and 1; or int64 class indices, of two classes or more,
            of the shape of inputs without its last dimension, or ``class_dim``, in which ``background_index`` and the number
            of classes mean no class.
        alpha: weight of the positive class in [0, 1], or -1 for none.
        gamma: how much less an easy element counts, at least 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: w, broadcastable to inputs' shape.
        normalizer: a positive number or 0-d tensor that divides the result of ``"none"`` or ``"sum"``, such as a
            detector's number of positives. A tensor's value is not looked at on a device other than the CPU.
        background_index: the class index that means no class.
        pos_weight: p, broadcastable to inputs' shape, which the positive class counts in the cross-entropy inside.
        ignore_index: the target that is left out: elements of a dense target, 255 in a uint8 mask or -100 in a floating one,
            or rows of class indices, whatever else that index means. They add no loss and no gradient, whatever their logits
            are, infinity and NaN too, and ``"mean"`` divides by how many elements are left; where none is, it is 0.
            :func:`torch.nn.functional.cross_entropy` leaves such rows out of its value, but not NaN out of its gradient.
        class_dim: the dimension of inputs that class indices lack, as 1 where logits are (N, C, H, W) and indices (N, H, W).
            Kernels read it where it is, channels_last or not. Of no account to dense targets.

    Returns:
        A scalar, or a tensor of inputs' shape for ``"none"``, of the dtype of floating targets, else of inputs'; under
        autocast float32 for half types. Differentiable in all of its tensors, 0-d ones for alpha and gamma too.

    Raises:
        TypeError: what is no tensor, or of no dtype above, or no whole number where one is meant.
        ValueError: a shape or dimension that does not fit, an unknown reduction, an alpha, gamma or normalizer out of range,
            a normalizer with ``"mean"``, an ignore_index of class indices that is the background_index, a class index out of
            range, a uint8 above 1 that is not ignored. On a device other than the CPU, where looking would stall, in kernels,
            in compiled, traced or transformed code and in subclasses of tensors such an index makes its row's losses NaN, and
            such a uint8 its element's.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """
    where = "sigmoid_focal_loss()"
    numbers_right = checks.right_numbers(alpha, gamma, background_index, normalizer, reduction)
    plain = ignore_index is None and type(class_dim) is int and class_dim == -1
    if not plain or not numbers_right or not checks.right(inputs, targets, reduction, weight, pos_weight):
        checks.reduction(reduction, where)
        background_index = checks.focal(alpha, gamma, background_index, where)
        checks.normalizer(normalizer, reduction, where)
        numbers = {"alpha": alpha, "gamma": gamma, "normalizer": normalizer}
        tensors = {"weight": weight, "pos_weight": pos_weight}
        ignore_index = checks.ignore_index(ignore_index, where)
        class_dim = _check_tensors(where, ("inputs", "targets"), inputs, targets, class_dim, numbers, **tensors)
        checks.apart(where, targets, background_index, ignore_index)
        ignore_index = checks.ignorable(ignore_index, targets.dtype)
        alpha, gamma = _number(alpha), _number(gamma)
    divisor = normalizer if isinstance(normalizer, torch.Tensor) else None
    number = None if normalizer is None or divisor is not None else _number(normalizer)
    loss = Loss(
        "sigmoid_focal_loss", reduction, _dtype(inputs, targets), class_dim, background_index, ignore_index,
        alpha=alpha, gamma=gamma, normalizer=number,
    )  # fmt: skip
    if divisor is not None and not divisor.is_floating_point():  # a count
        divisor = divisor.to(loss.wide(inputs))
    return _run(loss, inputs, targets, weight, pos_weight, divisor)


def _check_tensors(
    where: str,
    names: tuple[str, str],
    input: torch.Tensor,
    target: torch.Tensor,
    class_dim: Any,
    numbers: dict[str, Any],
    **weights: torch.Tensor | None,
) -> int:
    """Gives class_dim as Python's number, -1 for the last dimension."""
    given = {name: t for name, t in weights.items() if t is not None}
    scalars = {name: t for name, t in numbers.items() if isinstance(t, torch.Tensor)}
    checks.tensors(where, **dict(zip(names, (input, target), strict=True)), **given, **scalars)
    class_dim = checks.class_dim(class_dim, where, names[0], input)
    checks.target(where, names, input, target, class_dim)
    checks.broadcasts(where, input, **given)
    return class_dim


def _number(value: Any) -> Any:
    """Python's, or a tensor as it is where its value is differentiated, transformed or traced."""
    if isinstance(value, torch.Tensor):
        differentiated = value.requires_grad and torch.is_grad_enabled()
        return value if differentiated or not _backend.readable(value) else float(value)
    return torch.sym_float(value)


def _dtype(input: torch.Tensor, target: torch.Tensor) -> torch.dtype:
    """PyTorch's result has the target's dtype, where a target has one that can."""
    dtype = target.dtype if target.is_floating_point() else input.dtype
    if dtype in HALF_DTYPES and _backend.autocasts(input.device.type):
        return torch.float32
    return dtype


def _run(loss: Loss, input: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
    """The others are weight, pos_weight and normalizer."""
    given = [t for t in (target, *others) if t is not None]
    serves = _eager_serves(loss, input, target, given)
    if not serves or _backend.kernels_chosen():
        floating = [t for t in given if t.is_floating_point()]
        backend = _backend.select(input, *floating, beside=[t for t in given if not t.is_floating_point()])
        if backend != "formula" and _fused(loss, input, target, given):
            return _by_kernels(loss, backend, input, target, *others)
    _check_values(loss, input, target)
    if serves:
        return eager(loss, input, target, *others)
    return formula(loss, _keeping_strides(input), target, *others)


def _keeping_strides(input: torch.Tensor) -> torch.Tensor:
    """The logits, whose gradient by the formula has the strides of whatever operand PyTorch's operators put first."""
    if not _backend.readable(input) or not input.requires_grad or not torch.is_grad_enabled() or input.is_contiguous():
        return input
    view, like = input.view_as(input), input.detach()
    view.register_hook(lambda grad: with_strides_of(like, grad) if _backend.readable(grad) else grad)
    return view


def _check_values(loss: Loss, input: torch.Tensor, target: torch.Tensor) -> None:
    spoken = SPOKEN[loss.name]
    if loss.indexed(target):
        none = spoken.background.format(loss.background_index)
        count = input.shape[loss.class_dim]
        checks.classes(spoken.where, spoken.target, target, count, loss.background_index, loss.ignore_index, none)
    elif target.dtype == torch.uint8:
        checks.mask(spoken.where, spoken.target, target, loss.ignore_index)


def _by_kernels(
    loss: Loss,
    backend: str,
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    pos_weight: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> torch.Tensor:
    """The loss; kernels want the classes to be the last dimension of what they read, in whatever order it is stored."""
    dim = loss.class_dim
    if dim == -1 or not loss.indexed(target):
        return LossFunction.apply(loss, backend, input, target, weight, pos_weight, normalizer)  # type: ignore[no-any-return]
    weight, pos_weight = (_classes_last(w, dim, input.dim()) for w in (weight, pos_weight))
    last = loss._replace(class_dim=-1)
    out = LossFunction.apply(last, backend, input.movedim(dim, -1), target, weight, pos_weight, normalizer)
    return out.movedim(-1, dim) if loss.reduction == "none" else out  # type: ignore[no-any-return]


def _classes_last(weight: torch.Tensor | None, class_dim: int, dims: int) -> torch.Tensor | None:
    """A view with as many dimensions as the logits have, the classes' as the last."""
    return None if weight is None else weight[(None,) * (dims - weight.dim())].movedim(class_dim, -1)


def _eager_serves(loss: Loss, input: torch.Tensor, target: torch.Tensor, given: list[torch.Tensor]) -> bool:
    """Where PyTorch's own arithmetic takes the loss, and is what a CPU runs fastest: unless kernels are chosen and take it.

    Whoever watches changes nothing here, nor do kernels that refuse: a checkpoint's recompute has to save what forward did,
    and what saves other tensors of the same shapes would give wrong gradients.
    """
    return (
        _backend.on_cpu(input, *given)
        and (not _differentiated(loss, given) or _pytorchs(loss, *given))
        and not 0 < loss.gamma < 1  # infinitely steep where it is 0
        and (loss.normalizer is None or loss.normalizer >= TINY)
    )


def _pytorchs(loss: Loss, target: torch.Tensor, *weights: torch.Tensor) -> bool:
    """Whether PyTorch's own function computes the loss, with a gradient for the target but none for a weight."""
    plain = loss.name == "binary_cross_entropy_with_logits" and loss.ignore_index is None
    plain = plain and type(loss.label_smoothing) is float and loss.label_smoothing == 0
    return plain and target.is_floating_point() and not any(w.requires_grad for w in weights)


def _fused(loss: Loss, input: torch.Tensor, target: torch.Tensor, given: list[torch.Tensor]) -> bool:
    """Whether the kernels take this call."""
    if not input.numel() or _differentiated(loss, given):
        return False
    if loss.normalizer is not None and loss.normalizer < TINY and input.dtype != torch.float64:
        return False  # its inverse is more than float32 holds
    # Compared in float32.
    if loss.ignore_index is not None and abs(loss.ignore_index) >= 2**24 and input.dtype != torch.float64:
        return False
    return not loss.indexed(target) or max(input.shape[loss.class_dim], abs(loss.background_index)) < 2**24


def _differentiated(loss: Loss, given: list[torch.Tensor]) -> bool:
    """Whether anything but the logits wants a gradient, or is looked at by something else."""
    for number in (loss.label_smoothing, loss.alpha, loss.gamma):
        if isinstance(number, torch.Tensor):
            return True
    if torch.is_grad_enabled():
        for t in given:
            if t.requires_grad:
                return True
    return False


class LossFunction(Function):
    """Saves what the loss was given. Only the logits' gradient is wanted: one for a target or a weight is the formula's."""

    @staticmethod
    def forward(
        ctx: Any, loss: Loss, backend: str, x: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None
    ) -> torch.Tensor:
        forward_pass, ctx.backward_pass = passes_of(backend, "losses", "loss")
        ctx.loss = loss
        out, normalizer = forward_pass(loss, x, target, *others)
        ctx.save_for_backward(marker(loss.name), x, target, *others[:2], normalizer)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *others = saved(ctx, ctx.loss.name)
        if fused(grad, x, *[t for t in others if t is not None]):
            grad_x = ctx.backward_pass(ctx.loss, grad, x, *others)
        else:
            (grad_x,) = formula_grads([True], lambda x: formula(ctx.loss, x, *others), (x,), grad)
        return None, None, grad_x, *[None] * len(others)
