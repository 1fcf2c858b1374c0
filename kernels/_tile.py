"""Tiles: what a kernel does for one block of elements, (BLOCK_M, BLOCK_N): load, compute, store, add up.

``inputs`` and ``outputs`` are tuples of pointers and numbers, ``strides`` three encoded tuples (``Layout.encoded``),
``FN`` a scalar function of ``_math.py``, and ``FORM`` the ``_layout.Form`` that tells how each operand is read. If there is a
LOSS, it and TARGET are functions of ``_loss_math.py``, and FN is what a pass returns of them.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from sigtorch.kernels._layout import KINDS, decode
from sigtorch.kernels._math import packed, rounded, unpacked, widened

PER_ROW, PER_COLUMN, PER_ELEMENT, TRANSPOSED, NUMBER, COLUMN_INDEX, ROW_INDEX, BATCH_INDEX = map(tl.constexpr, KINDS)
COMMON = tl.constexpr(8)  # operands that every loss has


class Tile(NamedTuple):
    """A tile's first element, the offsets of its elements from there, and how many rows and columns there are in all."""

    batch: tl.tensor
    row: tl.tensor
    col: tl.tensor
    m: tl.tensor  # (BLOCK_M, 1)
    n: tl.tensor  # (1, BLOCK_N)
    rows: tl.tensor
    cols: tl.tensor


class Masks(NamedTuple):
    """Masks of the rows, columns and elements inside the tensors; None for a full tile."""

    rows: tl.tensor  # (BLOCK_M, 1)
    cols: tl.tensor  # (1, BLOCK_N)
    elements: tl.tensor  # (BLOCK_M, BLOCK_N)


@triton.jit
def run_tile(inputs, outputs, strides, tile, FN, LOSS, TARGET, FORM: tl.constexpr, SCALE, totals, count):
    """Writes FN of a tile of the inputs into the outputs.

    If there is a SCALE, FN's last results are no outputs: times SCALE, each is added to its one of ``totals``, and 1 to
    ``count`` for each element that is not ignored. Returns both.
    """
    # Masked accesses are only as wide as the compiler can prove of their masks, so only the last tiles are masked.
    if (tile.row + tile.m.shape[0] <= tile.rows) & (tile.col + tile.n.shape[1] <= tile.cols):
        totals, count = _run_tile(
            inputs, outputs, strides, tile, Masks(None, None, None), FN, LOSS, TARGET, FORM, SCALE, totals, count
        )
    else:
        totals, count = _run_tile(
            inputs, outputs, strides, tile, _masks(tile, FORM.vector), FN, LOSS, TARGET, FORM, SCALE, totals, count
        )
    return totals, count


@triton.jit
def _run_tile(inputs, outputs, strides, tile, masks, FN, LOSS, TARGET, FORM: tl.constexpr, SCALE, totals, count):
    values = ()
    for i in tl.static_range(len(inputs)):
        value = _load(inputs[i], strides, tile, masks, FORM.stride_sets[i], FORM.kinds[i], FORM)
        values += unpacked(value) if value.dtype == FORM.pair else (value,)
    taken = None if FORM.target_input is None else values[FORM.target_input] != values[-1]
    if LOSS is None:
        results = FN(*values, PRECISE=FORM.precise)
    else:
        own = values[COMMON:] if taken is None else values[COMMON:-1]
        results = FN(*values[:COMMON], own, LOSS, TARGET, PRECISE=FORM.precise)
    for i in tl.static_range(len(outputs)):
        ptr = pointers(outputs[i], strides, tile, FORM.stride_sets[len(inputs) + i], PER_ELEMENT, FORM.vector)
        if ptr.dtype.element_ty == FORM.pair:  # the first output, of the first two results
            tl.store(ptr, packed(results[0], results[1], ptr.dtype.element_ty), mask=masks.elements)
        else:
            result = results if SCALE is None and len(outputs) == 1 else _result(results, i, FORM)
            tl.store(ptr, rounded(_only(taken, result), ptr.dtype.element_ty), mask=masks.elements)
    if SCALE is not None:
        sums = ()
        single: tl.constexpr = FORM.results is None and len(outputs) + len(totals) == 1
        for i in tl.static_range(len(totals)):
            last = results if single else _result(results, len(outputs) + i, FORM)
            sums = sums + (totals[i] + _only(masks.elements, _only(taken, last) * SCALE),)  # noqa: RUF005
        totals = sums
        if taken is not None:
            count += _only(masks.elements, tl.where(taken, 1.0, 0.0))
    return totals, count


@triton.jit
def _result(results, i: tl.constexpr, FORM: tl.constexpr):
    """Returns the result that is used in place i."""
    return results[i if FORM.results is None else FORM.results[i]]


@triton.jit
def _only(mask, value):
    """Returns value where the mask is set, else 0, even for inf or NaN; without a mask, value."""
    return value if mask is None else tl.where(mask, value, 0.0)


@triton.jit
def _masks(tile, VECTOR: tl.constexpr):
    rows = tile.m < tile.rows - tile.row
    cols = tile.n < tile.cols - tile.col
    elements = rows & cols
    if VECTOR > 1:
        elements = tl.max_constancy(elements, [1, VECTOR])
        cols = tl.max_constancy(cols, [1, VECTOR])
    return Masks(rows, cols, elements)


@triton.jit
def _load(operand, strides, tile, masks, STRIDE_SET, KIND, FORM: tl.constexpr):
    """Returns an input's values for a tile: a scalar, (BLOCK_M, 1), (1, BLOCK_N) or a block.

    They are float32, or all float64; pairs stay integers.
    """
    WIDE: tl.constexpr = tl.float64 if FORM.double else tl.float32
    if KIND == NUMBER:
        return tl.cast(operand, tl.float32)
    elif KIND == COLUMN_INDEX:
        return (tile.col + tile.n).to(tl.float32)
    elif KIND == ROW_INDEX:
        return (tile.row + tile.m).to(tl.float32)
    elif KIND == BATCH_INDEX:
        return tile.batch.to(tl.float32)
    else:
        ptr = pointers(operand, strides, tile, STRIDE_SET, KIND, FORM.vector)
        if KIND == PER_ELEMENT:
            value = tl.load(ptr, mask=masks.elements)
        elif KIND == TRANSPOSED:
            value = tl.load(ptr, mask=None if masks.elements is None else _transposed_mask(tile, FORM.vector))
        elif KIND == PER_COLUMN:
            value = tl.load(ptr, mask=masks.cols)
        else:
            value = tl.load(ptr, mask=masks.rows)
        if ptr.dtype.element_ty == FORM.pair:
            return value
        elif KIND == PER_ELEMENT or KIND == TRANSPOSED:  # noqa: SIM109, Triton has no `in`
            return widened(value, WIDE)
        else:
            return value.to(WIDE)


@triton.jit
def _transposed_mask(tile, VECTOR: tl.constexpr):
    """Returns the mask of elements for accesses along columns: an operation of its own, which may be told its constancy."""
    elements = (tile.m < tile.rows - tile.row) & (tile.n < tile.cols - tile.col)
    if VECTOR > 1:
        elements = tl.max_constancy(elements, [VECTOR, 1])
    return elements


@triton.jit
def pointers(ptr, strides, tile, STRIDE_SET, KIND, VECTOR):
    """Returns pointers to an operand's elements of a tile: a 64-bit start, and 32-bit offsets along the columns."""
    batch_sizes, batch_strides, row_strides = strides
    unit: tl.constexpr = 1 if KIND == PER_ROW else VECTOR  # of strides, in elements
    m = tile.m
    if batch_strides is not None:
        ptr += _batch_offset(tile.batch, batch_sizes, batch_strides, STRIDE_SET) * unit
    if KIND == TRANSPOSED:  # its stride from row to row is 1, and the one that is given is from column to column
        stride = decode(row_strides[STRIDE_SET])
        ptr += tile.row + tile.col * stride * unit
        m += (tile.n * unit).to(tl.int64) * stride
    elif row_strides is not None:
        stride = decode(row_strides[STRIDE_SET])
        ptr += tile.row * stride * unit
        m = (m * unit).to(tl.int64) * stride
    if KIND == PER_COLUMN:  # its stride from row to row is 0
        ptr += tile.col
        m = tile.n
    elif KIND == PER_ELEMENT:
        ptr += tile.col
        m += tile.n
    return ptr + m


@triton.jit
def _batch_offset(batch, sizes, strides, STRIDE_SET):
    """Returns a batch's offset, in units of its strides."""
    SETS: tl.constexpr = len(strides) // (1 if sizes is None else len(sizes) + 1)
    if sizes is None:
        offset = batch * decode(strides[STRIDE_SET])
    else:
        offset = batch * 0
        for i in tl.static_range(len(sizes)):
            size = decode(sizes[i])
            offset += batch % size * decode(strides[i * SETS + STRIDE_SET])
            batch = batch // size
        offset += batch * decode(strides[len(sizes) * SETS + STRIDE_SET])
    return offset
