"""Runs a loss whose arguments are checked: the Function over kernels, PyTorch's own arithmetic, or the formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from sigtorch import _backend, _eligible
from sigtorch._autograd import backward_runner, formula_grads, marker, saved, with_strides_of
from sigtorch._backend import Runner
from sigtorch._once import once
from sigtorch.ops.losses import checks, gradient, operators
from sigtorch.ops.losses.gradient import Implementation
from sigtorch.ops.losses.loss import Factors, Loss


def run(loss: Loss, input: torch.Tensor, target: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Computes the loss."""
    given = [t for t in (target, *factors) if t is not None]
    differentiated = _differentiated(loss, given)
    # Modes that observe change nothing here, nor do kernels that refuse: a checkpoint's recompute has to save what forward
    # did, and other tensors of the same shapes would give wrong gradients.
    serves = _eligible.on_cpu(input, *given) and loss.eager_serves(differentiated, *given)
    if not serves or _backend.kernels_chosen():
        floating = [t for t in given if t.is_floating_point()]
        beside = [t for t in given if not t.is_floating_point()]
        runner = _backend.select(input, *floating, beside=beside, opaque=True)
        if runner != "aten" and not differentiated and (runner == "compiled" or loss.kernel_takes(input, target)):
            return _fused(loss, runner, input, target, factors)
    checks.check_values(loss, input, target)
    if serves:
        return loss.eager(input if loss.EAGER_KEEPS_STRIDES else keeping_strides(input), target, factors)
    return loss.formula(keeping_strides(input), target, factors)


def run_without_options(
    kind: type[Loss], input: torch.Tensor, target: torch.Tensor, reduction: str, **numbers: Any
) -> torch.Tensor:
    """Checks the tensors, and computes a loss that has no weights and no indices of its own; its numbers are checked."""
    if not checks.is_common(input, target, reduction):
        checks.check_call(f"{kind.function}()", {kind.input_name: input, kind.target_name: target}, reduction)
    loss = kind(reduction=reduction, dtype=result_dtype(input, target), **numbers)
    return run(loss, input, target, Factors())


def result_dtype(input: torch.Tensor, target: torch.Tensor) -> torch.dtype:
    """Returns the dtype of PyTorch's result: the target's, if that is floating."""
    dtype = target.dtype if target.is_floating_point() else input.dtype
    if dtype in _eligible.HALF_DTYPES and _eligible.autocasts(input.device.type):
        return torch.float32
    return dtype


def number(value: Any) -> Any:
    """Returns a Python number, or the tensor itself where its value is differentiated, transformed or traced."""
    if isinstance(value, torch.Tensor):
        differentiated = value.requires_grad and torch.is_grad_enabled()
        return value if differentiated or not _eligible.readable(value) else float(value)
    return torch.sym_float(value)


def _differentiated(loss: Loss, given: Sequence[torch.Tensor]) -> bool:
    """Tells whether more than the logits wants a gradient, or a number is transformed or traced."""
    for value in loss.numbers():
        if isinstance(value, torch.Tensor):
            return True
    if torch.is_grad_enabled():
        for t in given:
            if t.requires_grad:
                return True
    return False


def _fused(loss: Loss, runner: Runner, input: torch.Tensor, target: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Computes the loss; kernels read the classes along the last dimension of a view, without a copy."""
    dim = loss.dim
    if dim == -1 or target.dtype != torch.int64:
        return _apply(loss, runner, input, target, factors)
    weight, pos_weight = (_classes_last(w, dim, input.dim()) for w in (factors.weight, factors.pos_weight))
    loss.dim = -1  # an object of this call alone
    out = _apply(loss, runner, input.movedim(dim, -1), target, Factors(weight, pos_weight, factors.normalizer))
    return out.movedim(-1, dim) if loss.reduction == "none" else out


def _apply(loss: Loss, runner: Runner, input: torch.Tensor, target: torch.Tensor, factors: Factors) -> torch.Tensor:
    loss.with_gradient = gradient.is_wanted(loss, input)
    if runner == "compiled":
        if loss.divisor is not None:  # changes from batch to batch; a number given to an operator is compiled anew
            # A product, which is the one way to a tensor that PyTorch keeps dynamic.
            divisor = torch.ones((), dtype=loss.wide(input), device=input.device) * loss.divisor
            loss.divisor, factors = None, factors._replace(normalizer=divisor)
        return operators.forward(loss, input, target, *factors).value
    return LossFunction.apply(loss, runner, input, target, *factors)  # type: ignore[no-any-return]


def _classes_last(weight: torch.Tensor | None, dim: int, dims: int) -> torch.Tensor | None:
    """A view with as many dimensions as the logits have, the classes' as the last."""
    return None if weight is None else weight[(None,) * (dims - weight.dim())].movedim(dim, -1)


def keeping_strides(input: torch.Tensor) -> torch.Tensor:
    """The logits, in a view whose gradient by the formula gets their strides: operators give it those of any operand."""
    if not _eligible.readable(input) or not input.requires_grad or not torch.is_grad_enabled() or input.is_contiguous():
        return input
    view, like = input.view_as(input), input.detach()
    view.register_hook(lambda grad: with_strides_of(like, grad) if _eligible.readable(grad) else grad)
    return view


class LossFunction(Function):
    """Saves the loss' tensors, and its gradient if forward computes that.

    Only the logits get a gradient: the formula gives one to a target or a weight.
    """

    @staticmethod
    @once
    def implementation(runner: Runner) -> Implementation:
        """Returns the passes; kernels are imported when the first tensor needs them."""
        if runner == "operator":
            return operators.IMPLEMENTATION
        from sigtorch.kernels.losses import loss_backward, loss_forward, loss_scale

        return Implementation(loss_forward, loss_backward, loss_scale)

    @staticmethod
    def forward(
        ctx: Any,
        loss: Loss,
        runner: Runner,
        x: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        pos_weight: torch.Tensor | None,
        normalizer: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.loss, ctx.runner = loss, runner
        value, grad_x, divisor = LossFunction.implementation(runner).forward(
            loss, x, target, weight, pos_weight, normalizer
        )
        ctx.save_for_backward(marker(loss.function), x, target, weight, pos_weight, divisor, grad_x)
        gradient.keep(ctx, grad_x)
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        loss = ctx.loss
        x, target, *factors, kept = saved(ctx, loss.function)
        runner = backward_runner(ctx.runner, grad, *[t for t in (x, target, *factors, kept) if t is not None])
        grad_x: torch.Tensor | None
        if runner == "aten":
            (grad_x,) = formula_grads([True], lambda x: loss.formula(x, target, Factors(*factors)), (x,), grad)
        elif kept is None:
            grad_x = LossFunction.implementation(runner).backward(loss, grad, x, target, *factors)
        else:
            saving = gradient.Saved(x, target, Factors(*factors), kept)
            grad_x = gradient.scaled(ctx, LossFunction.implementation(runner), grad, saving)
        return None, None, grad_x, *[None] * (1 + len(factors))
