"""The losses' operators. Classes are the last dimension of the logits; ``forward`` and ``backward`` call them for a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sigtorch import _operators
from sigtorch._autograd import Passes, formula_grads
from sigtorch._backend import Runner, select
from sigtorch.ops.losses import checks
from sigtorch.ops.losses.gradient import Implementation, Saved, keep, scaled
from sigtorch.ops.losses.loss import Factors, Loss

# The loss; its gradient, empty if not asked for; and the count of a mean that ignores elements, empty for any other.
RESULTS = "(Tensor loss, Tensor gradient, Tensor count)"


class Result(NamedTuple):
    """A forward pass' results."""

    value: torch.Tensor
    gradient: torch.Tensor | None
    normalizer: torch.Tensor | None  # of backward: the count, if the loss counts


def forward(loss: Loss, x: torch.Tensor, target: torch.Tensor, *factors: torch.Tensor | None) -> Result:
    """Calls a loss' operator."""
    given = *factors[: len(loss.FACTORS)], *loss.settings()
    value, gradient, count = loss.operators.forward(x, target, *given, loss.with_gradient)
    normalizer = count if loss.counts else Factors(*factors).normalizer
    return Result(value, gradient if loss.with_gradient else None, normalizer)


def backward(
    loss: Loss, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, *factors: torch.Tensor | None
) -> torch.Tensor:
    """Calls the operator of a loss' gradient."""
    given = *factors[: len(loss.FACTORS)], *loss.settings()
    return loss.operators.backward(grad, x, target, *given)  # type: ignore[no-any-return]


def _scale(gradient: torch.Tensor, grad: torch.Tensor, count: torch.Tensor | None) -> None:
    """Multiplies a gradient from forward by the incoming one, and divides it by a count, in place."""
    checks.check_scaled("torch.ops.sigtorch.scale_loss_gradient_", gradient, grad, count)
    scalars = [grad] if count is None else [grad, count]
    if select(gradient, beside=scalars) == "aten":
        factor = grad if count is None else grad / count
        gradient.mul_(factor)
    else:
        from sigtorch.kernels.losses import loss_scale

        loss_scale(gradient, grad, count)
        torch.autograd.graph.increment_version(gradient)  # as a write by PyTorch's operators does


SCALE = _operators.define(
    "scale_loss_gradient_",
    "(Tensor(a!) gradient, Tensor grad, Tensor? count) -> ()",
    _scale,
    lambda gradient, grad, count: None,
)
IMPLEMENTATION = Implementation(forward, backward, SCALE)


def define(kind: type[Loss]) -> None:
    """Defines the operators of a loss."""
    types = {"input": "Tensor", "target": "Tensor", **dict.fromkeys(kind.FACTORS, "Tensor?"), **kind.SETTINGS}
    schema = ", ".join(f"{type_} {name}" for name, type_ in types.items())
    name, bodies = kind.function, Bodies(kind)
    gradient = _operators.Gradient(bodies.save, bodies.differentiate)
    kind.operators = Passes(
        _operators.define(
            name, f"({schema}, bool with_gradient) -> {RESULTS}", bodies.forward, bodies.forward_meta, gradient
        ),
        _operators.define(
            f"{name}_backward", f"(Tensor grad, {schema}) -> Tensor", bodies.backward, bodies.backward_meta
        ),
    )


class Bodies:
    """The bodies of a loss' operators, and their autograd."""

    def __init__(self, kind: type[Loss]) -> None:
        self.kind, self.where = kind, f"torch.ops.sigtorch.{kind.function}"

    def forward(self, x: torch.Tensor, target: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        loss, factors = self._parsed_with_gradient(rest)
        checks.check_operands(self.where, loss, x, target, factors)
        if loss.reduction == "mean" and (factors.normalizer is not None or loss.divisor is not None):
            raise checks.error_mean_divided(self.where)
        if _runner(loss, x, target, factors) == "aten":
            checks.check_values(loss, x, target)
            computed: Any = _computed(loss, x, target, factors)
        else:
            from sigtorch.kernels.losses import loss_forward

            computed = loss_forward(loss, x, target, *factors)
        value, gradient, count = computed
        if loss.reduction == "none":
            value = _operators.laid_out(x, value)
        gradient = x.new_empty(0) if gradient is None else _operators.laid_out(x, gradient)
        return value, gradient, count.to(_count_dtype(x)) if loss.counts else x.new_empty(0)

    def forward_meta(self, x: torch.Tensor, target: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        loss, _ = self._parsed_with_gradient(rest)
        value = torch.empty_like(x, dtype=loss.dtype) if loss.reduction == "none" else x.new_empty((), dtype=loss.dtype)
        gradient = torch.empty_like(x) if loss.with_gradient else x.new_empty(0)
        return value, gradient, x.new_empty((), dtype=_count_dtype(x)) if loss.counts else x.new_empty(0)

    def backward(self, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, *rest: Any) -> torch.Tensor:
        loss, factors = self._parsed(rest)
        checks.check_operands(f"{self.where}_backward", loss, x, target, factors)
        if loss.counts and factors.normalizer is None:
            raise checks.error_no_count(f"{self.where}_backward")
        if _runner(loss, x, target, factors, grad) == "aten":
            with _operators.differentiable():
                (found,) = formula_grads([True], lambda x: loss.formula(x, target, factors), (x,), grad)
            grad_x: Any = found
        else:
            from sigtorch.kernels.losses import loss_backward

            grad_x = loss_backward(loss, grad, x, target, *factors)
        return _operators.laid_out(x, grad_x)

    def backward_meta(self, grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.empty_like(x)

    def save(self, ctx: Any, args: Sequence[Any], results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Keeps the gradient to itself: backward writes into it."""
        x, target, *rest = args
        loss, factors = self._parsed_with_gradient(rest)
        value, gradient, count = results
        if loss.counts:
            factors = factors._replace(normalizer=count)
        ctx.loss = loss
        given = factors[: len(self.kind.FACTORS)]
        ctx.save_for_backward(x, target, *given, gradient if loss.with_gradient else None)
        keep(ctx, gradient)
        hidden = x.new_empty(0)
        ctx.mark_non_differentiable(hidden, count)
        return value, hidden, count

    def differentiate(self, ctx: Any, grad: torch.Tensor, *_: Any) -> Sequence[torch.Tensor | None]:
        x, target, *factors, gradient = ctx.saved_tensors
        loss, (need, *needs) = ctx.loss, ctx.needs[: 2 + len(factors)]
        if torch.is_grad_enabled() or any(needs):
            grads = _formula_grads(loss, [need, *needs], (x, target, *factors), grad)
        elif gradient is None:
            grads = [backward(loss, grad, x, target, *factors), *[None] * len(needs)]
        else:
            kept = Saved(x, target, Factors(*factors), gradient)
            grads = [scaled(ctx, IMPLEMENTATION, grad, kept), *[None] * len(needs)]
        return *grads, *[None] * (len(self.kind.SETTINGS) + 1)

    def _parsed_with_gradient(self, rest: Sequence[Any]) -> tuple[Loss, Factors]:
        *rest, with_gradient = rest
        loss, factors = self._parsed(rest)
        loss.with_gradient = with_gradient and loss.reduction != "none"
        return loss, factors

    def _parsed(self, rest: Sequence[Any]) -> tuple[Loss, Factors]:
        """Splits the arguments after the target into the loss and its factors."""
        count = len(self.kind.FACTORS)
        settings = dict(zip(self.kind.SETTINGS, rest[count:], strict=True))
        return self.kind(**settings), Factors(*rest[:count])


def _computed(loss: Loss, x: torch.Tensor, target: torch.Tensor, factors: Factors) -> Result:
    """Computes the formula, and its gradient, if that is asked for; of a mean that ignores elements, times their count."""
    count = loss.count(x, target) if loss.counts else None
    gradient: torch.Tensor | None = None
    if loss.with_gradient:
        summed = dataclasses.replace(loss, reduction="sum") if loss.counts else loss
        one = torch.ones((), dtype=loss.dtype, device=x.device)
        with _operators.differentiable():
            (gradient,) = formula_grads([True], lambda x: summed.formula(x, target, factors), (x,), one)
    return Result(loss.formula(x, target, factors), gradient, count)


def _formula_grads(
    loss: Loss, needs: Sequence[bool], tensors: Sequence[torch.Tensor | None], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Differentiates the formula in all tensors that are given."""
    given = [t is not None for t in tensors]

    def formula(*some: torch.Tensor) -> torch.Tensor:
        left = iter(some)
        x, target, *factors = (next(left) if is_given else None for is_given in given)
        return loss.formula(x, target, Factors(*factors))  # type: ignore[arg-type]

    found = iter(formula_grads(
        [n for n, is_given in zip(needs, given, strict=True) if is_given], formula,
        [t for t in tensors if t is not None], grad,
    ))  # fmt: skip
    return [next(found) if is_given else None for is_given in given]


def _runner(loss: Loss, x: torch.Tensor, target: torch.Tensor, factors: Factors, *grads: torch.Tensor) -> Runner:
    given = [t for t in (target, *factors) if t is not None]
    if not loss.kernel_takes(x, target):
        return "aten"
    floating = [t for t in given if t.is_floating_point()]
    return select(x, *floating, beside=[*grads, *(t for t in given if not t.is_floating_point())])


def _count_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
