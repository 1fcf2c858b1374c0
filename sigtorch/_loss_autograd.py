"""The losses' autograd Function: it saves what the loss was given, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from sigtorch._autograd import formula_grads, fused, marker, passes_of, saved
from sigtorch._loss_formulas import Loss, formula


class LossFunction(Function):
    """Only the logits' gradient is wanted here: one for a target or a weight is the formula's."""

    @staticmethod
    def forward(
        ctx: Any, loss: Loss, backend: str, x: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None
    ) -> torch.Tensor:
        forward_pass, ctx.backward_pass = passes_of(backend, "losses", "loss")
        ctx.loss = loss
        ctx.save_for_backward(marker(loss.name), x, target, *others)
        return forward_pass(loss, x, target, *others)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *others = saved(ctx, ctx.loss.name)
        if fused(grad, x):
            grad_x = ctx.backward_pass(ctx.loss, grad, x, *others)
        else:
            (grad_x,) = formula_grads([True], lambda x: formula(ctx.loss, x, *others), (x,), grad)
        return None, None, grad_x, *[None] * len(others)
