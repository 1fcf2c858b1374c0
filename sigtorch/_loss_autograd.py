"""The losses' autograd Function: it saves what the loss was given, and nothing else."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch.autograd import Function

from sigtorch._autograd import _formula_grads, _fused, _passes
from sigtorch._loss_formulas import Loss, formula


class LossFunction(Function):
    """Only the logits' gradient is wanted here: one for a target or a weight is the formula's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        other: torch.Tensor | None,
        loss: Loss,
        backend: str,
    ) -> torch.Tensor:
        ctx.loss, ctx.backend = loss, backend
        ctx.save_for_backward(x, target, weight, other)
        return _pass(backend, f"{loss.name}_forward")(loss, x, target, weight, other)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        if _fused(grad, x):
            grad_x = _pass(ctx.backend, f"{ctx.loss.name}_backward")(ctx.loss, grad, x, *others)
        else:
            (grad_x,) = _formula_grads(ctx, lambda x: formula(ctx.loss, x, *others), (x,), grad)
        return grad_x, None, None, None, None, None


@functools.cache
def _pass(backend: str, name: str) -> Any:
    module = importlib.import_module("sigtorch._loss_cpu") if backend == "cpu" else _passes(backend, "losses")
    return getattr(module, name)
