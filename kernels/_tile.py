"""One tile of an elementwise operation: where its elements lie, and what is loaded, computed and stored.

An operation is a scalar function from ``_math.py``, a constexpr parameter ``FN``. ``FORM`` is what
``_launch.form`` gives; a ``tile`` is its batch, row and column, and its rows and columns from there.
"""

import triton
import triton.language as tl

from sigtorch.kernels import _layout
from sigtorch.kernels._math import halved, rounded, widened

ONE_A_ROW, ONE_A_COLUMN = tl.constexpr(_layout.ONE_A_ROW), tl.constexpr(_layout.ONE_A_COLUMN)
EVERY_ELEMENT, NUMBER = tl.constexpr(_layout.EVERY_ELEMENT), tl.constexpr(_layout.NUMBER)
COLUMN, ROW, BATCH = map(tl.constexpr, (_layout.COLUMN, _layout.ROW, _layout.BATCH))


@triton.jit
def pointers(ptr, strides, tile, STRIDES, KIND, VECTOR):
    """An operand's elements of a tile: a 64-bit corner, 32-bit lanes from there. Strides count vectors of elements."""
    batch_strides, row_strides = strides
    batch, row, col, m, n = tile
    unit: tl.constexpr = 1 if KIND == ONE_A_ROW else VECTOR
    if batch_strides is not None:
        ptr += batch * halved(batch_strides[STRIDES]) * unit
    if row_strides is not None:
        stride = halved(row_strides[STRIDES])
        ptr += row * stride * unit
        m = (m * unit).to(tl.int64) * stride
    if KIND == ONE_A_COLUMN:  # whose stride from row to row is 0
        ptr += col
        m = n
    elif KIND == EVERY_ELEMENT:
        ptr += col
        m += n
    return ptr + m


@triton.jit
def _load(inputs, strides, tile, row_mask, col_mask, mask, FORM: tl.constexpr):
    """A tile of every input, in float32 or all in float64."""
    WIDE: tl.constexpr = tl.float64 if FORM[4] else tl.float32
    values = ()
    for i in tl.static_range(len(inputs)):
        if FORM[1][i] == NUMBER:
            value = tl.cast(inputs[i], tl.float32)
        elif FORM[1][i] == COLUMN:
            value = (tile[2] + tile[4]).to(tl.float32)
        elif FORM[1][i] == ROW:
            value = (tile[1] + tile[3]).to(tl.float32)
        elif FORM[1][i] == BATCH:
            value = tile[0].to(tl.float32)
        elif FORM[1][i] == EVERY_ELEMENT:
            ptr = pointers(inputs[i], strides, tile, FORM[0][i], FORM[1][i], FORM[2])
            value = widened(tl.load(ptr, mask=mask), WIDE)
        elif FORM[1][i] == ONE_A_COLUMN:
            ptr = pointers(inputs[i], strides, tile, FORM[0][i], FORM[1][i], FORM[2])
            value = tl.load(ptr, mask=col_mask).to(WIDE)
        else:
            ptr = pointers(inputs[i], strides, tile, FORM[0][i], FORM[1][i], FORM[2])
            value = tl.load(ptr, mask=row_mask).to(WIDE)
        values = values + (value,)  # noqa: RUF005, Triton's tuples take no star
    return values


@triton.jit
def _compute(inputs, outputs, strides, tile, row_mask, col_mask, mask, FN, FORM: tl.constexpr, SCALE, total, count):
    """Load, compute, round once, store, and add up; masks are None for a full tile."""
    values = _load(inputs, strides, tile, row_mask, col_mask, mask, FORM)
    if FORM[5]:  # where that input is the last one, nothing comes of whatever the others are
        taken = values[FORM[5]] != values[-1]
        results = tl.where(taken, FN(*values[:-1], PRECISE=FORM[3]), 0.0)
        if SCALE is not None:
            count += tl.where(taken if mask is None else taken & mask, 1.0, 0.0)
    else:
        results = FN(*values, PRECISE=FORM[3])
    for i in tl.static_range(len(outputs)):
        ptr = pointers(outputs[i], strides, tile, FORM[0][len(inputs) + i], EVERY_ELEMENT, FORM[2])
        result = results if SCALE is None and len(outputs) == 1 else results[i]
        tl.store(ptr, rounded(result, ptr.dtype.element_ty), mask=mask)
    if SCALE is not None:
        last = (results[len(outputs)] if len(outputs) else results) * SCALE
        total += last if mask is None else tl.where(mask, last, 0.0)
    return total, count


@triton.jit
def compute(inputs, outputs, strides, tile, rows, cols, FN, FORM: tl.constexpr, SCALE, total, count):
    """One tile of all operands; where there is a SCALE, the last result, times that, is no output but adds to total.

    What is not ignored adds to count.
    """
    _, row, col, m, n = tile
    # A masked access shrinks to what the compiler can prove of its mask: only the last tiles are masked.
    if (row + m.shape[0] <= rows) & (col + n.shape[1] <= cols):
        total, count = _compute(inputs, outputs, strides, tile, None, None, None, FN, FORM, SCALE, total, count)
    else:
        row_mask = m < rows - row
        col_mask = n < cols - col
        mask = row_mask & col_mask
        VECTOR: tl.constexpr = FORM[2]
        if VECTOR > 1:
            mask = tl.max_constancy(mask, [1, VECTOR])
            col_mask = tl.max_constancy(col_mask, [1, VECTOR])
        total, count = _compute(inputs, outputs, strides, tile, row_mask, col_mask, mask, FN, FORM, SCALE, total, count)
    return total, count
