"""The elementwise kernel and its launch: blocks, masks, 64-bit offsets and the device guard, written once.

An operation is a scalar function from ``_math.py``, a constexpr parameter of the one kernel; where its tensors lie is a
``Layout``. Dense tensors are one row, and nothing about rows is compiled for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._layout import GRID, Layout, layout
from sigtorch.kernels._math import rounded, widened

Input = torch.Tensor | float | None

WARPS = 4
# Four 16-byte accesses a thread and tensor: two in flight fill a B200's memory, four halve what addresses cost.
BYTES = 4 * 16 * 32 * WARPS
OPTIONS: dict[str, Any] = {"num_warps": WARPS}
if not triton.knobs.runtime.interpret:  # the interpreter has no such option
    OPTIONS["enable_fp_fusion"] = True


@triton.jit
def _place(ptr, i, batch_strides, row_strides, batch, row, col, m, n, STEP: tl.constexpr, UNIT: tl.constexpr):
    """Tensor i's elements of a tile: a 64-bit corner, 32-bit lanes from there. A STEP of 0 is one value a row."""
    if batch_strides is not None:
        ptr += batch * batch_strides[i] * UNIT
    if row_strides is not None:
        ptr += row * row_strides[i] * UNIT
        m = (m * UNIT).to(tl.int64) * row_strides[i]
    if STEP:
        ptr += col
        m += n
    return ptr + m


@triton.jit
def _values(ins, batch_strides, row_strides, batch, row, col, m, n, row_mask, mask, STEPS, UNIT):
    """A tile of every input in float32 (float64 stays); masks are None for a full tile."""
    values = ()
    for i in tl.static_range(len(ins)):
        if STEPS[i] == "number":  # words, not named constants: Triton looks at every global at every launch
            value = tl.cast(ins[i], tl.float32)
        elif STEPS[i] == "column":
            value = (col + n).to(tl.float32)
        else:
            ptr = _place(ins[i], i, batch_strides, row_strides, batch, row, col, m, n, STEPS[i], UNIT)
            value = tl.load(ptr, mask=mask if STEPS[i] else row_mask)
            value = widened(value) if STEPS[i] else value.to(tl.float64 if value.dtype == tl.float64 else tl.float32)
        values = values + (value,)  # noqa: RUF005, Triton's tuples take no star
    return values


@triton.jit
def _tile(ins, outs, batch_strides, row_strides, batch, row, col, m, n, row_mask, mask, FN, STEPS, PRECISE, UNIT, MORE):
    """Load, compute, round once, store; gives back all results, of which there are MORE than outputs."""
    values = _values(ins, batch_strides, row_strides, batch, row, col, m, n, row_mask, mask, STEPS, UNIT)
    results = FN(*values, PRECISE)
    for i in tl.static_range(len(outs)):
        ptr = _place(outs[i], len(ins) + i, batch_strides, row_strides, batch, row, col, m, n, 1, UNIT)
        result = results[i] if len(outs) + MORE > 1 else results
        tl.store(ptr, rounded(result, ptr.dtype.element_ty), mask=mask)
    return results


@triton.jit
def _map_kernel(
    ins,
    outs,
    batch_strides,
    row_strides,
    rows,
    cols,
    FN: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISE: tl.constexpr,
    UNIT: tl.constexpr,
    TALL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    batch = tl.program_id(1).to(tl.int64)
    row = tl.cast(0, tl.int64)
    if row_strides is not None:
        row = tl.program_id(0 if TALL else 2).to(tl.int64) * BLOCK_M
    col = tl.program_id(2 if TALL else 0).to(tl.int64) * BLOCK_N
    # A masked access shrinks to what the compiler can prove of its mask: only the last tiles are masked.
    if (row + BLOCK_M <= rows) & (col + BLOCK_N <= cols):
        _tile(ins, outs, batch_strides, row_strides, batch, row, col, m, n, None, None, FN, STEPS, PRECISE, UNIT, 0)
    else:
        row_mask = m < rows - row
        mask = row_mask & (n < cols - col)
        if UNIT > 1:
            mask = tl.max_constancy(mask, [1, UNIT])
        _tile(ins, outs, batch_strides, row_strides, batch, row, col, m, n, row_mask, mask, FN, STEPS, PRECISE, UNIT, 0)


def launch(fn: Any, inputs: tuple[Input, ...], outputs: tuple[torch.Tensor, ...]) -> None:
    """Runs fn on inputs, each broadcastable to the outputs' shape, into the outputs.

    Outputs share one shape and one set of strides, are freshly allocated and overlap nothing. An input may also be a
    number, or None: the element's place along the outputs' innermost axis.
    """
    like = outputs[0]
    if not like.numel():
        return
    at = arrange(inputs, outputs)
    block_m, block_n = tile_of(at, like)
    precise = like.dtype not in (torch.float16, torch.bfloat16)
    down, across = -(-at.rows // block_m), -(-at.cols // block_n)  # triton.cdiv costs the host 2 us
    tall = down >= GRID  # a grid's first axis is the long one
    grid = (down, at.batches, across) if tall else (across, at.batches, down)
    with torch.cuda.device_of(like):
        _map_kernel[grid](
            at.tensors[: len(inputs)], at.tensors[len(inputs) :], at.batch_strides, at.row_strides, at.rows, at.cols,
            fn, at.steps, precise, at.unit, tall, block_m, block_n, **OPTIONS,
        )  # fmt: skip


def tile_of(at: Layout, like: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a tile."""
    size = BYTES // like.element_size()
    if at.row_strides is None or at.cols >= size:
        return 1, size
    columns: int = triton.next_power_of_2(at.cols)
    return size // columns, columns


def arrange(inputs: tuple[Input, ...], outputs: tuple[torch.Tensor, ...]) -> Layout:
    """The layout of the tensors, with numbers and places in between where they were given."""
    for t in inputs:
        if not isinstance(t, torch.Tensor):
            break
    else:
        return layout(inputs, outputs)
    if outputs[0].dtype == torch.float64:  # a number is a float32 to Triton
        inputs = tuple(outputs[0].new_full((), t) if isinstance(t, int | float) else t for t in inputs)
    tensors = [isinstance(t, torch.Tensor) for t in (*inputs, *outputs)]
    at = layout(tuple(t for t in inputs if isinstance(t, torch.Tensor)), outputs)

    def spread(values: Iterable[Any], between: Iterable[Any]) -> tuple[Any, ...]:
        values, between = iter(values), iter(between)
        return tuple(next(values) if tensor else next(between) for tensor in tensors)

    others = [t for t in inputs if not isinstance(t, torch.Tensor)]
    return at._replace(
        tensors=spread(at.tensors, (1 if t is None else t for t in others)),
        steps=spread(at.steps, ("column" if t is None else "number" for t in others)),
        batch_strides=at.batch_strides and spread(at.batch_strides, repeat(0)),
        row_strides=at.row_strides and spread(at.row_strides, repeat(0)),
    )
