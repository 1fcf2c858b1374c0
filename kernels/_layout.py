"""Layouts: tensors of one shape seen as (batches, rows, columns), so that a kernel reads views in place.

Why three axes: dimensions that are one axis in every tensor merge, so dense tensors are a single row. Rows serve halves of a
packed tensor, padded rows and a gate per token. Batches serve what varies along a dimension in the middle: a gate per
channel, or the classes of images. A grid has three axes, too. If tensors need more, batches are several axes, and a program
divides its batch into an index along each.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Index(Enum):
    """The type of INDEX, an operand of kernels that is no tensor and no number."""

    INDEX = "an element's index along the last dimension"


INDEX = Index.INDEX
Operand = torch.Tensor | float | Index

# Kinds of operands: tensors with a value per row, per column or per element of a tile; the same, whose neighbours in memory
# are those of a column; numbers; and INDEX, by the axis that is the last dimension.
KINDS = PER_ROW, PER_COLUMN, PER_ELEMENT, TRANSPOSED, NUMBER, COLUMN_INDEX, ROW_INDEX, BATCH_INDEX = tuple(range(8))
MAX_GRID = 2**16  # a grid's second and third axes have fewer programs
HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
# Dtypes of pairs of neighbours, which ``_tile.py`` takes apart.
PAIRS = {torch.bfloat16: torch.int32, torch.float16: torch.uint32, torch.float32: torch.uint64}
PAIR_TYPES = {torch.int32: tl.int32, torch.uint32: tl.uint32, torch.uint64: tl.uint64}
ROUNDING_DTYPES = HALF_DTYPES | {PAIRS[dtype] for dtype in HALF_DTYPES}
WARPS = 4
# Two 16-byte accesses per thread and tensor: with four, an H200 took up to 4 % longer, for the registers of more threads.
TILE_BYTES = 2 * 16 * 32 * WARPS
# Columns of a tile for short and for longer rows. Each width is a compilation, so there are only two.
SHORT_ROW = 64
NARROW_TILE, WIDE_TILE = 16, 128
SQUARE_TILE = 32  # where an operand is transposed: both ways, a tile reads 64 bytes or more at once
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Unreachable(Exception):
    """Tensors whose elements a kernel cannot find."""


class Axis(NamedTuple):
    """An axis that several tensors share."""

    size: int
    strides: tuple[int, ...]  # one per tensor, outputs last; 0 where a tensor is broadcast


class Roles(NamedTuple):
    """Names the use that a kernel makes of each axis."""

    batches: list[Axis]  # innermost first
    rows: Axis | None
    cols: Axis


class Layout(NamedTuple):
    """Sizes, strides and kinds by which a kernel finds the elements of its operands.

    Tensors with equal strides share a set of them, so that a kernel computes an offset once. Strides of an operand that is
    read per element are in units of ``vector`` elements.
    """

    batches: int
    rows: int
    cols: int
    batch_sizes: tuple[int, ...] | None  # of the axes that batches are, innermost first, without the last; None if one
    batch_strides: tuple[int, ...] | None  # one per set, for each axis that batches are; None without such an axis
    row_strides: tuple[int, ...] | None  # one per set; of a transposed operand, the stride from column to column
    stride_sets: tuple[int, ...]  # one per operand: its set of strides
    kinds: tuple[int, ...]  # one per operand
    vector: int  # elements of one access; all row strides are multiples of it
    parts: int  # how many sums of each element the batches write

    @property
    def sums_over(self) -> tuple[bool, bool]:
        """Whether the last operand, the sums, are over rows, and over columns."""
        along_rows = 0 if self.row_strides is None else self.row_strides[self.stride_sets[-1]]
        is_over_cols = self.kinds[-1] == PER_ROW
        return (self.rows > 1 and not along_rows) or not is_over_cols, is_over_cols

    @property
    def encoded(self) -> tuple[tuple[int, ...] | None, ...]:
        """How a kernel is given the strides: the sizes of batches, then the strides of batches and of rows."""
        return encode(self.batch_sizes), encode(self.batch_strides), encode(self.row_strides)


class GridAxes(NamedTuple):
    """Which axis of a grid has the programs of columns, of batches and of rows."""

    cols: int = 0
    batches: int = 1
    rows: int = 2

    def grid(self, cols: int, batches: int, rows: int) -> tuple[int, int, int]:
        """Returns a grid of so many programs."""
        first, second, third = (n for _, n in sorted(zip(self, (cols, batches, rows), strict=True)))
        return first, second, third


def grid_axes(batches: int, rows: int) -> GridAxes:
    """Returns the axes for so many programs: only the first may have MAX_GRID, and no memory has two such."""
    if batches >= MAX_GRID:
        return GridAxes(cols=1, batches=0, rows=2)
    return GridAxes(cols=2, batches=1, rows=0) if rows >= MAX_GRID else GridAxes()


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
    results: tuple[int, ...] | None = None  # the function's results that are used, in order; None for all
    pair: tl.dtype | None = None  # the type of operands that are pairs of neighbours


def layout_of(inputs: tuple[Operand, ...], outputs: Sequence[torch.Tensor], sums: torch.Tensor | None = None) -> Layout:
    """Returns the common layout of inputs, broadcastable to the outputs, of outputs of one shape and strides, and of sums.

    Sums are an operand behind the outputs: dense, of a shape that broadcasts to the outputs'.

    Raises:
        Unreachable: if some inputs have to be copied first.
    """
    summed = [] if sums is None else [sums]
    tensors, like, indexed = [*summed, *_tensors(inputs), *outputs], outputs[0], index_input(inputs) >= 0
    axes = axes_of(tensors, like, apart=indexed)
    roles = roles_of(axes, indexed, sums is not None)
    if roles is None:
        raise Unreachable
    batches, rows, cols = roles
    parts = 1
    if sums is not None:
        batches, parts = _with_parts(batches, sums.numel())
    vector = _vector(tensors, batches, rows, cols)
    strides = []  # of each tensor
    for i, step in enumerate(cols.strides):
        unit, down = vector if step else 1, [] if rows is None else [step if step > 1 else rows.strides[i]]
        strides.append(tuple(by // unit for by in (*(axis.strides[i] for axis in batches), *down)))
    sets = list(dict.fromkeys((*strides[len(summed) :], *strides)))
    index_kind = _index_kind(axes, like) if indexed else NUMBER
    kinds, stride_sets = [], []
    of_tensors = iter([*zip(strides, cols.strides, strict=True)][len(summed) :])
    for operand in (*inputs, *outputs):
        if isinstance(operand, torch.Tensor):
            own, step = next(of_tensors)
            kinds.append(_kind(step, own, index_kind))
            stride_sets.append(sets.index(own))
        else:
            kinds.append(index_kind if operand is INDEX else NUMBER)
            stride_sets.append(0)  # not read
    if sums is not None:
        kinds.append(PER_ELEMENT if cols.strides[0] else PER_ROW)
        stride_sets.append(sets.index(strides[0]))
    by_axis = [*zip(*sets, strict=True)]
    row_strides = None if rows is None else by_axis.pop()
    return Layout(
        prod(axis.size for axis in batches),
        1 if rows is None else rows.size,
        cols.size,
        tuple(axis.size for axis in batches[:-1]) or None,
        tuple(by for axis in by_axis for by in axis) or None,
        row_strides,
        tuple(stride_sets),
        tuple(kinds),
        vector,
        parts,
    )


def roles_of(axes: list[Axis], indexed: bool = False, has_sums: bool = False) -> Roles | None:
    """Returns what a kernel takes each axis for, or None if it cannot follow them.

    Along columns, a stride is 0 or 1, or else 1 along rows. Sums, the first tensor, have strides of 0 along axes to sum: rows
    are such an axis unless columns are.
    """
    *outer, cols = axes
    is_crossed = any(step > 1 for step in cols.strides)
    if indexed and not is_straight(axes, indexed):
        return None
    if not outer:
        return None if is_crossed else Roles([], None, cols)
    fit = [axis for axis in outer if not axis.strides[0]] if has_sums and cols.strides[0] else outer
    if is_crossed:
        fit = [
            axis
            for axis in fit
            if all(by == 1 for by, step in zip(axis.strides, cols.strides, strict=True) if step > 1)
        ]
        if not fit:
            return None
    rows = max(fit, key=lambda axis: axis.size) if has_sums or is_crossed or len(outer) > 2 else outer[-1]
    return Roles([axis for axis in reversed(outer) if axis is not rows], rows, cols)


def is_straight(axes: list[Axis], indexed: bool = False) -> bool:
    """Returns whether all strides along columns are 0 or 1; if ``indexed``, there must be three axes at most, too."""
    return (len(axes) <= 3 or not indexed) and all(step in (0, 1) for step in axes[-1].strides)


def _with_parts(batches: list[Axis], size: int) -> tuple[list[Axis], int]:
    """Returns batches along which sums, the first tensor, have room for a part from each batch; and how many parts."""
    parts, axes = 1, []
    for axis in batches:
        own, *others = axis.strides
        if not own:
            own, parts = parts * size, parts * axis.size
        axes.append(Axis(axis.size, (own, *others)))
    return axes, parts


def _vector(tensors: list[torch.Tensor], batches: list[Axis], rows: Axis | None, cols: Axis) -> int:
    """Returns how many elements an access of 16 bytes has, or 1 if some row does not start and end with a whole access.

    Of transposed tensors, this is so for columns.
    """
    if rows is None:
        return 1
    reads = [i for i, step in enumerate(cols.strides) if step]
    vector = min(8, 16 // min(tensors[i].element_size() for i in reads))
    strides = [axis.strides[i] for axis in batches for i in reads]
    strides += [cols.strides[i] if cols.strides[i] > 1 else rows.strides[i] for i in reads]
    sizes = [cols.size, *(rows.size for i in reads if cols.strides[i] > 1)]
    return vector if all(n % vector == 0 for n in (*sizes, *strides)) else 1


def _kind(step: int, strides: tuple[int, ...], index_kind: int) -> int:
    """Returns the kind of a tensor with this stride along columns and these ones along the outer axes.

    Class indices beside rows that are classes are the same in every row: loaded once per column.
    """
    if step > 1:
        return TRANSPOSED
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


def with_copies(inputs: tuple[Operand, ...], outputs: Sequence[torch.Tensor]) -> tuple[Operand, ...]:
    """Returns inputs that a common layout reaches.

    Copies the tensors that are not straight alone, with their axes in the outputs' order. If there are none, or if that is
    not enough, copies all tensors, expanded.
    """
    like, indexed = outputs[0], index_input(inputs) >= 0

    def all_straight(inputs: tuple[Operand, ...]) -> bool:
        return is_straight(axes_of([*_tensors(inputs), *outputs], like, indexed), indexed)

    bent = [isinstance(t, torch.Tensor) and not all_straight((t,)) for t in inputs]
    if any(bent):
        alone = tuple(_ordered(t, like) if b else t for t, b in zip(inputs, bent, strict=True))
        if all_straight(alone):
            return alone
    return tuple(_ordered(t.expand(like.shape), like) if isinstance(t, torch.Tensor) else t for t in inputs)


def _ordered(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns a dense copy of t with its axes in like's order."""
    strides = ordered_strides(t.shape, like)
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def ordered_strides(shape: Sequence[int], like: torch.Tensor) -> list[int]:
    """Returns the strides of a dense tensor, of a shape that broadcasts to like's, with its axes in like's order."""
    strides, step = [0] * len(shape), 1
    for axis in sorted(range(len(shape)), key=lambda i: (like.stride(i - len(shape)), -i)):
        strides[axis], step = step, step * shape[axis]
    return strides


def exact(inputs: tuple[Operand, ...], like: torch.Tensor) -> tuple[Operand, ...]:
    """Returns inputs with numbers as tensors if like is float64: a number is a float32 to Triton."""
    if like.dtype != torch.float64:
        return inputs
    return tuple(like.new_full((), t) if isinstance(t, float) else t for t in inputs)


def form_of(
    fn: Any,
    layout: Layout,
    inputs: Sequence[Operand],
    dtypes: Sequence[torch.dtype],
    target_input: int | None = None,
    results: tuple[int, ...] | None = None,
) -> Form:
    """Returns the form of a kernel of fn that reads inputs, and whose results have these dtypes."""
    precise = not ROUNDING_DTYPES.issuperset(dtypes)
    double = any(t.dtype == torch.float64 for t in _tensors(inputs))
    pairs = () if isinstance(fn, LossPass) else _tensors(inputs)  # a loss has integers that are numbers
    pair = next((PAIR_TYPES[t.dtype] for t in pairs if t.dtype in PAIR_TYPES), None)
    return Form(layout.stride_sets, layout.kinds, layout.vector, precise, double, target_input, results, pair)


def tile_shape(layout: Layout, size: int) -> tuple[int, int]:
    """Returns the rows and columns of a tile; of one row, it has ``size`` elements."""
    if layout.row_strides is None or (layout.cols >= 2 * size and not {PER_COLUMN, TRANSPOSED} & {*layout.kinds}):
        return 1, size
    if TRANSPOSED in layout.kinds:
        return size // SQUARE_TILE, SQUARE_TILE
    # Each row has an address of its own, which takes registers: fewer elements.
    if layout.cols <= SHORT_ROW:
        return size // 4 // NARROW_TILE, NARROW_TILE
    return size // 2 // WIDE_TILE, WIDE_TILE


def encode(numbers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Encodes n as 2n + 1, so that Triton does not specialise on 1 or on multiples of 16."""
    return None if numbers is None else tuple(2 * n + 1 for n in numbers)


@triton.jit
def decode(number):
    """Decodes 2n + 1 as n."""
    # The interpreter's integers in [2^31, 2^32) are unsigned: a shift would read them as negative.
    return number // 2 if INTERPRETED else number >> 1
