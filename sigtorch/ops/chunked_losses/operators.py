"""The operators of the losses in chunks: forward returns the gradients with the loss, and there is no backward operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from sigtorch import _operators
from sigtorch._backend import Runner, select
from sigtorch.ops.chunked_losses import checks
from sigtorch.ops.chunked_losses.function import Gradient, Result, saved_dtype
from sigtorch.ops.chunked_losses.products import Needs, Operands, has_units

SETTINGS = "ScalarType dtype, ScalarType product_dtype, int? chunk_size, bool[] needs_grad"
# Gradients are for an incoming gradient of 1; those of float16 matrices are in multiples of units. Empty where not needed.
RESULTS = (
    "(Tensor loss, Tensor grad_rows, Tensor grad_cols, Tensor grad_scale, Tensor grad_bias, "
    "Tensor row_units, Tensor col_units)"
)


def define(
    op: str, arguments: str, names: Sequence[str | None], run: Callable[..., Result], *, waits: bool
) -> torch._ops.OpOverload:
    """Defines the operator of a loss.

    Args:
        op: its name.
        arguments: the tensors and settings of its own in the schema, before those that all have.
        names: the arguments that are rows, columns, scale and bias; None for one that the loss lacks.
        run: computes the loss from the arguments.
        waits: whether it waits for the device.
    """
    every = [argument.split()[-1] for argument in f"{arguments}, {SETTINGS}".split(", ")]
    body = Body(op, every, names, run)
    schema = f"({arguments}, {SETTINGS}) -> {RESULTS}"
    gradient = _operators.Gradient(body.save, body.differentiate)
    return _operators.define(op, schema, body.forward, body.forward_meta, gradient, waits=waits)


class Body:
    """The body of a loss' operator, and its autograd."""

    def __init__(
        self, op: str, arguments: Sequence[str], names: Sequence[str | None], run: Callable[..., Result]
    ) -> None:
        self.op, self.arguments, self.names, self.run = op, arguments, names, run

    def forward(self, *args: Any) -> tuple[torch.Tensor, ...]:
        operands = self._operands(args)
        loss, gradients, _ = self.run(*args)
        rows = operands.rows
        values = [
            rows.new_empty(0) if g.values is None or t is None else _operators.laid_out(t, g.values)
            for t, g in zip(operands, gradients, strict=True)
        ]
        units = [rows.new_empty(0) if g.units is None else g.units for g in gradients[:2]]
        return loss, *values, *units

    def forward_meta(self, *args: Any) -> tuple[torch.Tensor, ...]:
        *_, dtype, _, _, needs = args
        operands, needs = self._operands(args), Needs(*needs)
        rows = operands.rows
        values = [
            torch.empty_like(t, dtype=saved_dtype(t)) if need and t is not None else rows.new_empty(0)
            for t, need in zip(operands, needs, strict=True)
        ]
        units = [
            t.new_empty((t.shape[0], 1), dtype=torch.float32) if need and has_units(t) else rows.new_empty(0)
            for t, need in ((operands.rows, needs.rows), (operands.cols, needs.cols))
        ]
        return rows.new_empty((), dtype=dtype), *values, *units

    def save(self, ctx: Any, args: Sequence[Any], results: Sequence[torch.Tensor]) -> None:
        *_, ctx.needs_grad = args
        _, *gradients = results
        ctx.like = [None if t is None else (t.device, t.dtype) for t in self._operands(args)]
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*gradients)

    def differentiate(self, ctx: Any, grad: torch.Tensor, *_: Any) -> Sequence[torch.Tensor | None]:
        if torch.is_grad_enabled():
            raise checks.error_twice(self.op)
        gradients = _gradients(ctx.saved_tensors, ctx.needs_grad)
        found = {}
        for name, gradient, like in zip(self.names, gradients, ctx.like, strict=True):
            value = gradient.times(grad)
            if value is not None:
                found[name] = value.to(*like)
        for name, needed in zip(self.arguments, ctx.needs, strict=True):
            if needed and name not in found:
                raise checks.error_not_needed(self.op, name)
        return [found.get(name) for name in self.arguments]

    def _operands(self, args: Sequence[Any]) -> Operands:
        given = dict(zip(self.arguments, args, strict=True))
        rows, cols, scale, bias = (None if name is None else given[name] for name in self.names)
        return Operands(rows, cols, scale, bias)  # type: ignore[arg-type]


def _gradients(results: Sequence[torch.Tensor], needs: Sequence[bool]) -> list[Gradient]:
    """Reads an operator's results after the loss."""
    count = len(Operands._fields)
    units = [*(u if u.numel() else None for u in results[count:]), None, None]
    return [Gradient(v, u) if need else Gradient() for v, u, need in zip(results, units, needs, strict=False)]


def call_observed(operator: Any, args: Sequence[Any], needs: Needs) -> Result:
    """Runs an operator that a dispatch mode sees; returns its results as the autograd Function saves them."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        registry = getattr(counter, "flop_registry", None)
        if registry is not None:  # a FLOP counter, which knows PyTorch's operators only
            registry.setdefault(operator.overloadpacket, _flops)
    loss, *others = operator(*args, needs)
    return Result(loss, _gradients(others, needs))


def _flops(*args: Any, **kwargs: Any) -> int:
    """Counts the operations of the matrix products: one for the logits, one for each gradient of a matrix."""
    first, second, *_, needs = args
    return 2 * first.shape[0] * second.shape[0] * first.shape[1] * (1 + needs[0] + needs[1])  # type: ignore[no-any-return]


def runner(rows: torch.Tensor, *others: torch.Tensor | None) -> Runner:
    """Chooses what runs the step between the products: PyTorch's operators where no kernel does."""
    beside = [t for t in others if t is not None and t.device == rows.device]
    return "triton" if select(rows, beside=beside, cpu_pass=True) == "triton" else "cpu"
