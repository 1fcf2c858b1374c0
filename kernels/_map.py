"""The elementwise kernel: every element of the outputs is a scalar function of those of the inputs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._launch import TILE_BYTES, WARPS, Call, form, odd, plan, tile_of
from sigtorch.kernels._layout import MAX_GRID, Operand, layout
from sigtorch.kernels._tile import compute


@triton.jit(do_not_specialize=["rows", "cols"])
def _map_kernel(
    inputs,
    outputs,
    batch_strides,
    row_strides,
    rows,
    cols,
    FN: tl.constexpr,
    FORM: tl.constexpr,
    ROWS_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    strides = (batch_strides, row_strides)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    batch = tl.program_id(1).to(tl.int64)
    row = tl.cast(0, tl.int64)
    if row_strides is not None:
        row = tl.program_id(0 if ROWS_FIRST else 2).to(tl.int64) * BLOCK_M
    col = tl.program_id(2 if ROWS_FIRST else 0).to(tl.int64) * BLOCK_N
    tile = (batch, row, col, m, n)
    nothing = row  # is summed or counted
    compute(inputs, outputs, strides, tile, rows, cols, FN, FORM, None, nothing, nothing)


def launch_map(
    fn: Any, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], ignoring: int = 0, warps: int = WARPS
) -> None:
    """Runs fn on inputs, each broadcastable to the outputs' shape, into the outputs.

    Outputs share one shape and one set of strides, are freshly allocated and overlap nothing. An input may also be a
    number, or None: the element's place along the outputs' last dimension. Where the input at ignoring is the number that
    comes last, the result is 0. More warps share a tile: fewer elements a thread, and fewer registers.
    """
    if outputs[0].numel():
        ready, inputs = plan(_call, fn, inputs, outputs, (ignoring, warps))
        ready.launch(inputs, outputs)


def _call(fn: Any, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], option: tuple[int, int]) -> Call:
    at, (ignoring, warps) = layout(inputs, outputs), option
    block_m, block_n = tile_of(at, TILE_BYTES // outputs[0].element_size())
    down, across = triton.cdiv(at.rows, block_m), triton.cdiv(at.cols, block_n)
    rows_first = down >= MAX_GRID  # a grid's first axis is the long one
    grid = (down, at.batches, across) if rows_first else (across, at.batches, down)
    of = form(at, inputs, [t.dtype for t in outputs], ignoring)
    strides = odd(at.batch_strides), odd(at.row_strides)
    arguments = (*strides, at.rows, at.cols, fn, of, rows_first, block_m, block_n)
    return Call(_map_kernel, grid, arguments, warps=warps)
