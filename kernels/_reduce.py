"""Sums: over rows or columns, beside an elementwise pass, to the shape of a broadcast input; and of everything, a loss'.

Each program adds up its share in a fixed order, and one more sum adds the shares: no atomics, so that two runs are bit-equal.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._launch import TILE_BYTES, WARPS, Call, exact, form, odd, plan, tile_of
from sigtorch.kernels._layout import EVERY_ELEMENT, Operand, layout
from sigtorch.kernels._math import rounded
from sigtorch.kernels._tile import compute, pointers

# At most, whatever the device: the order of a sum is part of its result. A large GPU is filled by either.
GATE_PROGRAMS, LOSS_PROGRAMS = 1024, 4096
# Four elements a thread: with eight, an H200 took up to 16 % longer, for the registers of more threads.
LOSS_TILE, LOSS_WARPS = 1024, 8
# A lane's sum of losses near the largest float32 stays finite; a loss of 1e-30 stays normal.
SCALE = tl.constexpr(2.0**-12)


@triton.jit(do_not_specialize=["rows", "cols", "sums_size", "chunk_tiles"])
def _map_sum_kernel(
    inputs,
    outputs,
    batch_strides,
    row_strides,
    rows,
    cols,
    sums_size,
    chunk_tiles,
    FN: tl.constexpr,
    FORM: tl.constexpr,
    SUMMED: tl.constexpr,  # the input whose shape the sums have
    OVER_ROWS: tl.constexpr,
    OVER_BATCHES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The last of the outputs are the sums: one a chunk, or also one a batch."""
    strides = (batch_strides, row_strides)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    batch = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(2).to(tl.int64)
    row = chunk * chunk_tiles * BLOCK_M if OVER_ROWS else block * BLOCK_M
    col = block * BLOCK_N if OVER_ROWS else chunk * chunk_tiles * BLOCK_N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if FORM[4] else tl.float32)
    number = 0
    while number < chunk_tiles:  # Triton 3.4's interpreter takes no range() of an argument
        tile = (batch, row, col, m, n)
        total, _ = compute(inputs, outputs[:-1], strides, tile, rows, cols, FN, FORM, 1.0, total, number)
        number += 1
        if OVER_ROWS:
            row += BLOCK_M
        else:
            col += BLOCK_N
    part = chunk * tl.num_programs(1) + batch if OVER_BATCHES else chunk
    corner = (batch, 0 if OVER_ROWS else row, col if OVER_ROWS else 0, m * 0 if OVER_ROWS else m, n)
    ptr = pointers(outputs[-1] + part * sums_size, strides, corner, FORM[0][SUMMED], FORM[1][SUMMED], FORM[2])
    if OVER_ROWS:
        ptr += m * 0
        total, mask = tl.sum(total, 0, keep_dims=True), n < cols - col
    else:
        total, mask = tl.sum(total, 1, keep_dims=True), m < rows - row
    tl.store(ptr, rounded(total, ptr.dtype.element_ty), mask=mask)


def launch_map_sum(
    fn: Any, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...], summed: int
) -> torch.Tensor | None:
    """Runs fn on inputs into outputs; its last result is summed to the shape of ``inputs[summed]`` and returned.

    That input is broadcast along the rows or along the columns; None, and nothing done, where it is along neither.
    """
    ready, inputs = plan(_map_sum_call, fn, inputs, outputs, summed)
    small, parts = inputs[summed], ready.call.partials
    if not parts:
        return None
    if parts == 1:
        sums = torch.empty_like(small)
        ready.launch(inputs, (*outputs, sums))
        return sums
    wide = torch.float64 if small.dtype == torch.float64 else torch.float32
    sums = torch.empty((parts, small.numel()), dtype=wide, device=small.device)
    ready.launch(inputs, (*outputs, sums))
    return sums.sum(0, dtype=wide).as_strided(small.shape, small.stride()).to(small.dtype)


def _map_sum_call(fn: Any, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...], summed: int) -> Call:
    at, small = layout(inputs, outputs), inputs[summed]
    strides_of, over_rows = at.sets[summed], at.kinds[summed] == EVERY_ELEMENT
    row_stride = at.row_strides[strides_of] if at.row_strides is not None else 0
    dense = small.shape != outputs[0].shape and torch.ops.aten.is_non_overlapping_and_dense(small)
    if not dense or (at.rows > 1 and over_rows == (row_stride > 0)):
        return Call(_map_sum_kernel, (0, 0, 0), ())
    block_m, block_n = tile_of(at, TILE_BYTES // outputs[0].element_size())
    down, across = triton.cdiv(at.rows, block_m), triton.cdiv(at.cols, block_n)
    kept, tiles = (across, down) if over_rows else (down, across)
    chunk_tiles = min(tiles, triton.cdiv(tiles * kept * at.batches, GATE_PROGRAMS))
    chunks = triton.cdiv(tiles, chunk_tiles)
    over_batches = at.batch_strides is not None and at.batch_strides[strides_of] == 0
    of = form(at, inputs, [t.dtype for t in (*outputs, small)])
    arguments = (
        odd(at.batch_strides), odd(at.row_strides), at.rows, at.cols, small.numel(), chunk_tiles,
        fn, of, summed, over_rows, over_batches, block_m, block_n,
    )  # fmt: skip
    return Call(_map_sum_kernel, (kept, at.batches, chunks), arguments, chunks * at.batches if over_batches else chunks)


@triton.jit(do_not_specialize=["batches", "rows", "cols"])
def _sum_kernel(
    inputs,
    outputs,
    batch_strides,
    row_strides,
    batches,
    rows,
    cols,
    FN: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each program's sum goes to its place in the one output; behind these, how many elements it did not ignore."""
    strides = (batch_strides, row_strides)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    across = tl.cdiv(cols.to(tl.int64), BLOCK_N)
    down = tl.cdiv(rows.to(tl.int64), BLOCK_M)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if FORM[4] else tl.float32)
    count = tl.zeros([BLOCK_M, BLOCK_N], tl.float32) if FORM[5] else 0
    number = tl.program_id(0).to(tl.int64)
    while number < batches * down * across:
        batch, row, col = tl.cast(0, tl.int64), tl.cast(0, tl.int64), number * BLOCK_N
        if row_strides is not None:
            batch = number // (down * across)
            row = number // across % down * BLOCK_M
            col = number % across * BLOCK_N
        tile = (batch, row, col, m, n)
        total, count = compute(inputs, (), strides, tile, rows, cols, FN, FORM, SCALE, total, count)
        number += tl.num_programs(0)
    at = outputs[0] + tl.program_id(0)
    tl.store(at, _sum(total) * (1.0 / SCALE))
    if FORM[5]:
        tl.store(at + tl.num_programs(0), _sum(count))


@triton.jit
def _sum(lanes):
    """A thread's own elements in float32, as a tree; float64 is slow on many chips, and left to what threads share."""
    SIZE: tl.constexpr = lanes.shape[0] * lanes.shape[1]
    return tl.sum(tl.sum(tl.reshape(lanes, [SIZE // 4, 4]), 1).to(tl.float64), 0)


@triton.jit(do_not_specialize=["count"])
def _finish_kernel(inputs, outputs, count, NUMBER: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the partial sums, and divides by a number, what a pointer shows, or the counts' sum, which it also stores."""
    total = _sum_of_parts(inputs[0], count, BLOCK)
    if COUNTED:
        divisor = tl.maximum(_sum_of_parts(inputs[0] + count, count, BLOCK), 1.0)  # of nothing, a mean is 0
        tl.store(outputs[1], divisor.to(outputs[1].dtype.element_ty))
    else:
        divisor = inputs[1] if NUMBER else tl.load(inputs[1])
    if outputs[0].dtype.element_ty == tl.float64:
        result = total / divisor
    else:
        # A division in float64 is a call: an inverse in float32, made exact by one of Newton's steps, is none. The quotient
        # may fit where the sum does not.
        inverse = (1.0 / tl.cast(divisor, tl.float32)).to(tl.float64)
        inverse *= 2.0 - tl.cast(divisor, tl.float64) * inverse
        result = (total * inverse).to(tl.float32)
    tl.store(outputs[0], rounded(result, outputs[0].dtype.element_ty))


@triton.jit
def _sum_of_parts(ptr, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < count:
        total += tl.load(ptr + start + at, mask=at < count - start, other=0.0)
        start += BLOCK
    return tl.sum(total, 0)


def reduce(
    fn: Any, inputs: tuple[Operand, ...], like: torch.Tensor, divisor: Operand, dtype: torch.dtype, ignoring: int = 0
) -> tuple[torch.Tensor, Operand]:
    """The sum of fn over all elements, divided, in one order whatever the device does; and the divisor.

    Where the input at ignoring is the number that comes last, an element is left out. A divisor of None is the count of
    the others, at least 1: a 0-d tensor.
    """
    ready, inputs = plan(_sum_call, fn, exact(inputs, like), (like,), (dtype, ignoring))
    partials = torch.empty(ready.call.partials, dtype=torch.float64, device=like.device)
    ready.launch(inputs, (partials,))
    total = torch.empty((), dtype=dtype, device=like.device)
    outputs: tuple[torch.Tensor, ...] = (total,)
    if divisor is None:
        divisor = torch.empty(
            (), dtype=torch.float64 if like.dtype == torch.float64 else torch.float32, device=like.device
        )
        outputs, inputs = (total, divisor), (partials, 1)
    else:
        inputs = exact((partials, divisor), total)
    ready, inputs = plan(_finish_call, None, inputs, outputs, bool(ignoring))
    ready.launch(inputs, outputs)
    return total, divisor


def _sum_call(
    fn: Any, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], option: tuple[torch.dtype, int]
) -> Call:
    at, (dtype, ignoring) = layout(inputs, outputs), option
    block_m, block_n = tile_of(at, LOSS_TILE)
    programs = min(at.batches * triton.cdiv(at.rows, block_m) * triton.cdiv(at.cols, block_n), LOSS_PROGRAMS)
    arguments = odd(at.batch_strides), odd(at.row_strides), at.batches, at.rows, at.cols, fn
    of = form(at, inputs, [dtype], ignoring)
    parts = 2 * programs if ignoring else programs
    warps = LOSS_WARPS if block_m == 1 else WARPS
    return Call(_sum_kernel, (programs, 1, 1), (*arguments, of, block_m, block_n), parts, warps)


def _finish_call(_: None, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], counts: bool) -> Call:
    count = inputs[0].numel() // 2 if counts else inputs[0].numel()
    number, counted = not isinstance(inputs[1], torch.Tensor), len(outputs) > 1
    return Call(_finish_kernel, (1, 1, 1), (count, number, counted, 4096), warps=LOSS_WARPS)
