"""How tensors of one shape lie in memory, seen as (batches, rows, columns): what lets a kernel read views in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

VECTOR = 8  # elements: 16 bytes of a half type
GRID = 2**16  # where a grid's second and third axes end


class Layout(NamedTuple):
    """Strides are in units of ``unit`` elements where a row has steps, and None where that axis is not there.

    Tensors whose strides are the same share them, for a kernel to compute an offset once: ``whose`` has the place of each
    tensor's.
    """

    tensors: tuple[torch.Tensor, ...]
    batches: int
    rows: int
    cols: int
    batch_strides: tuple[int, ...] | None
    row_strides: tuple[int, ...] | None
    whose: tuple[int, ...]
    steps: tuple[int, ...]  # along a row: 1, or 0 where the row shares one value
    unit: int


def layout(inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], columns: bool = False) -> Layout:
    """The common layout of inputs, broadcastable to the outputs, and of outputs of one shape and one set of strides.

    An input that no such layout reaches is copied into the outputs' order first. Where columns are asked for, a column is
    the place along the outputs' last dimension, of stride 1, and not along what that could be merged with.
    """
    like = outputs[0]
    shape, dense = like.shape, like.is_contiguous()
    tensors = (*inputs, *outputs)
    for t in inputs:  # plain loops here and in launch(): this is what every launch costs the host
        dense = dense and t.shape == shape and t.is_contiguous()
    if dense:
        count = len(tensors)
        return Layout(tensors, 1, 1, like.numel(), None, None, (0,) * count, (1,) * count, 1)
    axes = axes_of(tensors, like, columns)
    if not reachable(axes):
        tensors = (
            *(t if reachable(axes_of((t, like), like, columns)) else _ordered(t, like) for t in inputs),
            *outputs,
        )
        axes = axes_of(tensors, like, columns)
    if not reachable(axes):  # each one may be, but not together
        tensors = (*(_ordered(t.expand(like.shape), like) for t in inputs), *outputs)
        axes = axes_of(tensors, like, columns)
    *outer, (cols, steps) = axes
    strides = list(zip(*(by for _, by in outer), strict=True)) or [()] * len(tensors)  # of each tensor
    vectors = bool(outer) and cols % VECTOR == 0
    vectors = vectors and all(s % VECTOR == 0 for by, step in zip(strides, steps, strict=True) if step for s in by)
    unit = VECTOR if vectors else 1
    strides = [tuple(s // unit if step else s for s in by) for by, step in zip(strides, steps, strict=True)]
    distinct = list(dict.fromkeys(strides))
    rows, batches = [*reversed([n for n, _ in outer]), 1, 1][:2]
    row_by, batch_by = [*reversed([*zip(*distinct, strict=True)]), None, None][:2]
    return Layout(tensors, batches, rows, cols, batch_by, row_by, tuple(map(distinct.index, strides)), steps, unit)


def axes_of(
    tensors: Sequence[torch.Tensor], like: torch.Tensor, columns: bool = False
) -> list[tuple[int, tuple[int, ...]]]:
    """Axes as (size, a stride a tensor), outermost first; neighbours that are one axis in every tensor become one."""
    strides = zip(*(t.expand(like.shape).stride() for t in tensors), strict=True)
    axes: list[tuple[int, tuple[int, ...]]] = []
    for n, by in sorted(
        ((n, by) for n, by in zip(like.shape, strides, strict=True) if n != 1),
        reverse=True,
        key=lambda axis: axis[1][-1],
    ):
        apart = columns and by[-1] == 1
        if axes and not apart and all(outer == n * inner for outer, inner in zip(axes[-1][1], by, strict=True)):
            axes[-1] = (axes[-1][0] * n, by)
        else:
            axes.append((n, by))
    if not axes or axes[-1][1][-1] != 1:  # one element, or outputs of one column each
        axes.append((1, (1,) * len(tensors)))
    return axes


def reachable(axes: list[tuple[int, tuple[int, ...]]]) -> bool:
    """Three axes at most, the innermost one read in steps of 1 or 0; the outermost is a grid's second."""
    return len(axes) <= 3 and all(s in (0, 1) for s in axes[-1][1]) and (len(axes) < 3 or axes[0][0] < GRID)


def _ordered(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A dense copy of t with its axes in like's order."""
    strides, step = [0] * t.dim(), 1
    for axis in sorted(range(t.dim()), key=lambda i: like.stride(i - t.dim())):
        strides[axis], step = step, step * t.shape[axis]
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)
