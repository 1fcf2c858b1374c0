"""The autograd Function of sigmoid attention, and its operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from sigtorch import _operators
from sigtorch._autograd import Passes, backward_runner, marker, register_op, saved, with_strides_of
from sigtorch._backend import Runner, select
from sigtorch._once import once
from sigtorch.ops.attention import formula
from sigtorch.ops.attention.formula import Grads, Settings, Tensors, parts

OP = "sigmoid_attention"
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256  # numbers of a query, key or value that the kernels take
TENSORS = len(Tensors._fields)
DIFFERENTIABLE = len(Grads._fields)  # the first tensors
register_op(OP)


def fuses(tensors: Tensors) -> bool:
    """Tells whether the kernels take these."""
    query, value = tensors.query, tensors.value
    if tensors.mask is not None or query.dtype not in KERNEL_DTYPES:
        return False
    return 0 < query.shape[-1] <= LARGEST_HEAD and 0 < value.shape[-1] <= LARGEST_HEAD


class SigmoidAttentionFunction(Function):
    """Saves the tensors that it is given, and no weights."""

    @staticmethod
    @once
    def passes(runner: Runner) -> Passes:
        """Returns the passes; kernels are imported when the first tensor needs them."""
        if runner == "operator":
            return OPERATORS
        if runner == "triton":
            from sigtorch.kernels.attention import sigmoid_attention_backward, sigmoid_attention_forward

            return Passes(sigmoid_attention_forward, sigmoid_attention_backward)
        return Passes(formula.forward, formula.backward)  # the same on every device

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        *given, ctx.runner = args
        tensors, ctx.settings = parts(tuple(given))
        ctx.given = [t is not None for t in tensors]
        ctx.save_for_backward(marker(OP), *[t for t in tensors if t is not None])
        return SigmoidAttentionFunction.passes(ctx.runner).forward(*given)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = iter(saved(ctx, OP))
        tensors = Tensors(*[next(kept) if is_given else None for is_given in ctx.given])  # type: ignore[arg-type]
        runner = backward_runner(ctx.runner, grad, *[t for t in tensors if t is not None])
        wanted = tuple(ctx.needs_input_grad[:DIFFERENTIABLE])
        if runner == "triton" and Grads(*wanted).slopes:  # type: ignore[arg-type]
            runner = "aten"
        found = SigmoidAttentionFunction.passes(runner).backward(grad, *tensors, *ctx.settings, wanted)
        grads = [_laid_out(t, g, w) for t, g, w in zip(tensors, found, wanted)]  # noqa: B905, cu_seqlens have none
        return *grads, *[None] * (TENSORS - DIFFERENTIABLE + len(Settings._fields) + 1)


def _laid_out(t: torch.Tensor | None, grad: torch.Tensor | None, is_wanted: bool) -> torch.Tensor | None:
    return with_strides_of(t, grad) if is_wanted and t is not None and grad is not None else None


# The operators.


def _run(*args: Any) -> torch.Tensor:
    tensors, settings = parts(args)
    runner = _runner(tensors)
    out = SigmoidAttentionFunction.passes(runner).forward(*tensors, *settings)
    return _operators.laid_out(tensors.query, out)


def _runner(tensors: Tensors, *others: torch.Tensor) -> Runner:
    if not fuses(tensors):
        return "aten"
    beside = [t for t in tensors[3:] if t is not None]
    return select(*others, *tensors[:3], beside=beside)


def _meta(*args: Any) -> torch.Tensor:
    tensors, _ = parts(args)
    query, value = tensors.query, tensors.value
    return _operators.empty_like(query, (*query.shape[:-1], value.shape[-1]), query.dtype)


def _run_backward(grad: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    *given, wanted = args
    tensors, settings = parts(tuple(given))
    runner: Runner = "aten" if Grads(*wanted).slopes else _runner(tensors, grad)
    found = SigmoidAttentionFunction.passes(runner).backward(grad, *tensors, *settings, tuple(wanted))
    return tuple(
        grad.new_empty(0) if g is None or t is None or not w else _operators.laid_out(t, g)
        for t, g, w in zip(tensors, found, wanted)  # noqa: B905, cu_seqlens have none
    )


def _meta_backward(grad: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    *given, wanted = args
    tensors, _ = parts(tuple(given))
    return tuple(
        grad.new_empty(0) if t is None or not w else torch.empty_like(t)
        for t, w in zip(tensors, wanted)  # noqa: B905, cu_seqlens have none
    )


def _save(ctx: Any, args: Sequence[Any], out: torch.Tensor) -> None:
    tensors, ctx.settings = parts(tuple(args))
    ctx.given = [t is not None for t in tensors]
    ctx.save_for_backward(*[t for t in tensors if t is not None])


def _differentiate(ctx: Any, grad: torch.Tensor) -> Sequence[torch.Tensor | None]:
    kept = iter(ctx.saved_tensors)
    tensors = Tensors(*[next(kept) if is_given else None for is_given in ctx.given])  # type: ignore[arg-type]
    wanted = tuple(ctx.needs[:DIFFERENTIABLE])
    found: Sequence[torch.Tensor | None]
    if torch.is_grad_enabled():
        found = formula.backward(grad, *tensors, *ctx.settings, wanted)
    else:
        found = OPERATORS.backward(grad, *tensors, *ctx.settings, list(wanted))
    grads = [g if w and t is not None else None for t, g, w in zip(tensors, found, wanted)]  # noqa: B905, as above
    return *grads, *[None] * (TENSORS - DIFFERENTIABLE + len(Settings._fields))


ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? bias, Tensor? alibi_slopes, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, bool causal, float scale, float? bias_number"
)
OPERATORS = Passes(
    _operators.define(OP, f"({ARGUMENTS}) -> Tensor", _run, _meta, _operators.Gradient(_save, _differentiate)),
    _operators.define(
        f"{OP}_backward",
        f"(Tensor grad, {ARGUMENTS}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _run_backward,
        _meta_backward,
    ),
)
