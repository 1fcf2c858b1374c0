"""Layouts: tensors of one shape seen as (batches, rows, columns), so that a kernel reads views in place.

Why three axes: dimensions that are one axis in every tensor merge, so dense tensors are a single row. Rows serve halves of a
packed tensor, padded rows and a gate per token. Batches serve what varies along a dimension in the middle: a gate per
channel, or the classes of images. A grid has three axes, too. Tensors that need a fourth are copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Index(Enum):
    """The type of INDEX, an operand of kernels that is no tensor and no number."""

    INDEX = "an element's index along the last dimension"


INDEX = Index.INDEX
Operand = torch.Tensor | float | Index

# Kinds of operands: tensors with a value per row, per column or per element of a tile; numbers; and INDEX, by the axis that
# is the last dimension.
KINDS = PER_ROW, PER_COLUMN, PER_ELEMENT, NUMBER, COLUMN_INDEX, ROW_INDEX, BATCH_INDEX = tuple(range(7))
MAX_GRID = 2**16  # a grid's second and third axes have fewer programs
HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
WARPS = 4
# Two 16-byte accesses per thread and tensor: with four, an H200 took up to 4 % longer, for the registers of more threads.
TILE_BYTES = 2 * 16 * 32 * WARPS
# Columns of a tile for short and for longer rows. Each width is a compilation, so there are only two.
SHORT_ROW = 64
NARROW_TILE, WIDE_TILE = 16, 128
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Unreachable(Exception):
    """Tensors that no three axes describe."""


class Axis(NamedTuple):
    """An axis that several tensors share."""

    size: int
    strides: tuple[int, ...]  # one per tensor, outputs last; 0 where a tensor is broadcast


class Layout(NamedTuple):
    """Sizes, strides and kinds by which a kernel finds the elements of its operands.

    Tensors with equal strides share a set of them, so that a kernel computes an offset once. Strides of an operand that is
    read per element are in units of ``vector`` elements.
    """

    batches: int
    rows: int
    cols: int
    batch_strides: tuple[int, ...] | None  # one per set; None without that axis
    row_strides: tuple[int, ...] | None
    stride_sets: tuple[int, ...]  # one per operand: its set of strides
    kinds: tuple[int, ...]  # one per operand
    vector: int  # elements of one access; all row strides are multiples of it


class LossPass(NamedTuple):
    """Functions of ``_loss_math.py``, by which a kernel does one pass of a loss."""

    returns: Any  # what the pass returns: ``value``, ``gradient`` or ``gradient_and_value``
    loss: Any  # such as ``bce``
    target: Any  # how the target is read: ``dense``, ``mask`` or ``class_index``


def functions_of(fn: Any) -> tuple[Any, Any, Any]:
    """Returns FN, LOSS and TARGET of a kernel for a pass of a loss or for a scalar function."""
    return fn if isinstance(fn, LossPass) else (fn, None, None)


class Form(NamedTuple):
    """Properties that a kernel is compiled for, beside its function and its tile's shape."""

    stride_sets: tuple[int, ...]
    kinds: tuple[int, ...]
    vector: int
    precise: bool  # the last bits of a float32 count: results of half types would round them away
    double: bool  # all is computed in float64
    target_input: int | None  # the input whose elements are ignored where they equal the last input


def layout_of(inputs: tuple[Operand, ...], outputs: Sequence[torch.Tensor]) -> Layout:
    """Returns the common layout of inputs, broadcastable to the outputs, and of outputs of one shape and strides.

    Raises:
        Unreachable: if some inputs have to be copied first.
    """
    tensors, like, indexed = [*_tensors(inputs), *outputs], outputs[0], index_input(inputs) >= 0
    axes = axes_of(tensors, like, apart=indexed)
    if not is_reachable(axes):
        raise Unreachable
    *outer, cols = axes
    vector = _vector(tensors, outer, cols)
    units = [vector if step else 1 for step in cols.strides]
    strides = [tuple(axis.strides[i] // unit for axis in outer) for i, unit in enumerate(units)]  # of each tensor
    sets = list(dict.fromkeys(strides))
    index_kind = _index_kind(axes, like) if indexed else NUMBER
    kinds, stride_sets = [], []
    of_tensors = iter(zip(strides, cols.strides, strict=True))
    for operand in (*inputs, *outputs):
        if isinstance(operand, torch.Tensor):
            own, step = next(of_tensors)
            kinds.append(_kind(step, own, index_kind))
            stride_sets.append(sets.index(own))
        else:
            kinds.append(index_kind if operand is INDEX else NUMBER)
            stride_sets.append(0)  # not read
    batches, rows = [1, 1, *(axis.size for axis in outer)][-2:]
    batch_strides, row_strides = [None, None, *zip(*sets, strict=True)][-2:]
    return Layout(batches, rows, cols.size, batch_strides, row_strides, tuple(stride_sets), tuple(kinds), vector)


def _vector(tensors: list[torch.Tensor], outer: list[Axis], cols: Axis) -> int:
    """Returns how many elements an access of 16 bytes has, or 1 if some row does not start and end with a whole access."""
    steps = [bool(step) for step in cols.strides]
    vector = min(8, 16 // min(t.element_size() for t, step in zip(tensors, steps, strict=True) if step))
    strides = [s for axis in outer for s, step in zip(axis.strides, steps, strict=True) if step]
    whole = cols.size % vector == 0 and all(s % vector == 0 for s in strides)
    return vector if outer and whole else 1


def _kind(step: int, strides: tuple[int, ...], index_kind: int) -> int:
    """Returns the kind of a tensor with this stride along columns and these ones along the outer axes.

    Class indices beside rows that are classes are the same in every row: loaded once per column.
    """
    if not step:
        return PER_ROW
    return PER_COLUMN if index_kind == ROW_INDEX and not strides[-1] else PER_ELEMENT


def _index_kind(axes: list[Axis], like: torch.Tensor) -> int:
    """Returns the index along the axis that is like's last dimension; like's strides come last and are distinct."""
    inwards = [axis.strides[-1] for axis in reversed(axes)]
    return (COLUMN_INDEX, ROW_INDEX, BATCH_INDEX)[inwards.index(like.stride(-1))]


def index_input(inputs: Sequence[Operand]) -> int:
    """Returns the position of the input that is INDEX, or -1."""
    return next((i for i, t in enumerate(inputs) if t is INDEX), -1)


def _tensors(operands: Sequence[Operand]) -> list[torch.Tensor]:
    return [t for t in operands if isinstance(t, torch.Tensor)]


def axes_of(tensors: Sequence[torch.Tensor], like: torch.Tensor, apart: bool = False) -> list[Axis]:
    """Returns the axes of tensors expanded to like's shape, outermost first, in the order of the last tensor's strides.

    Merges neighbours that are one axis in every tensor; if ``apart``, never merges the last dimension.
    """
    strides = zip(*(t.expand(like.shape).stride() for t in tensors), strict=True)
    dims = [Axis(size, by) for size, by in zip(like.shape, strides, strict=True) if size != 1]
    alone = like.stride(-1) if apart else None  # outputs are dense, with strides that all differ
    axes: list[Axis] = []
    for inner in sorted(dims, key=lambda axis: axis.strides[-1], reverse=True):
        if axes and alone not in (inner.strides[-1], axes[-1].strides[-1]) and _are_one(axes[-1], inner):
            axes[-1] = Axis(axes[-1].size * inner.size, inner.strides)
        else:
            axes.append(inner)
    if not axes or axes[-1].strides[-1] != 1:  # one element, or outputs of one column each
        axes.append(Axis(1, (1,) * len(tensors)))
    return axes


def _are_one(outer: Axis, inner: Axis) -> bool:
    return all(o == inner.size * i for o, i in zip(outer.strides, inner.strides, strict=True))


def is_reachable(axes: list[Axis]) -> bool:
    """Returns whether a kernel can follow these axes: at most three, the innermost with strides of 1 or 0.

    The outermost of three is a grid's second axis, which must not be too long.
    """
    few = len(axes) < 3 or (len(axes) == 3 and axes[0].size < MAX_GRID)
    return few and all(s in (0, 1) for s in axes[-1].strides)


def with_copies(inputs: tuple[Operand, ...], outputs: Sequence[torch.Tensor]) -> tuple[Operand, ...]:
    """Returns inputs that a common layout reaches.

    Copies the tensors that no layout reaches alone, with their axes in the outputs' order. If that is not enough, copies
    all tensors, expanded.
    """
    like, apart = outputs[0], index_input(inputs) >= 0

    def all_reachable(inputs: tuple[Operand, ...]) -> bool:
        return is_reachable(axes_of([*_tensors(inputs), *outputs], like, apart))

    alone = tuple(t if not isinstance(t, torch.Tensor) or all_reachable((t,)) else _ordered(t, like) for t in inputs)
    if all_reachable(alone):
        return alone
    return tuple(_ordered(t.expand(like.shape), like) if isinstance(t, torch.Tensor) else t for t in inputs)


def _ordered(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns a dense copy of t with its axes in like's order."""
    strides, step = [0] * t.dim(), 1
    for axis in sorted(range(t.dim()), key=lambda i: like.stride(i - t.dim())):
        strides[axis], step = step, step * t.shape[axis]
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def exact(inputs: tuple[Operand, ...], like: torch.Tensor) -> tuple[Operand, ...]:
    """Returns inputs with numbers as tensors if like is float64: a number is a float32 to Triton."""
    if like.dtype != torch.float64:
        return inputs
    return tuple(like.new_full((), t) if isinstance(t, float) else t for t in inputs)


def form_of(
    layout: Layout, inputs: Sequence[Operand], results: Sequence[torch.dtype], target_input: int | None = None
) -> Form:
    """Returns the form of a kernel that reads inputs, and whose results have these dtypes."""
    precise = not HALF_DTYPES.issuperset(results)
    double = any(t.dtype == torch.float64 for t in _tensors(inputs))
    return Form(layout.stride_sets, layout.kinds, layout.vector, precise, double, target_input)


def tile_shape(layout: Layout, size: int) -> tuple[int, int]:
    """Returns the rows and columns of a tile; of one row, it has ``size`` elements."""
    if layout.row_strides is None or (layout.cols >= 2 * size and PER_COLUMN not in layout.kinds):
        return 1, size
    # Each row has an address of its own, which takes registers: fewer elements.
    if layout.cols <= SHORT_ROW:
        return size // 4 // NARROW_TILE, NARROW_TILE
    return size // 2 // WIDE_TILE, WIDE_TILE


def encode_strides(strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Encodes s as 2s + 1, so that Triton does not specialise on 1 or on multiples of 16."""
    return None if strides is None else tuple(2 * s + 1 for s in strides)


@triton.jit
def decode_stride(stride):
    """Decodes 2s + 1 as s."""
    # The interpreter's integers in [2^31, 2^32) are unsigned: a shift would read them as negative.
    return stride // 2 if INTERPRETED else stride >> 1
