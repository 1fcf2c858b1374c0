"""Parts that the autograd Functions share: how inputs are saved for backward, and which pass runs it.

A Function runs only where its forward's backend is a fused one. Its backward asks again: a gradient that something else
watches (a transform, a double backward) is the formula's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.utils.checkpoint import CheckpointError

from sigtorch import _backend, _checks
from sigtorch._once import once


@once
def passes_of(backend: str, family: str, op: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An operation's two passes; kernels are imported when the first tensor needs them."""
    module = importlib.import_module(f"sigtorch.{'cpu' if backend == 'cpu' else 'kernels'}.{family}")
    return getattr(module, f"{op}_forward"), getattr(module, f"{op}_backward")


def fused(grad: torch.Tensor, *saved: torch.Tensor) -> bool:
    """Whether a backward pass may run fused: nobody differentiates it, and nothing watches its tensors.

    What was saved was plain then; a hook may have made something else of it.
    """
    if torch.is_grad_enabled() or not _backend.plain(grad):
        return False
    for t in saved:  # noqa: SIM110, a generator costs more
        # Of all else that a plain type may be, only a tensor still to be negated has memory that reads as another number.
        if type(t) not in _backend.PLAIN_TYPES or t.is_neg():
            return False
    return True


MARKER_DIMS = 12  # more dimensions than users' tensors have; with those added below, no more than NumPy 1 knows
MARKED = (
    "sigmoid_from_input", "sigmoid_gate", "sigmoid_lerp", "glu", "swiglu", "swiglu_packed",
    "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "siglip_loss", "linear_binary_cross_entropy",
    "patched_functions",
)  # fmt: skip


@once
def marker(op: str) -> torch.Tensor:
    """A tensor of 8 bytes that an operation saves first; its number of dimensions tells which of MARKED that is.

    Non-reentrant checkpointing hands saved tensors back by position. Where the recompute takes another path than forward
    did, another shape comes back in this tensor's place. Its values are not looked at, for a hook may quantize what is
    saved. It holds two different ones, for a hook may divide by their range.
    """
    dims = MARKER_DIMS + MARKED.index(op)
    with torch.inference_mode(False):
        return torch.arange(2.0, dtype=torch.float32, device="cpu").view(2, *[1] * (dims - 1))


def saved(ctx: Any, op: str) -> list[torch.Tensor]:
    """The tensors that forward saved behind its marker; an error where others come back."""
    try:
        first, *tensors = ctx.saved_tensors
    except CheckpointError as error:
        raise _checks.recomputed(f"{op}()") from error
    mark = marker(op)
    if first is not mark and first.shape != mark.shape:  # a checkpoint hands out another
        raise _checks.recomputed(f"{op}()")
    return tensors


def marked(x: torch.Tensor, op: str) -> torch.Tensor:
    """x, behind a marker: for what stands in for another's function, which a checkpoint may recompute by that one."""
    if not _backend.readable(x) or torch._C._are_functorch_transforms_active():
        return x
    return Marked.apply(x, op)  # type: ignore[no-any-return]


class Marked(Function):
    """Changes nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, op: str) -> torch.Tensor:
        ctx.op = op
        ctx.save_for_backward(marker(op))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        saved(ctx, ctx.op)
        return grad, None


def formula_grads(
    needs: Sequence[bool], formula: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients by differentiating the formula at the saved inputs, themselves differentiable where that is asked for."""
    if not any(needs):  # as where only a residual wants one
        return [None] * len(inputs)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that one tensor given twice gets two gradients.
        views = [
            t.view_as(t) if create_graph else t.detach().requires_grad_(n) for t, n in zip(inputs, needs, strict=True)
        ]
        wanted = [v for v, n in zip(views, needs, strict=True) if n]
        grads = iter(torch.autograd.grad(formula(*views), wanted, grad, create_graph=create_graph))
    return [next(grads) if n else None for n in needs]


class FromInputs(Function):
    """Saves its input tensors behind a marker; a subclass names its passes, their tensors, and the formula they stand for.

    Called with the tensors, then what else the passes take, then the backend.
    """

    family: str
    op: str
    tensors: int
    formula: Callable[..., torch.Tensor]

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        cls = ctx._forward_cls
        *given, backend = args
        forward_pass, ctx.backward_pass = passes_of(backend, cls.family, cls.op)
        ctx.save_for_backward(marker(cls.op), *given[: cls.tensors])
        ctx.rest = given[cls.tensors :]
        return forward_pass(*given)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cls = ctx._forward_cls
        tensors = saved(ctx, cls.op)
        if fused(grad, *tensors):
            grads = ctx.backward_pass(grad, *tensors, *ctx.rest)
        else:
            needs = ctx.needs_input_grad[: cls.tensors]
            grads = formula_grads(needs, lambda *views: cls.formula(*views, *ctx.rest), tensors, grad)
        return *grads, *[None] * (len(ctx.rest) + 1)


def with_strides_of(t: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of t with t's strides, copied where it has others; as it is where t is not dense."""
    if grad.stride() == t.stride() or not torch.ops.aten.is_non_overlapping_and_dense(t):
        return grad
    return torch.empty_like(t, dtype=grad.dtype, device=grad.device).copy_(grad)
