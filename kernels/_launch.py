"""The elementwise kernel and its launch: blocks, masks, 64-bit offsets and the device guard, written once.

An operation is a scalar function from ``_math.py``, a constexpr parameter of the one kernel; where its tensors lie is a
``Layout``. Dense tensors are one row, and nothing about rows is compiled for them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._layout import layout

WARPS = 4
# Two 16-byte accesses in flight a thread and tensor: what it takes to fill a B200's memory system.
BYTES_PER_PROGRAM = 2 * 16 * 32 * WARPS
OPTIONS: dict[str, Any] = {"num_warps": WARPS}
if not triton.knobs.runtime.interpret:  # the interpreter has no such option
    OPTIONS["enable_fp_fusion"] = True


@triton.jit
def _place(ptr, i, batch_strides, row_strides, row, col, m, n, STEP: tl.constexpr, UNIT: tl.constexpr):
    """Tensor i's elements of a tile: a 64-bit corner, 32-bit lanes from there. A STEP of 0 is one value a row."""
    if batch_strides is not None:
        ptr += tl.program_id(1).to(tl.int64) * batch_strides[i] * UNIT
    if row_strides is not None:
        ptr += row * row_strides[i] * UNIT
        m = m.to(tl.int64) * row_strides[i] * UNIT
    if STEP:
        ptr += col
        m += n
    return ptr + m


@triton.jit
def _tile(ins, outs, batch_strides, row_strides, row, col, m, n, row_mask, mask, FN, STEPS, PRECISE, UNIT):
    """Load, compute in float32 (float64 stays), round once, store; masks are None for a full tile."""
    values = ()
    for i in tl.static_range(len(ins)):
        ptr = _place(ins[i], i, batch_strides, row_strides, row, col, m, n, STEPS[i], UNIT)
        value = tl.load(ptr, mask=mask if STEPS[i] else row_mask)
        values = values + (value.to(tl.float64 if value.dtype == tl.float64 else tl.float32),)
    results = FN(*values, PRECISE)
    for i in tl.static_range(len(outs)):
        ptr = _place(outs[i], len(ins) + i, batch_strides, row_strides, row, col, m, n, 1, UNIT)
        tl.store(ptr, results[i] if len(outs) > 1 else results, mask=mask)


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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    row = tl.cast(0, tl.int64)
    col = tl.program_id(0).to(tl.int64) * BLOCK_N
    if row_strides is not None:
        blocks = tl.cdiv(cols, BLOCK_N)
        row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_M
        col = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N
    # A masked access shrinks to what the compiler can prove of its mask: only the last tiles are masked.
    if (row + BLOCK_M <= rows) & (col + BLOCK_N <= cols):
        _tile(ins, outs, batch_strides, row_strides, row, col, m, n, None, None, FN, STEPS, PRECISE, UNIT)
    else:
        row_mask = m < rows - row
        mask = row_mask & (n < cols - col)
        if UNIT > 1:
            mask = tl.max_constancy(mask, [1, UNIT])
        _tile(ins, outs, batch_strides, row_strides, row, col, m, n, row_mask, mask, FN, STEPS, PRECISE, UNIT)


def launch(fn: Any, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
    """Runs fn on inputs, each broadcastable to the outputs' shape, into the outputs.

    Outputs share one shape and one set of strides, are freshly allocated and overlap nothing.
    """
    like = outputs[0]
    if not like.numel():
        return
    at = layout(inputs, outputs)
    block_n = BYTES_PER_PROGRAM // like.element_size()
    block_m = 1
    if at.row_strides is not None and at.cols < block_n:
        block_m, block_n = block_n // triton.next_power_of_2(at.cols), triton.next_power_of_2(at.cols)
    precise = like.dtype not in (torch.float16, torch.bfloat16)
    grid = (triton.cdiv(at.rows, block_m) * triton.cdiv(at.cols, block_n), at.batches)
    with torch.cuda.device_of(like):
        _map_kernel[grid](
            at.tensors[: len(inputs)], at.tensors[len(inputs) :], at.batch_strides, at.row_strides, at.rows, at.cols,
            fn, at.steps, precise, at.unit, block_m, block_n, **OPTIONS,
        )  # fmt: skip
