"""The elementwise kernel: applies a scalar function to each element of its inputs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._layout import (
    TILE_BYTES,
    WARPS,
    Operand,
    form_of,
    functions_of,
    grid_axes,
    layout_of,
    tile_shape,
)
from sigtorch.kernels._plan import Call, plan
from sigtorch.kernels._tile import Tile, run_tile


@triton.jit(do_not_specialize=["rows", "cols"])
def _map_kernel(
    inputs,
    outputs,
    batch_sizes,
    batch_strides,
    row_strides,
    rows,
    cols,
    FN: tl.constexpr,
    LOSS: tl.constexpr,
    TARGET: tl.constexpr,
    FORM: tl.constexpr,
    AXES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    strides = (batch_sizes, batch_strides, row_strides)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    batch = tl.program_id(AXES.batches).to(tl.int64)
    row = tl.cast(0, tl.int64)
    if row_strides is not None:
        row = tl.program_id(AXES.rows).to(tl.int64) * BLOCK_M
    col = tl.program_id(AXES.cols).to(tl.int64) * BLOCK_N
    tile = Tile(batch, row, col, m, n, rows, cols)
    unused = row  # run_tile() wants accumulators
    run_tile(inputs, outputs, strides, tile, FN, LOSS, TARGET, FORM, None, unused, unused)


def launch_map(
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    *,
    target_input: int | None = None,
    warps: int = WARPS,
    results: tuple[int, ...] | None = None,
) -> None:
    """Writes fn's results into the outputs.

    Args:
        fn: a scalar function of ``_math.py``, or the pass of a loss.
        inputs: tensors that broadcast to the outputs' shape, numbers, or ``INDEX``: an element's index along the outputs'
            last dimension.
        outputs: freshly allocated tensors of one shape, with the same strides, that do not overlap.
        target_input: the input whose elements are ignored where they equal the last input, a number: results are 0 there.
        warps: per tile. More of them have fewer elements per thread, and take fewer registers.
        results: which of fn's results are written, one per output; None for the first ones.
    """
    if outputs[0].numel():
        ready, inputs = plan(_map_call, fn, inputs, outputs, (target_input, warps, results))
        ready.launch(inputs, outputs)


def _map_call(
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    target_input: int | None,
    warps: int,
    results: tuple[int, ...] | None = None,
) -> Call:
    layout = layout_of(inputs, outputs)
    block_m, block_n = tile_shape(layout, TILE_BYTES // outputs[0].element_size())
    down, across = triton.cdiv(layout.rows, block_m), triton.cdiv(layout.cols, block_n)
    axes = grid_axes(layout.batches, down)
    form = form_of(fn, layout, inputs, [t.dtype for t in outputs], target_input, results)
    arguments = (*layout.encoded, layout.rows, layout.cols, *functions_of(fn), form, axes, block_m, block_n)
    return Call(_map_kernel, axes.grid(across, layout.batches, down), arguments, warps=warps)
