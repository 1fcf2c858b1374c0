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

HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
WARPS = 4
# Four 16-byte accesses a thread and tensor: two in flight fill a B200's memory, four halve what addresses cost.
BYTES = 4 * 16 * 32 * WARPS
OPTIONS: dict[str, Any] = {"num_warps": WARPS}
if not triton.knobs.runtime.interpret:  # the interpreter has no such option
    OPTIONS["enable_fp_fusion"] = True


@triton.jit
def place(ptr, strides, which, at, STEP: tl.constexpr, UNIT: tl.constexpr):
    """A tensor's elements of a tile: a 64-bit corner, 32-bit lanes from there. A STEP of 0 is one value a row."""
    batch_strides, row_strides = strides
    batch, row, col, m, n = at
    unit: tl.constexpr = UNIT if STEP else 1
    if batch_strides is not None:
        ptr += batch * batch_strides[which] * unit
    if row_strides is not None:
        ptr += row * row_strides[which] * unit
        m = (m * unit).to(tl.int64) * row_strides[which]
    if STEP:
        ptr += col
        m += n
    return ptr + m


@triton.jit
def _values(ins, strides, at, row_mask, mask, WHOSE, STEPS, UNIT):
    """A tile of every input in float32 (float64 stays)."""
    values = ()
    for i in tl.static_range(len(ins)):
        if STEPS[i] == "number":  # words, not named constants: Triton looks at every global at every launch
            value = tl.cast(ins[i], tl.float32)
        elif STEPS[i] == "column":
            value = (at[2] + at[4]).to(tl.float32)
        else:
            value = tl.load(place(ins[i], strides, WHOSE[i], at, STEPS[i], UNIT), mask=mask if STEPS[i] else row_mask)
            value = widened(value) if STEPS[i] else value.to(tl.float64 if value.dtype == tl.float64 else tl.float32)
        values = values + (value,)  # noqa: RUF005, Triton's tuples take no star
    return values


@triton.jit
def _compute(ins, outs, strides, at, row_mask, mask, FN, WHOSE, STEPS, PRECISE, UNIT, SCALE, total):
    """Load, compute, round once, store, and add to total; masks are None for a full tile."""
    results = FN(*_values(ins, strides, at, row_mask, mask, WHOSE, STEPS, UNIT), PRECISE)
    for i in tl.static_range(len(outs)):
        ptr = place(outs[i], strides, WHOSE[len(ins) + i], at, 1, UNIT)
        result = results if SCALE is None and len(outs) == 1 else results[i]
        tl.store(ptr, rounded(result, ptr.dtype.element_ty), mask=mask)
    if SCALE is not None:
        last = (results[len(outs)] if len(outs) else results) * SCALE
        total += last if mask is None else tl.where(mask, last, 0.0)
    return total


@triton.jit
def tile(ins, outs, strides, at, rows, cols, FN, WHOSE, STEPS, PRECISE, UNIT, SCALE, total):
    """One tile of all tensors; where there is a SCALE, the last result, times that, is no output but adds to total.

    ``at`` is where the tile lies: its batch, row and column, and its rows and columns from there.
    """
    _, row, col, m, n = at
    # A masked access shrinks to what the compiler can prove of its mask: only the last tiles are masked.
    if (row + m.shape[0] <= rows) & (col + n.shape[1] <= cols):
        total = _compute(ins, outs, strides, at, None, None, FN, WHOSE, STEPS, PRECISE, UNIT, SCALE, total)
    else:
        row_mask = m < rows - row
        mask = row_mask & (n < cols - col)
        if UNIT > 1:
            mask = tl.max_constancy(mask, [1, UNIT])
        total = _compute(ins, outs, strides, at, row_mask, mask, FN, WHOSE, STEPS, PRECISE, UNIT, SCALE, total)
    return total


@triton.jit
def _map_kernel(
    ins,
    outs,
    strides,  # of batches and of rows
    rows,
    cols,
    FN: tl.constexpr,
    WHOSE: tl.constexpr,
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
    if strides[1] is not None:
        row = tl.program_id(0 if TALL else 2).to(tl.int64) * BLOCK_M
    col = tl.program_id(2 if TALL else 0).to(tl.int64) * BLOCK_N
    at = (batch, row, col, m, n)
    nothing = row  # is summed
    tile(ins, outs, strides, at, rows, cols, FN, WHOSE, STEPS, PRECISE, UNIT, None, nothing)


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
    down, across = -(-at.rows // block_m), -(-at.cols // block_n)  # triton.cdiv costs the host 2 us
    tall = down >= GRID  # a grid's first axis is the long one
    grid = (down, at.batches, across) if tall else (across, at.batches, down)
    with torch.cuda.device_of(like):
        _map_kernel[grid](
            at.tensors[: len(inputs)], at.tensors[len(inputs) :], (at.batch_strides, at.row_strides), at.rows, at.cols,
            fn, at.whose, at.steps, precise([t.dtype for t in outputs]), at.unit, tall, block_m, block_n, **OPTIONS,
        )  # fmt: skip


def precise(dtypes: list[torch.dtype]) -> bool:
    """Whether the last bits of a float32 are part of any result of these dtypes."""
    return not HALF_DTYPES.issuperset(dtypes)


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
    at = layout(tuple(t for t in inputs if isinstance(t, torch.Tensor)), outputs, columns=None in inputs)

    def spread(values: Iterable[Any], between: Iterable[Any]) -> tuple[Any, ...]:
        values, between = iter(values), iter(between)
        return tuple(next(values) if tensor else next(between) for tensor in tensors)

    others = [t for t in inputs if not isinstance(t, torch.Tensor)]
    return at._replace(
        tensors=spread(at.tensors, (1 if t is None else t for t in others)),
        whose=spread(at.whose, repeat(0)),
        steps=spread(at.steps, ("column" if t is None else "number" for t in others)),
    )
