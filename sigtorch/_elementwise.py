"""The elementwise operations that save their inputs: the base of their autograd Functions, which defines their operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import Function

from sigtorch import _operators
from sigtorch._autograd import Passes, backward_runner, formula_grads, marker, register_op, saved
from sigtorch._backend import Runner, select
from sigtorch._once import once


class FromInputs(Function):
    """Saves its input tensors behind a marker. A subclass is an operation: its formula, its passes and its operators.

    Called with the tensors, then the passes' other arguments, then what runs.
    """

    op: str  # the operator's name, and the marker's
    arguments: str  # of the forward operator, in its schema
    saved_arguments: str  # of the backward operator, after the gradient: all of these, unless a subclass names fewer
    tensor_count: int  # the first arguments, which are saved
    cpu_pass = False
    formula: Callable[..., torch.Tensor]
    passes_of: Callable[[Runner], Passes]  # imports "triton" or "cpu"
    operators: Passes

    def __init_subclass__(cls) -> None:
        cls.saved_arguments = getattr(cls, "saved_arguments", cls.arguments)
        register_op(cls.op)
        cls.operators = define_operators(cls)

    @classmethod
    @once
    def passes(cls, runner: Runner) -> Passes:
        """Returns the passes; kernels are imported when the first tensor needs them."""
        return cls.operators if runner == "operator" else cls.passes_of(runner)

    @staticmethod
    def check(*args: Any) -> None:
        """Raises a mistake in what an operator was called with, in place of the formula's own error: by default none."""

    @staticmethod
    def fuses(*args: Any) -> bool:
        """Tells whether the passes take these arguments: by default tensors whose shapes broadcast."""
        return _broadcast([a.shape for a in args if isinstance(a, torch.Tensor)])

    @staticmethod
    def lead(*args: Any) -> torch.Tensor:
        """Returns the tensor whose strides the result gets: by default the first of the largest."""
        return max([a for a in args if isinstance(a, torch.Tensor)], key=torch.Tensor.numel)

    @staticmethod
    def rest_grads(grad: torch.Tensor, *rest: Any) -> Sequence[torch.Tensor | None]:
        """Returns the gradients of the arguments after those that are saved: by default none."""
        return [None] * len(rest)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        cls = ctx._forward_cls
        *given, ctx.runner = args
        ctx.save_for_backward(marker(cls.op), *given[: cls.tensor_count])
        ctx.rest = given[cls.tensor_count :]
        return cls.passes(ctx.runner).forward(*given)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cls = ctx._forward_cls
        tensors = saved(ctx, cls.op)
        runner = backward_runner(ctx.runner, grad, *tensors)
        if runner != "aten":
            grads = cls.passes(runner).backward(grad, *tensors, *ctx.rest)
        else:
            needs = ctx.needs_input_grad[: cls.tensor_count]
            grads = formula_grads(needs, lambda *views: cls.formula(*views, *ctx.rest), tensors, grad)
        return *grads, *[None] * (len(ctx.rest) + 1)


def _broadcast(shapes: list[torch.Size]) -> bool:
    first = shapes[0]
    for shape in shapes:
        if shape != first:
            break
    else:  # the usual case
        return True
    sizes = itertools.zip_longest(*[reversed(shape) for shape in shapes], fillvalue=1)
    return all(len({1, *along_axis}) <= 2 for along_axis in sizes)


def define_operators(function: type[FromInputs]) -> Passes:
    """Defines the operators of an elementwise operation that saves its inputs."""
    bodies, gradients = Bodies(function), ", ".join(["Tensor"] * function.tensor_count)
    gradient = _operators.Gradient(bodies.save, bodies.differentiate)
    schema = f"(Tensor grad, {function.saved_arguments}) -> ({gradients})"
    return Passes(
        _operators.define(
            function.op, f"({function.arguments}) -> Tensor", bodies.forward, bodies.forward_meta, gradient
        ),
        in_tuple(_operators.define(f"{function.op}_backward", schema, bodies.backward, bodies.backward_meta)),
    )


class Bodies:
    """The bodies of an operation's operators, and their autograd."""

    def __init__(self, function: type[FromInputs]) -> None:
        self.function, self.count = function, function.tensor_count
        self.saved_count = len(function.saved_arguments.split(","))

    def forward(self, *args: Any) -> torch.Tensor:
        function, tensors = self.function, [a for a in args if isinstance(a, torch.Tensor)]
        function.check(*args)
        runner = self._runner(tensors) if function.fuses(*args) else "aten"
        out = function.formula(*args) if runner == "aten" else function.passes(runner).forward(*args)
        return _operators.laid_out(function.lead(*args), out)

    def forward_meta(self, *args: Any) -> torch.Tensor:
        out = self.function.formula(*args)
        return _operators.empty_like(self.function.lead(*args), out.shape, out.dtype)

    def backward(self, grad: torch.Tensor, *args: Any) -> Any:
        function, tensors, rest = self.function, args[: self.count], args[self.count :]
        function.check(*args)
        runner = self._runner((grad, *tensors)) if function.fuses(*args) else "aten"
        if runner != "aten":
            grads = function.passes(runner).backward(grad, *args)
        else:
            needs = [True] * self.count
            with _operators.differentiable():
                grads = formula_grads(needs, lambda *views: function.formula(*views, *rest), tensors, grad)
        return _unpacked(_operators.laid_out(_lead_of_grad(tensors, t), g) for t, g in zip(tensors, grads, strict=True))

    def backward_meta(self, grad: torch.Tensor, *args: Any) -> Any:
        tensors = args[: self.count]
        return _unpacked(_operators.empty_like(_lead_of_grad(tensors, t), t.shape, t.dtype) for t in tensors)

    def save(self, ctx: Any, args: Sequence[Any], out: torch.Tensor) -> None:
        ctx.save_for_backward(*args[: self.count])
        ctx.rest = args[self.count :]

    def differentiate(self, ctx: Any, grad: torch.Tensor) -> Sequence[torch.Tensor | None]:
        function, tensors = self.function, ctx.saved_tensors
        if torch.is_grad_enabled():
            needs = ctx.needs[: self.count]
            grads = formula_grads(needs, lambda *views: function.formula(*views, *ctx.rest), tensors, grad)
        else:
            grads = function.operators.backward(grad, *tensors, *ctx.rest[: self.saved_count - self.count])
        return *grads, *function.rest_grads(grad, *ctx.rest)

    def _runner(self, tensors: Sequence[torch.Tensor]) -> Runner:
        return select(*tensors, cpu_pass=self.function.cpu_pass)


def in_tuple(operator: Any) -> Callable[..., Any]:
    """Returns a backward operator that returns a tuple, as all backward passes do."""
    return operator if len(operator._schema.returns) > 1 else lambda *args: (operator(*args),)  # type: ignore[no-any-return]


def _lead_of_grad(tensors: Sequence[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    """Returns the tensor whose strides the gradient of t gets: the first of the operation's, if they have one shape."""
    first = tensors[0]
    return first if first.shape == t.shape else t


def _unpacked(grads: Iterable[torch.Tensor]) -> Any:
    """Returns the results of an operator: one tensor, or a tuple of several."""
    first, *others = grads
    return (first, *others) if others else first
