"""The losses' passes: forward reads each logit and target once, backward once more and writes the gradient."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels import _loss_math
from sigtorch.kernels._launch import OPTIONS, Input, arrange, launch, tile, tile_of
from sigtorch.kernels._layout import _axes, _reachable

PROGRAMS = 4096  # as many partial sums, whatever the device: the order of a sum is part of its result
# A lane's sum of losses near the largest float32 stays finite; a loss of 1e-30 stays normal.
SCALE = tl.constexpr(2.0**-12)


@triton.jit
def _sum_kernel(
    ins,
    partials,
    strides,  # of batches and of rows
    batches,
    rows,
    cols,
    FN: tl.constexpr,
    WHOSE: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISE: tl.constexpr,
    DOUBLE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    across = tl.cdiv(cols, BLOCK_N)
    down = tl.cdiv(rows, BLOCK_M)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if DOUBLE else tl.float32)
    number = tl.program_id(0)
    while number < batches * down * across:
        batch, row, col = tl.cast(0, tl.int64), tl.cast(0, tl.int64), number.to(tl.int64) * BLOCK_N
        if strides[1] is not None:
            batch = (number // (down * across)).to(tl.int64)
            row = (number // across % down).to(tl.int64) * BLOCK_M
            col = (number % across).to(tl.int64) * BLOCK_N
        at = (batch, row, col, m, n)
        total = tile(ins, (), strides, at, rows, cols, FN, WHOSE, STEPS, PRECISE, UNIT, SCALE, total)
        number += tl.num_programs(0)
    total = tl.sum(tl.reshape(total, [BLOCK_M * BLOCK_N]).to(tl.float64), 0) * (1.0 / SCALE)
    tl.store(partials + tl.program_id(0), total)


def _reduced(
    fn: Any, inputs: tuple[Input, ...], like: torch.Tensor, divisor: Input, dtype: torch.dtype
) -> torch.Tensor:
    """The sum of fn over all elements, divided, in one order whatever the device does."""
    at = arrange(inputs, (like,))
    block_m, block_n = tile_of(at, like)
    tiles = at.batches * -(-at.rows // block_m) * -(-at.cols // block_n)
    partials = like.new_empty(min(tiles, PROGRAMS), dtype=torch.float64)
    precise = dtype not in (torch.float16, torch.bfloat16)
    with torch.cuda.device_of(like):
        _sum_kernel[(partials.numel(),)](
            at.tensors[: len(inputs)], partials, (at.batch_strides, at.row_strides), at.batches, at.rows, at.cols,
            fn, at.whose, at.steps, precise, like.dtype == torch.float64, at.unit, block_m, block_n, **OPTIONS,
        )  # fmt: skip
    return (partials.sum() / divisor).to(dtype)


def _operands(loss: Any, x: torch.Tensor, target: torch.Tensor, *rest: Input) -> tuple[Input, ...]:
    """What a scalar function takes: a class index comes with the column it is compared to."""
    if loss.indexed(target):
        # Contiguous, as x or the output is, so that the innermost axis is the classes'.
        index = target.contiguous().unsqueeze(-1)
        return x, index, None, float(loss.background_index), float(x.shape[-1]), *rest
    return x, target.view(torch.uint8) if target.dtype == torch.bool else target, *rest


def _readable(loss: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Gives x itself wherever its strides can lead a reduction, which has no output to do that."""
    if loss.reduction == "none" or x.is_contiguous() or (not loss.indexed(target) and _reachable(_axes((x, x), x))):
        return x
    return x.contiguous()


def _divisor(loss: Any, x: torch.Tensor, normalizer: Input) -> Input:
    """One number or 0-d tensor; a 1 that nobody asked for is no instruction."""
    if loss.reduction == "mean":
        return float(x.numel())
    return (loss.normalizer or 1) if normalizer is None else normalizer


def _like(loss: Any, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    layout = torch.contiguous_format if loss.indexed(target) else torch.preserve_format
    return torch.empty_like(x, dtype=dtype, memory_format=layout)


def _bce_operands(loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Input, other: Input) -> tuple[Input, ...]:
    pos_weight = 1 if other is None else other
    keep = 1 - loss.label_smoothing if loss.label_smoothing else 1
    return _operands(loss, x, target, 1 if weight is None else weight, pos_weight, keep)


def _focal_operands(loss: Any, x: torch.Tensor, target: torch.Tensor, weight: Input) -> tuple[Input, ...]:
    pos, neg = (1, 1) if loss.alpha < 0 else (loss.alpha, 1 - loss.alpha)
    sign = {0.0: 1, 1.0: -1.0}.get(loss.gamma % 2, float("nan"))
    return _operands(loss, x, target, 1 if weight is None else weight, pos, neg, loss.gamma, sign)


def binary_cross_entropy_with_logits_forward(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, pos_weight: torch.Tensor | None
) -> torch.Tensor:
    x = _readable(loss, x, target)
    operands = _bce_operands(loss, x, target, weight, pos_weight)
    fn = _loss_math.bce_of_class if loss.indexed(target) else _loss_math.bce
    if loss.reduction != "none":
        return _reduced(fn, operands, x, _divisor(loss, x, None), loss.dtype)
    out = _like(loss, x, target, loss.dtype)
    launch(fn, operands, (out,))
    return out


def binary_cross_entropy_with_logits_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    pos_weight: torch.Tensor | None,
) -> torch.Tensor:
    fn = _loss_math.dbce_of_class if loss.indexed(target) else _loss_math.dbce
    grad_x = _like(loss, x, target, x.dtype)
    operands = _bce_operands(loss, x, target, weight, pos_weight)
    launch(fn, (grad, _divisor(loss, x, None), *operands), (grad_x,))
    return grad_x


def sigmoid_focal_loss_forward(
    loss: Any, x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, normalizer: torch.Tensor | None
) -> torch.Tensor:
    x = _readable(loss, x, target)
    operands = _focal_operands(loss, x, target, weight)
    fn = _loss_math.focal_of_class if loss.indexed(target) else _loss_math.focal
    divisor = _divisor(loss, x, normalizer)
    if loss.reduction != "none":
        return _reduced(fn, (1, *operands), x, divisor, loss.dtype)
    out = _like(loss, x, target, loss.dtype)
    launch(fn, (divisor, *operands), (out,))
    return out


def sigmoid_focal_loss_backward(
    loss: Any,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> torch.Tensor:
    fn = _loss_math.dfocal_of_class if loss.indexed(target) else _loss_math.dfocal
    grad_x = _like(loss, x, target, x.dtype)
    launch(fn, (grad, _divisor(loss, x, normalizer), *_focal_operands(loss, x, target, weight)), (grad_x,))
    return grad_x
