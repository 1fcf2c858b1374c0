"""How tensors of one shape lie in memory, seen as (batches, rows, columns): what lets a kernel read views in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

Operand = torch.Tensor | float | None  # None stands for an element's place along the last dimension

ONE_A_ROW, ONE_A_COLUMN, EVERY_ELEMENT, NUMBER, COLUMN, ROW, BATCH = range(7)  # what an operand is to a kernel
MAX_GRID = 2**16  # where a grid's second and third axes end


class Layout(NamedTuple):
    """Strides are in units of ``vector`` elements for an operand read at every element, and None without that axis.

    Tensors whose strides are the same share one set of them, so that a kernel computes an offset once.
    """

    batches: int
    rows: int
    cols: int
    batch_strides: tuple[int, ...] | None  # of each set
    row_strides: tuple[int, ...] | None
    sets: tuple[int, ...]  # of each operand: which set of strides it uses
    kinds: tuple[int, ...]
    vector: int  # elements that one access reads: all row strides are multiples of it


def reached(inputs: tuple[Operand, ...], outputs: Sequence[torch.Tensor]) -> tuple[Operand, ...]:
    """The inputs themselves, or with copies of those that no common layout reaches, in the outputs' order."""
    like, apart = outputs[0], None in inputs

    def all_reachable(inputs: tuple[Operand, ...]) -> bool:
        return reachable(axes_of([*_tensors(inputs), *outputs], like, apart))

    if all_reachable(inputs):
        return inputs
    alone = tuple(t if not isinstance(t, torch.Tensor) or all_reachable((t,)) else _ordered(t, like) for t in inputs)
    if all_reachable(alone):
        return alone
    return tuple(_ordered(t.expand(like.shape), like) if isinstance(t, torch.Tensor) else t for t in inputs)


def layout(inputs: tuple[Operand, ...], outputs: Sequence[torch.Tensor]) -> Layout:
    """The common layout of inputs, reached and broadcastable to the outputs, and of outputs of one shape and strides.

    Where places along the last dimension are asked for, that is an axis of its own.
    """
    tensors, like = [*_tensors(inputs), *outputs], outputs[0]
    axes = axes_of(tensors, like, None in inputs)
    *outer, (cols, steps) = axes
    strides = list(zip(*(by for _, by in outer), strict=True)) or [()] * len(tensors)  # of each tensor
    every = [t for t, step in zip(tensors, steps, strict=True) if step]
    vector = min(8, 16 // min(t.element_size() for t in every))
    aligned = all(s % vector == 0 for by, step in zip(strides, steps, strict=True) if step for s in by)
    vector = vector if outer and aligned and cols % vector == 0 else 1
    strides = [tuple(s // vector if step else s for s in by) for by, step in zip(strides, steps, strict=True)]
    distinct = list(dict.fromkeys(strides))
    rows, batches = [*reversed([n for n, _ in outer]), 1, 1][:2]
    row_by, batch_by = [*reversed([*zip(*distinct, strict=True)]), None, None][:2]
    place = _place(axes, like) if None in inputs else NUMBER
    sets = map(distinct.index, strides)
    kinds = (_kind(step, by, place) for step, by in zip(steps, strides, strict=True))
    # Numbers in between use no strides.
    at = [(next(sets), next(kinds)) if isinstance(t, torch.Tensor) else (0, place if t is None else NUMBER)
          for t in (*inputs, *outputs)]  # fmt: skip
    return Layout(batches, rows, cols, batch_by, row_by, *zip(*at, strict=True), vector)


def _kind(step: int, by: tuple[int, ...], place: int) -> int:
    """A class index along columns serves every row, which is a class: a kernel loads it once for several."""
    if not step:
        return ONE_A_ROW
    return ONE_A_COLUMN if place == ROW and not by[-1] else EVERY_ELEMENT


def _place(axes: list[tuple[int, tuple[int, ...]]], like: torch.Tensor) -> int:
    """Which axis is the last dimension of like, whose own strides are last: no two are the same."""
    inwards = [by[-1] for _, by in reversed(axes)]
    return (COLUMN, ROW, BATCH)[inwards.index(like.stride(-1))]


def _tensors(operands: Sequence[Operand]) -> list[torch.Tensor]:
    return [t for t in operands if isinstance(t, torch.Tensor)]


def axes_of(
    tensors: Sequence[torch.Tensor], like: torch.Tensor, apart: bool = False
) -> list[tuple[int, tuple[int, ...]]]:
    """Axes as (size, a stride a tensor), outermost first; neighbours that are one axis in every tensor become one.

    But for the last dimension, where that is to stay apart.
    """
    strides = zip(*(t.expand(like.shape).stride() for t in tensors), strict=True)
    axes: list[tuple[int, tuple[int, ...]]] = []
    alone = like.stride(-1) if apart else None  # of dense outputs, whose strides all differ
    for n, by in sorted(
        ((n, by) for n, by in zip(like.shape, strides, strict=True) if n != 1),
        reverse=True,
        key=lambda axis: axis[1][-1],
    ):
        outer = axes[-1][1] if axes else ()
        merges = outer and alone not in (by[-1], outer[-1])
        if merges and all(o == n * inner for o, inner in zip(outer, by, strict=True)):
            axes[-1] = (axes[-1][0] * n, by)
        else:
            axes.append((n, by))
    if not axes or axes[-1][1][-1] != 1:  # one element, or outputs of one column each
        axes.append((1, (1,) * len(tensors)))
    return axes


def reachable(axes: list[tuple[int, tuple[int, ...]]]) -> bool:
    """Three axes at most, the innermost one read in steps of 1 or 0; the outermost is a grid's second."""
    return len(axes) <= 3 and all(s in (0, 1) for s in axes[-1][1]) and (len(axes) < 3 or axes[0][0] < MAX_GRID)


def _ordered(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A dense copy of t with its axes in like's order."""
    strides, step = [0] * t.dim(), 1
    for axis in sorted(range(t.dim()), key=lambda i: like.stride(i - t.dim())):
        strides[axis], step = step, step * t.shape[axis]
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)
