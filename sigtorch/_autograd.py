"""The autograd Functions: what is saved for backward, and which pass runs it.

A Function runs only where its forward's backend is a fused one. Its backward asks again: a gradient that something else
watches (a transform, a double backward) is the formula's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from sigtorch import _backend, formulas


def _passes(backend: str, family: str) -> Any:
    """The module that holds an operation's passes; kernels are imported when the first tensor needs them."""
    if backend == "cpu":
        from sigtorch import _cpu

        return _cpu
    import importlib

    return importlib.import_module(f"sigtorch.kernels.{family}")


def _fused(*tensors: torch.Tensor) -> bool:
    """Whether a backward pass may run fused: nobody differentiates it, and nothing watches its tensors."""
    return not torch.is_grad_enabled() and _backend.plain(*tensors)


def _formula_grads(
    ctx: Any, formula: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients by differentiating the formula at the saved inputs, themselves differentiable where that is asked for."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that one tensor given twice gets two gradients.
        views = [t.view_as(t) if create_graph else t.detach().requires_grad_(n) for t, n in zip(inputs, ctx.needs_input_grad)]
        wanted = [v for v, n in zip(views, ctx.needs_input_grad) if n]
        grads = iter(torch.autograd.grad(formula(*views), wanted, grad, create_graph=create_graph, allow_unused=True))
    return [next(grads) if n else None for n in ctx.needs_input_grad[: len(inputs)]]


class SigmoidFunction(Function):
    """Saves the output, as torch.sigmoid does: forward has computed all that backward needs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, backend: str) -> torch.Tensor:
        ctx.passes = _passes(backend, "sigmoid")
        s = ctx.passes.sigmoid_forward(x)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (s,) = ctx.saved_tensors
        if _fused(grad, s):
            return ctx.passes.sigmoid_backward(grad, s), None
        return torch.ops.aten.sigmoid_backward(grad, s), None


class SigmoidFromInputFunction(Function):
    """Saves the input: backward recomputes, and no 1 - s cancels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, backend: str) -> torch.Tensor:
        ctx.passes = _passes(backend, "sigmoid")
        ctx.save_for_backward(x)
        return ctx.passes.sigmoid_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if _fused(grad, x):
            return ctx.passes.sigmoid_backward_from_input(grad, x), None
        return *_formula_grads(ctx, formulas.sigmoid_from_input, (x,), grad), None
