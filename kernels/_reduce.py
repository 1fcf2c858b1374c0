"""Sums: over rows or columns, beside an elementwise pass, to the shape of a broadcast input; and of everything, a loss'.

Each program adds up its share in a fixed order, and one more sum adds the shares: no atomics, so that two runs are bit-equal.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._launch import OPTIONS, Input, arrange, place, precise, tile, tile_of
from sigtorch.kernels._layout import layout

# At most, whatever the device: the order of a sum is part of its result. A large GPU is filled by either.
GATE_PROGRAMS, LOSS_PROGRAMS = 1024, 4096
# A lane's sum of losses near the largest float32 stays finite; a loss of 1e-30 stays normal.
SCALE = tl.constexpr(2.0**-12)


@triton.jit
def _map_sum_kernel(
    ins,
    outs,
    sums_ptr,
    strides,  # of batches and of rows
    rows,
    cols,
    sums_size,
    chunk_tiles,
    FN: tl.constexpr,
    WHOSE: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISE: tl.constexpr,
    UNIT: tl.constexpr,
    KEPT: tl.constexpr,  # the input whose shape the sums have
    OVER_ROWS: tl.constexpr,
    BATCHES_TOO: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    batch = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(2).to(tl.int64)
    row = chunk * chunk_tiles * BLOCK_M if OVER_ROWS else block * BLOCK_M
    col = block * BLOCK_N if OVER_ROWS else chunk * chunk_tiles * BLOCK_N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if sums_ptr.dtype.element_ty == tl.float64 else tl.float32)
    number = 0
    while number < chunk_tiles:  # Triton 3.4's interpreter takes no range() of an argument
        at = (batch, row, col, m, n)
        total = tile(ins, outs, strides, at, rows, cols, FN, WHOSE, STEPS, PRECISE, UNIT, 1.0, total)
        number += 1
        if OVER_ROWS:
            row += BLOCK_M
        else:
            col += BLOCK_N
    line = chunk * tl.num_programs(1) + batch if BATCHES_TOO else chunk
    at = (batch, 0 if OVER_ROWS else row, col if OVER_ROWS else 0, m * 0 if OVER_ROWS else m, n)
    ptr = place(sums_ptr + line * sums_size, strides, WHOSE[KEPT], at, OVER_ROWS, UNIT)
    if OVER_ROWS:
        tl.store(ptr + m * 0, tl.sum(total, 0, keep_dims=True), mask=n < cols - col)
    else:
        tl.store(ptr, tl.sum(total, 1, keep_dims=True), mask=m < rows - row)


def launch_sum(
    fn: Any, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...], kept: int
) -> torch.Tensor | None:
    """Runs fn on inputs into outputs; its last result is summed to the shape of ``inputs[kept]`` and returned.

    That input is broadcast along the rows or along the columns; None, and nothing done, where it is along neither.
    """
    like, small = outputs[0], inputs[kept]
    at = layout(inputs, outputs)
    held = at.tensors[kept]
    row_stride = at.row_strides[at.whose[kept]] if at.row_strides is not None else 0
    over_rows = at.steps[kept] == 1
    if (
        held.shape != small.shape
        or not torch.ops.aten.is_non_overlapping_and_dense(held)
        or (at.rows > 1 and over_rows == (row_stride > 0))
    ):
        return None
    block_m, block_n = tile_of(at, like)
    kept_blocks = -(-at.cols // block_n) if over_rows else -(-at.rows // block_m)
    tiles = -(-at.rows // block_m) if over_rows else -(-at.cols // block_n)
    chunk_tiles = min(tiles, -(-tiles * kept_blocks * at.batches // GATE_PROGRAMS))
    chunks = -(-tiles // chunk_tiles)
    batches_too = at.batch_strides is not None and at.batch_strides[at.whose[kept]] == 0
    lines = chunks * at.batches if batches_too else chunks
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    sums = torch.empty((lines, small.numel()), dtype=wide, device=like.device)
    with torch.cuda.device_of(like):
        _map_sum_kernel[(kept_blocks, at.batches, chunks)](
            at.tensors[: len(inputs)], at.tensors[len(inputs) :], sums, (at.batch_strides, at.row_strides), at.rows,
            at.cols, small.numel(), chunk_tiles, fn, at.whose, at.steps, precise([t.dtype for t in (*outputs, small)]),
            at.unit, kept, over_rows, batches_too, block_m, block_n, **OPTIONS,
        )  # fmt: skip
    total = sums.sum(0) if lines > 1 else sums[0]
    return total.as_strided(held.shape, held.stride()).to(small.dtype)


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


def reduce(fn: Any, inputs: tuple[Input, ...], like: torch.Tensor, divisor: Input, dtype: torch.dtype) -> torch.Tensor:
    """The sum of fn over all elements, divided, in one order whatever the device does."""
    at = arrange(inputs, (like,))
    block_m, block_n = tile_of(at, like)
    tiles = at.batches * -(-at.rows // block_m) * -(-at.cols // block_n)
    partials = like.new_empty(min(tiles, LOSS_PROGRAMS), dtype=torch.float64)
    with torch.cuda.device_of(like):
        _sum_kernel[(partials.numel(),)](
            at.tensors[: len(inputs)], partials, (at.batch_strides, at.row_strides), at.batches, at.rows, at.cols,
            fn, at.whose, at.steps, precise([dtype]), like.dtype == torch.float64, at.unit, block_m, block_n, **OPTIONS,
        )  # fmt: skip
    return (partials.sum() / divisor).to(dtype)
