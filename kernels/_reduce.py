"""Sums beside an elementwise function: to the shape of a broadcast input, as its gradient, or of everything, as a loss.

Each program adds up its tiles in a fixed order, and one more sum adds the programs' results: no atomics, so that two runs
agree bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from sigtorch.kernels._layout import (
    SHORT_ROW,
    TILE_BYTES,
    WARPS,
    Operand,
    exact,
    form_of,
    functions_of,
    grid_axes,
    layout_of,
    ordered_strides,
    tile_shape,
)
from sigtorch.kernels._math import rounded
from sigtorch.kernels._plan import Call, plan
from sigtorch.kernels._tile import Tile, pointers, run_tile

# Upper bounds that no device changes, since the order of a sum is part of its result. Either fills a large GPU.
GATE_PROGRAMS, LOSS_PROGRAMS = 1024, 4096
# Four elements per thread: with eight, an H200 took up to 16 % longer, for the registers of more threads.
LOSS_TILE, LOSS_WARPS = 1024, 8
PARTS_BLOCK = 4096  # partial sums that the last program adds at once
# A thread's sum of losses near the largest float32 stays finite; a loss of 1e-30 stays normal.
SCALE = tl.constexpr(2.0**-12)


@triton.jit(do_not_specialize=["rows", "cols", "sums_size", "chunk_tiles"])
def _map_and_sum_kernel(
    inputs,
    outputs,
    batch_sizes,
    batch_strides,
    row_strides,
    rows,
    cols,
    sums_size,
    chunk_tiles,
    FN: tl.constexpr,
    LOSS: tl.constexpr,
    TARGET: tl.constexpr,
    FORM: tl.constexpr,
    COUNT: tl.constexpr,
    AXES: tl.constexpr,
    OVER_ROWS: tl.constexpr,
    OVER_COLS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Runs a chunk of tiles, one below the other if OVER_ROWS, else side by side, and adds up FN's last COUNT results.

    The last output holds the sums of one result, then of the next, each (parts, sums_size), a size in vectors unless
    OVER_COLS. A program writes into the part of its chunk, or, over rows and columns, of its chunk and its block of columns.
    Batches that are summed have parts of their own, by their strides.
    """
    strides = (batch_sizes, batch_strides, row_strides)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    batch = tl.program_id(AXES.batches).to(tl.int64)
    block = tl.program_id(AXES.cols).to(tl.int64)
    chunk = tl.program_id(2).to(tl.int64)
    row = chunk * chunk_tiles * BLOCK_M if OVER_ROWS else block * BLOCK_M
    col = block * BLOCK_N if OVER_ROWS else chunk * chunk_tiles * BLOCK_N
    totals = ()
    for i in tl.static_range(COUNT):  # noqa: B007, Triton takes no _ that a loop sets again
        totals = totals + (tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if FORM.double else tl.float32),)  # noqa: RUF005
    number = 0
    while number < chunk_tiles:  # Triton 3.4's interpreter takes no range() of an argument
        tile = Tile(batch, row, col, m, n, rows, cols)
        unused = number  # nothing is counted
        totals, _ = run_tile(inputs, outputs[:-1], strides, tile, FN, LOSS, TARGET, FORM, 1.0, totals, unused)
        number += 1
        if OVER_ROWS:
            row += BLOCK_M
        else:
            col += BLOCK_N
    SUMS: tl.constexpr = len(FORM.kinds) - 1
    VECTOR: tl.constexpr = FORM.vector
    part = chunk * tl.num_programs(AXES.cols) + block if OVER_ROWS and OVER_COLS else chunk
    parts = tl.num_programs(2) * (tl.num_programs(AXES.cols) if OVER_ROWS and OVER_COLS else 1)
    for i in tl.static_range(COUNT):
        ptr = outputs[-1] + (part + parts * i) * sums_size * (1 if OVER_COLS else VECTOR)
        if OVER_ROWS:
            first = Tile(batch, 0, col, tl.zeros([1, 1], tl.int32), n, rows, cols)
            ptr = pointers(ptr, strides, first, FORM.stride_sets[SUMS], FORM.kinds[SUMS], VECTOR)
            total = tl.sum(totals[i], 0, keep_dims=True)
            if OVER_COLS:
                total, mask = tl.sum(total, 1, keep_dims=True), None
            else:
                mask = n < cols - col
                if VECTOR > 1:
                    mask = tl.max_constancy(mask, [1, VECTOR])
        else:
            first = Tile(batch, row, 0, m, n, rows, cols)
            ptr = pointers(ptr, strides, first, FORM.stride_sets[SUMS], FORM.kinds[SUMS], VECTOR)
            total, mask = tl.sum(totals[i], 1, keep_dims=True), m < rows - row
        tl.store(ptr, rounded(total, ptr.dtype.element_ty), mask=mask)


class Sums(NamedTuple):
    """Describes sums: how many results, to which shape and dtype, and which of a function's results are used."""

    count: int
    shape: torch.Size
    dtype: torch.dtype
    results: tuple[int, ...] | None = None  # those that are written, then those that are summed; None if all are summed


def launch_map_and_sum(
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    small: torch.Tensor,
    results: tuple[int, ...],
    *,
    warps: int = WARPS,
) -> torch.Tensor:
    """Writes some of fn's results into the outputs, and returns another one, summed; its axes are in the outputs' order.

    Args:
        fn: a scalar function of ``_math.py``, with several results.
        inputs: as for ``launch_map``, of which the first has the shape that all broadcast to, of one element or more.
        outputs: as for ``launch_map``; may be empty if the first input is dense.
        small: has the shape and dtype that the sums get.
        results: which of fn's results are written, one per output, then which one is summed.
        warps: per tile.
    """
    settings = results, small.shape, small.dtype, warps
    ready, inputs = plan(_map_and_sum_call, fn, inputs, outputs or inputs[:1], settings)
    parts, strides, device = ready.call.partials, ready.call.strides, small.device
    if parts == 1:
        sums = torch.empty_strided(small.shape, strides, dtype=small.dtype, device=device)
        ready.launch(inputs, (*outputs, sums))
    else:
        wide = torch.float64 if small.dtype == torch.float64 else torch.float32
        partials = torch.empty((parts, small.numel()), dtype=wide, device=device)
        ready.launch(inputs, (*outputs, partials))
        sums = partials.sum(0, dtype=wide).as_strided(small.shape, strides).to(small.dtype)
    return sums


def _map_and_sum_call(
    fn: Any,
    inputs: tuple[torch.Tensor, ...],
    outputs: tuple[torch.Tensor, ...],
    results: tuple[int, ...],
    shape: torch.Size,
    dtype: torch.dtype,
    warps: int,
) -> Call:
    sums, tile = Sums(1, shape, dtype, results), TILE_BYTES // outputs[0].element_size()
    return _call_of_sums(fn, inputs, outputs, sums, tile, warps, warps)


def launch_sums(
    fn: Any, inputs: tuple[Operand, ...], like: torch.Tensor, shape: torch.Size, dtype: torch.dtype, count: int
) -> torch.Tensor:
    """Returns the sums of each of fn's results, in float32 or all in float64: (count, *shape).

    Args:
        fn: the pass of a loss.
        inputs: as for ``launch_map``, broadcastable to like's shape.
        like: a dense tensor of one element or more, whose shape and order of elements the kernel follows.
        shape: of a sum; it broadcasts to like's.
        dtype: float64 if all is computed in it.
        count: how many results fn has.
    """
    ready, inputs = plan(_sums_call, fn, exact(inputs, like), (like,), (Sums(count, shape, dtype),))
    parts, size = ready.call.partials, math.prod(shape)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sums = torch.empty((count, parts, size), dtype=wide, device=like.device)
    ready.launch(inputs, (sums,))
    return (sums if parts == 1 else sums.sum(1)).as_strided((count, *shape), (size, *ready.call.strides))


def _sums_call(fn: Any, inputs: tuple[Any, ...], outputs: tuple[torch.Tensor, ...], sums: Sums) -> Call:
    return _call_of_sums(fn, inputs, outputs, sums, LOSS_TILE, WARPS, LOSS_WARPS)


def _call_of_sums(
    fn: Any,
    inputs: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    sums: Sums,
    tile: int,
    warps: int,
    warps_of_a_row: int,
) -> Call:
    """Returns a call over tiles of this size, which have other warps if they are one row."""
    like, written = outputs[0], outputs[: len(sums.results or (0,)) - 1]
    strides = tuple(ordered_strides(sums.shape, like))
    small = torch.empty_strided(sums.shape, strides, dtype=sums.dtype, device="meta")
    layout = layout_of(inputs, outputs, small)
    over_rows, over_cols = layout.sums_over
    block_m, block_n = tile_shape(layout, tile)
    down, across = triton.cdiv(layout.rows, block_m), triton.cdiv(layout.cols, block_n)
    kept, tiles = (across, down) if over_rows else (down, across)
    chunk_tiles = min(tiles, triton.cdiv(tiles * kept * layout.batches, GATE_PROGRAMS))
    if over_cols and not over_rows and layout.cols <= SHORT_ROW:
        chunk_tiles = tiles  # a sum over parts would be a launch more
    chunks = triton.cdiv(tiles, chunk_tiles)
    axes = grid_axes(layout.batches, 0)
    form = form_of(fn, layout, inputs, [*(t.dtype for t in written), sums.dtype], results=sums.results)
    parts = layout.parts * chunks * (across if over_rows and over_cols else 1)
    sums_size = layout.parts * small.numel() // (1 if over_cols else layout.vector)
    sizes = layout.rows, layout.cols, sums_size, chunk_tiles
    settings = form, sums.count, axes, over_rows, over_cols, block_m, block_n
    grid = axes.grid(kept, layout.batches, chunks)
    arguments = (*layout.encoded, *sizes, *functions_of(fn), *settings)
    return Call(_map_and_sum_kernel, grid, arguments, parts, strides, warps_of_a_row if block_m == 1 else warps)


@triton.jit(do_not_specialize=["batches", "rows", "cols"])
def _sum_kernel(
    inputs,
    outputs,
    batch_sizes,
    batch_strides,
    row_strides,
    batches,
    rows,
    cols,
    FN: tl.constexpr,
    LOSS: tl.constexpr,
    TARGET: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Runs every tile whose number is this program's, modulo the number of programs.

    FN's last result is summed, the others are written into the outputs. The last output holds the programs' sums: (programs,).
    If some elements are ignored, it is (2 * programs,): behind the sums, how many elements each program did not ignore.
    """
    strides = (batch_sizes, batch_strides, row_strides)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    across = tl.cdiv(cols.to(tl.int64), BLOCK_N)
    down = tl.cdiv(rows.to(tl.int64), BLOCK_M)
    totals = (tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if FORM.double else tl.float32),)
    count = tl.zeros([BLOCK_M, BLOCK_N], tl.float32) if FORM.target_input is not None else 0
    number = tl.program_id(0).to(tl.int64)
    while number < batches * down * across:
        batch, row, col = tl.cast(0, tl.int64), tl.cast(0, tl.int64), number * BLOCK_N
        if row_strides is not None:
            batch = number // (down * across)
            row = number // across % down * BLOCK_M
            col = number % across * BLOCK_N
        tile = Tile(batch, row, col, m, n, rows, cols)
        totals, count = run_tile(inputs, outputs[:-1], strides, tile, FN, LOSS, TARGET, FORM, SCALE, totals, count)
        number += tl.num_programs(0)
    ptr = outputs[-1] + tl.program_id(0)
    tl.store(ptr, _sum(totals[0]) * (1.0 / SCALE))
    if FORM.target_input is not None:
        tl.store(ptr + tl.num_programs(0), _sum(count))


@triton.jit
def _sum(block):
    """Adds up a block: a thread's own elements in float32, the threads' sums in float64, which is slow on many GPUs."""
    SIZE: tl.constexpr = block.shape[0] * block.shape[1]
    return tl.sum(tl.sum(tl.reshape(block, [SIZE // 4, 4]), 1).to(tl.float64), 0)


@triton.jit(do_not_specialize=["count"])
def _finish_kernel(inputs, outputs, count, NUMBER: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    """Adds up partial sums and divides by a number, by a loaded scalar, or if COUNTED by the counts' sum, stored as well.

    Inputs are pointers to the partials, (count,) or (2 * count,), and the divisor; outputs are pointers to the result and,
    if COUNTED, to the divisor.
    """
    partials, divisor = inputs
    result_ptr = outputs[0]
    total = _sum_of_parts(partials, count, BLOCK)
    if COUNTED:
        divisor = tl.maximum(_sum_of_parts(partials + count, count, BLOCK), 1.0)  # the mean of no elements is 0
        tl.store(outputs[1], divisor.to(outputs[1].dtype.element_ty))
    elif not NUMBER:
        divisor = tl.load(divisor)
    if result_ptr.dtype.element_ty == tl.float64:
        result = total / divisor
    else:
        # A division in float64 is a call. A float32 inverse, made exact by one of Newton's steps, is none. It divides in
        # float64, since the quotient may fit into float32 where the sum does not.
        inverse = (1.0 / tl.cast(divisor, tl.float32)).to(tl.float64)
        inverse *= 2.0 - tl.cast(divisor, tl.float64) * inverse
        result = (total * inverse).to(tl.float32)
    tl.store(result_ptr, rounded(result, result_ptr.dtype.element_ty))


@triton.jit
def _sum_of_parts(ptr, count, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < count:
        total += tl.load(ptr + start + offsets, mask=offsets < count - start, other=0.0)
        start += BLOCK
    return tl.sum(total, 0)


def launch_sum(
    fn: Any,
    inputs: tuple[Operand, ...],
    like: torch.Tensor,
    divisor: Operand | None,
    dtype: torch.dtype,
    *,
    target_input: int | None = None,
    gradient: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Operand]:
    """Returns the sum of fn over all elements, divided, and the divisor.

    Args:
        fn: the pass of a loss. Its only result, or the second, is summed.
        inputs: as for ``launch_map``, broadcastable to like's shape.
        like: the tensor whose shape and order of elements the kernel follows.
        divisor: a number or a 0-d tensor; None for the count of elements that are not ignored, at least 1.
        dtype: of the result.
        target_input: the input whose elements are ignored where they equal the last input, a number.
        gradient: freshly allocated, for fn's first result; the kernel then follows it in place of like.
    """
    written = () if gradient is None else (gradient,)
    ready, inputs = plan(_sum_call, fn, exact(inputs, like), written or (like,), (dtype, target_input))
    partials = torch.empty(ready.call.partials, dtype=torch.float64, device=like.device)
    ready.launch(inputs, (*written, partials))
    total = torch.empty((), dtype=dtype, device=like.device)
    outputs: tuple[torch.Tensor, ...] = (total,)
    if divisor is None:
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        divisor = torch.empty((), dtype=wide, device=like.device)
        outputs, inputs = (total, divisor), (partials, 1)
    else:
        inputs = exact((partials, divisor), total)
    ready, inputs = plan(_finish_call, None, inputs, outputs, (target_input is not None,))
    ready.launch(inputs, outputs)
    return total, divisor


def _sum_call(
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    target_input: int | None,
) -> Call:
    layout = layout_of(inputs, outputs)
    block_m, block_n = tile_shape(layout, LOSS_TILE)
    tiles = layout.batches * triton.cdiv(layout.rows, block_m) * triton.cdiv(layout.cols, block_n)
    programs = min(tiles, LOSS_PROGRAMS)
    # The only output is the gradient, or stands for x.
    form = form_of(fn, layout, inputs, [dtype, *(t.dtype for t in outputs)], target_input)
    arguments = (*layout.encoded, layout.batches, layout.rows, layout.cols, *functions_of(fn), form, block_m, block_n)
    partials = programs if target_input is None else 2 * programs
    return Call(_sum_kernel, (programs, 1, 1), arguments, partials, warps=LOSS_WARPS if block_m == 1 else WARPS)


def _finish_call(_: None, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], with_counts: bool) -> Call:
    """Returns the call of a sum's last step: it has no scalar function, and its inputs need no layout."""
    partials, divisor = inputs
    count = partials.numel() // 2 if with_counts else partials.numel()
    number, counted = not isinstance(divisor, torch.Tensor), len(outputs) > 1
    return Call(_finish_kernel, (1, 1, 1), (count, number, counted, PARTS_BLOCK), warps=LOSS_WARPS)
