"""Parts that the autograd Functions share: how inputs are saved for backward, and which pass runs it.

A Function runs only on tensors that a fused pass takes. Its backward asks again: the formula computes a gradient that is
transformed or differentiated, and an operator one that a dispatch mode observes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function
from torch.utils.checkpoint import CheckpointError

from sigtorch import _checks, _eligible
from sigtorch._backend import Runner
from sigtorch._once import once


class Passes(NamedTuple):
    """The two passes of an operation, by what runs it. Backward returns a tuple."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def backward_runner(runner: Runner, grad: torch.Tensor, *saved: torch.Tensor) -> Runner:
    """Chooses what runs a backward pass: what ran forward, or its operator under a dispatch mode.

    It is the formula, "aten", if something differentiates or transforms the pass. The saved tensors were plain in forward; a
    hook may have replaced them since.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return "aten"
    if not _eligible.have_plain_keys((grad,)) or _eligible.transformed():
        return "aten"
    for t in saved:
        # Only one other kind of a plain type has memory that reads as another number: a tensor still to be negated.
        if type(t) not in _eligible.PLAIN_TYPES or t.is_neg():
            return "aten"
    return "operator" if _eligible.observed() else runner


MARKER_DIMS = 12  # more than users' tensors have
# All that save a marker; other operations are added when their Functions are defined.
MARKED = ["siglip_loss", "linear_binary_cross_entropy", "patched_functions"]


def register_op(op: str) -> None:
    """Gives an operation a marker of its own; several Functions of one operation share it."""
    if op not in MARKED:
        MARKED.append(op)


def unseen_by_hooks() -> bool:
    """Tells whether no saved-tensor hook sees what a Function saves here."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


@once
def marker(op: str) -> torch.Tensor:
    """Returns a tensor of 8 bytes that an operation saves first; its shape tells which of MARKED that is.

    Non-reentrant checkpointing hands saved tensors back by position. If the recompute takes another path than forward
    did, another shape comes back in this tensor's place. Its values are not compared, for a hook may quantize saved
    tensors. It holds two different ones, for a hook may divide by their range.
    """
    more_dims, place = divmod(MARKED.index(op), MARKER_DIMS)
    shape = [1] * (MARKER_DIMS + more_dims)
    shape[place] = 2
    with torch.inference_mode(False):
        return torch.arange(2.0, dtype=torch.float32, device="cpu").view(shape)


def saved(ctx: Any, op: str) -> list[torch.Tensor]:
    """Returns the tensors that forward saved after its marker; raises an error if others come back."""
    try:
        first, *tensors = ctx.saved_tensors
    except CheckpointError as error:
        raise _checks.error_recomputed(f"{op}()") from error
    expected = marker(op)
    if first is not expected and first.shape != expected.shape:  # a checkpoint returns another
        raise _checks.error_recomputed(f"{op}()")
    return tensors


def marked(x: torch.Tensor, op: str) -> torch.Tensor:
    """Returns x behind a marker, for the replacement of a function that a checkpoint may recompute by the original."""
    if not _eligible.readable(x) or torch._C._are_functorch_transforms_active():
        return x
    return Marked.apply(x, op)  # type: ignore[no-any-return]


class Marked(Function):
    """The identity, which saves a marker."""

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
    """Differentiates the formula at the saved inputs; the gradients are differentiable too if autograd is on."""
    if not any(needs):  # only a residual wants a gradient
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


def with_strides_of(t: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of t with t's strides, copied if it has others; unchanged if t is not dense."""
    if grad.stride() == t.stride() or not torch.ops.aten.is_non_overlapping_and_dense(t):
        return grad
    return torch.empty_like(t, dtype=grad.dtype, device=grad.device).copy_(grad)
