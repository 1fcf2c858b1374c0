"""The step between the products of a chunk of logits: one kernel reads each logit once, and writes its gradient in place.

It finds the positives itself, and adds up the loss and the gradients of scale and bias in a fixed order: no atomics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from sigtorch.kernels import _math
from sigtorch.kernels._layout import SHORT_ROW, Operand, decode, encode
from sigtorch.kernels._plan import OPTIONS, Call, plan
from sigtorch.kernels._reduce import LOSS_TILE, LOSS_WARPS, SCALE

LEAVES_FACTOR = False  # a chunk's step multiplies by the factor, and sums the gradient of the scale
PROGRAMS = 4096  # at most, on any device: their number is part of the order of a sum
NARROW, WIDE = (LOSS_TILE // 16, 16), (LOSS_TILE // 128, 128)  # tiles of short and of longer rows
# Registers of a thread at most: left to itself, ptxas spills a few numbers to fit one more block on a multiprocessor. Whole
# vectors of float32 in longer rows need few, and numbers of float64 twice as many.
REGISTERS, FEW_REGISTERS, DOUBLE_REGISTERS = 128, 80, 255
FAR = tl.constexpr(2**30)  # further than any column of a tile
LARGE = 2**31  # from here on an integer has 64 bits


class Positives(NamedTuple):
    """A Triton function that finds the positives of a tile, and what it reads."""

    function: Any
    tensors: tuple[Operand, Operand] = (1, 1)  # 1 is not read
    strides: tuple[int, int] = (0, 0)
    tile: tuple[int, int] = WIDE  # where rows are no shorter


def on_diagonal() -> Positives:
    """Returns the positives of pairs: where row and column are the same."""
    return Positives(_on_diagonal)


def listed(keys: torch.Tensor, rows: int, cols: int) -> Positives:
    """Returns the positives whose row * cols + column are listed, sorted and distinct."""
    ends = torch.arange(rows + 1, device=keys.device).mul_(cols)
    starts = torch.searchsorted(keys, ends, out_int32=len(keys) < 2**31)
    return Positives(_listed, (keys, starts), (cols, 0))


def in_matrix(targets: torch.Tensor) -> Positives:
    """Returns the positives of a bool matrix, of columns and rows."""
    return Positives(_in_matrix, (targets.view(torch.uint8), 1), targets.stride(), (32, LOSS_TILE // 32))


# Which pairs of a tile are positives. Row and col are the tile's first, m and n count from there. Of pairs outside of the
# chunk, which the mask excludes, any answer will do.


@triton.jit
def _on_diagonal(_, __, ___, ____, row, col, m, n, mask):
    ahead = tl.minimum(tl.maximum(row - col, -FAR), FAR)
    return m + ahead.to(tl.int32) == n


@triton.jit
def _listed(keys_ptr, starts_ptr, cols, _, row, col, m, n, mask):
    """Looks for each row's keys between the tile's first and last column; adjoining rows have few."""
    inside = tl.max(mask.to(tl.int32), 1, keep_dims=True) > 0
    first = tl.load(starts_ptr + row + m, mask=inside, other=0).to(tl.int64)
    last = tl.load(starts_ptr + row + m + 1, mask=inside, other=0).to(tl.int64)
    key = (row + m) * cols + col
    first = _lower_bound(keys_ptr, first, last, key)
    last = _lower_bound(keys_ptr, first, last, key + n.shape[1])
    most = tl.max(last - first)
    positive = m + n < 0
    number = most * 0
    while number < most:
        some = first + number < last
        at = tl.load(keys_ptr + first + number, mask=some, other=0) - key
        positive |= tl.where(some, at, -1).to(tl.int32) == n
        number += 1
    return positive


@triton.jit
def _lower_bound(keys_ptr, first, last, key):
    """Returns where the first key not below this one is, in each range of first and last."""
    length = tl.max(last - first)
    while length > 0:
        middle = (first + last) // 2
        some = first < last
        below = some & (tl.load(keys_ptr + middle, mask=some, other=0) < key)
        first = tl.where(below, middle + 1, first)
        last = tl.where(below, last, middle)
        length = length // 2
    return first


@triton.jit
def _in_matrix(targets_ptr, _, col_stride, row_stride, row, col, m, n, mask):
    ptr = targets_ptr + row * row_stride + col * col_stride
    return tl.load(ptr + m.to(tl.int64) * row_stride + n.to(tl.int64) * col_stride, mask=mask, other=0) != 0


class Form(NamedTuple):
    """Properties that a kernel is compiled for, beside the function that finds positives and its tile's shape."""

    has_scale: bool
    has_bias: bool
    has_weights: bool
    sums_scale: bool
    sums_rows: bool
    stores: bool
    vector: int  # elements of one access


@triton.jit(
    do_not_specialize=["rows", "vectors", "tiles", "bias_stride", "weight_stride", "first_stride", "second_stride"]
)
def _chunk_kernel(
    inputs,
    outputs,
    rows,
    vectors,
    tiles,
    bias_stride,
    weight_stride,
    first_stride,
    second_stride,
    POSITIVE: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Reads each logit of a chunk once, adds up losses and gradients, and writes the gradients.

    The grid's first axis deals blocks of rows to its programs in turn. Its second axis splits the columns, by ``tiles`` tiles.

    Outputs are pointers to sums, (programs, 2): of the loss, and of the scale's gradient if FORM.sums_scale; to the
    gradients' sums over each row, (splits, rows), if FORM.sums_rows; and to gradients times the factor, if FORM.stores.
    The sums are added to what is there.
    """
    logits_ptr, top, left, factor_ptr, scale_ptr, bias_ptr, weight_ptr, first_ptr, second_ptr = inputs
    dtype: tl.constexpr = logits_ptr.dtype.element_ty
    VECTOR: tl.constexpr = FORM.vector
    top = tl.cast(decode(top), tl.int64) - 1
    left = tl.cast(decode(left), tl.int64) - 1
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    cols = vectors.to(tl.int64) * VECTOR
    start = tl.program_id(1).to(tl.int64) * tiles * BLOCK_N
    end = tl.minimum(start + tiles * BLOCK_N, cols)
    scale = tl.load(scale_ptr) if FORM.has_scale else tl.cast(1, dtype)
    factor = tl.load(factor_ptr) if FORM.stores else tl.cast(1, dtype)
    losses = tl.zeros([BLOCK_M, BLOCK_N], dtype)
    products = tl.zeros([BLOCK_M, BLOCK_N], dtype)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M
    while row < rows:
        inside = m < tl.minimum(rows - row, BLOCK_M).to(tl.int32)
        bias = tl.zeros([BLOCK_M, 1], dtype)
        if FORM.has_bias:
            bias += tl.load(bias_ptr + (top + row + m) * bias_stride, mask=inside, other=0.0)
        if FORM.has_weights:
            weight = tl.load(weight_ptr + (top + row + m) * weight_stride, mask=inside, other=0.0)
        slopes = tl.zeros([BLOCK_M, BLOCK_N], dtype)
        col = start
        while col < end:
            mask = tl.max_constancy(inside & (n < tl.minimum(end - col, BLOCK_N).to(tl.int32)), [1, VECTOR])
            at = (row + m) * cols + col
            x = tl.load(logits_ptr + at + n, mask=mask, other=0.0)
            positive = mask & POSITIVE(
                first_ptr, second_ptr, first_stride, second_stride, top + row, left + col, m, n, mask
            )
            z = tl.where(mask, _math.fma(x, scale, bias), float("-inf"))  # of which all is 0
            slope, loss = _math.pair(z, positive, True)
            if FORM.has_weights:
                slope = tl.where(positive, slope * weight, slope)
                loss = tl.where(positive, loss * weight, loss)
            losses += loss * SCALE
            if FORM.sums_scale:
                products += slope * x * SCALE
            if FORM.sums_rows:
                slopes += slope
            if FORM.stores:
                grad_ptr = outputs[-1] + at + n
                tl.store(grad_ptr, _math.rounded(slope * factor, grad_ptr.dtype.element_ty), mask=mask)
            col += BLOCK_N
        if FORM.sums_rows:
            ptr = outputs[1] + tl.program_id(1).to(tl.int64) * rows + row + m
            tl.store(ptr, tl.load(ptr, mask=inside) + tl.sum(slopes, 1, keep_dims=True), mask=inside)
        row += tl.num_programs(0) * BLOCK_M
    ptr = outputs[0] + 2 * (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1))
    tl.store(ptr, tl.load(ptr) + _total(losses))
    if FORM.sums_scale:
        tl.store(ptr + 1, tl.load(ptr + 1) + _total(products))


@triton.jit
def _total(block):
    """Adds up a block of multiples of SCALE: a row in its own dtype, the rows in float64, which is slow on many GPUs."""
    return tl.sum(tl.sum(block, 1).to(tl.float64), 0) * (1.0 / SCALE)


class Step:
    """The step between the products, for all chunks of a loss; it holds their sums.

    Args:
        like: a tensor of the logits' dtype and device.
        positives: as one of the functions above returns them.
        scale: 0-d, or None; logits are scale * products + bias.
        bias: 0-d or one a row; or None.
        weights: of the positives in each row; or None.
        factor: 0-d; gradients are multiplied by it.
        sums_scale: True to sum the scale's gradient.
    """

    def __init__(
        self,
        like: torch.Tensor,
        positives: Positives,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        weights: torch.Tensor | None,
        factor: torch.Tensor,
        sums_scale: bool,
    ) -> None:
        self.positives, self.sums_scale = positives, sums_scale
        given = (factor, scale, bias, weights)
        self.numbers = tuple(1 if t is None else t for t in given)  # 1 is not read
        self.sums = like.new_zeros((PROGRAMS, 2), dtype=torch.float64)

    def sums_of_rows(self, rows: int, cols: int) -> torch.Tensor:
        """Returns zeros for a part of the rows, and for chunks of at most so many columns.

        ``add`` adds the logits' gradients to it; their sum over dim 0 is the bias'.
        """
        splits = _most_splits(rows, cols, self.positives.tile)
        return self.sums.new_zeros((splits, rows), dtype=self.numbers[0].dtype)

    def add(
        self, logits: torch.Tensor, top: int, left: int, sums_of_rows: torch.Tensor | None, dtype: torch.dtype | None
    ) -> torch.Tensor | None:
        """Adds a chunk whose first row is top, and first column left, to the sums.

        Returns the gradients of its logits times the factor: in place, or in a new tensor if dtype is another one. If it is
        None, there are none.
        """
        outputs = [self.sums]
        if sums_of_rows is not None:
            outputs.append(sums_of_rows)
        grad = None
        if dtype is not None:
            grad = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
            outputs.append(grad)
        places = encode((top + 1, left + 1))  # odd and above 1: Triton specialises on neither
        inputs = (logits, *places, *self.numbers, *self.positives.tensors)
        sums = self.sums_scale, sums_of_rows is not None, grad is not None
        settings = self.positives.strides, self.positives.tile, sums, tuple(place >= LARGE for place in places)
        ready, inputs = plan(_chunk_call, self.positives.function, inputs, tuple(outputs), settings)
        ready.launch(inputs, tuple(outputs))
        return grad

    def totals(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the loss so far and, if it is summed, the scale's gradient, in float64."""
        loss, grad_scale = self.sums.sum(0)
        return loss, grad_scale if self.sums_scale else None


def _tiling(rows: int, cols: int, tile: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int, int], int]:
    """Returns the shape of a tile, the grid, whose second axis splits the columns, and the tiles across a split."""
    block_m, block_n = tile = NARROW if cols <= SHORT_ROW else tile
    down, across = min(PROGRAMS, triton.cdiv(rows, block_m)), triton.cdiv(cols, block_n)
    tiles = triton.cdiv(across, _splits_of_tile(rows, cols, tile))
    return tile, (down, triton.cdiv(across, tiles), 1), tiles


def _most_splits(rows: int, cols: int, tile: tuple[int, int]) -> int:
    """Returns a bound on the splits of so many columns and of all fewer: these may have more of them."""
    return max(_splits_of_tile(rows, min(cols, SHORT_ROW), NARROW), _splits_of_tile(rows, cols, tile))


def _splits_of_tile(rows: int, cols: int, tile: tuple[int, int]) -> int:
    """Returns the splits that tiles of this shape can have; fewer columns have no more."""
    block_m, block_n = tile
    return min(triton.cdiv(cols, block_n), max(1, PROGRAMS // triton.cdiv(rows, block_m)))


def _chunk_call(
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    strides: tuple[int, int],
    tile: tuple[int, int],
    flags: tuple[bool, bool, bool],
    _: tuple[bool, bool],
) -> Call:
    logits, _, _, _, *numbers, _, _ = inputs
    rows, cols = logits.shape
    (block_m, block_n), grid, tiles = _tiling(rows, cols, tile)
    vector = 16 // logits.element_size()
    vector = vector if cols % vector == 0 else 1
    given = [isinstance(t, torch.Tensor) for t in numbers]
    bias_stride, weight_stride = (
        t.stride(0) if has and t.dim() else 0 for t, has in zip(numbers[1:], given[1:], strict=True)
    )
    sizes = rows, cols // vector, tiles, bias_stride, weight_stride, *strides
    registers = FEW_REGISTERS if vector == 4 and cols > SHORT_ROW else REGISTERS
    registers = DOUBLE_REGISTERS if logits.dtype == torch.float64 else registers
    options = (("maxnreg", registers),) if OPTIONS else ()  # the interpreter has no such option
    arguments = *sizes, fn, Form(*given, *flags, vector), block_m, block_n
    return Call(_chunk_kernel, grid, arguments, warps=LOSS_WARPS, options=options)


@triton.jit(do_not_specialize=["rows", "cols"])
def _units_kernel(inputs, outputs, rows, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Finds the unit of each row, below its largest element over 2^14, and divides the row by it."""
    grad_ptr, units_ptr = inputs
    out_ptr = outputs[0]
    double: tl.constexpr = grad_ptr.dtype.element_ty == tl.float64
    INT: tl.constexpr = tl.int64 if double else tl.int32
    MANTISSA: tl.constexpr = 52 if double else 23
    BIAS: tl.constexpr = 1023 if double else 127
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    largest = tl.zeros([BLOCK_M, BLOCK_N], grad_ptr.dtype.element_ty)
    col = tl.cast(0, tl.int64)
    while col < cols:
        x = tl.load(grad_ptr + m * cols + col + n, mask=(m < rows) & (n < cols - col), other=0.0)
        largest = tl.maximum(largest, tl.where(x == x, tl.abs(x), float("inf")))
        col += BLOCK_N
    exponent = tl.max(largest, 1, keep_dims=True).to(INT, bitcast=True) >> MANTISSA
    exponent = tl.where(exponent == 2 * BIAS + 1, BIAS + 14, tl.maximum(exponent, BIAS - 101)) - 14
    tl.store(units_ptr + m, (exponent << MANTISSA).to(largest.dtype, bitcast=True), mask=m < rows)
    inverse = ((2 * BIAS - exponent) << MANTISSA).to(largest.dtype, bitcast=True)
    col = tl.cast(0, tl.int64)
    while col < cols:
        mask = (m < rows) & (n < cols - col)
        x = tl.load(grad_ptr + m * cols + col + n, mask=mask, other=0.0)
        tl.store(out_ptr + m * cols + col + n, (x * inverse).to(out_ptr.dtype.element_ty), mask=mask)
        col += BLOCK_N


def write_in_units(grad: torch.Tensor, out: torch.Tensor, units: torch.Tensor) -> None:
    """Writes the units of grad's rows, powers of two, to units, and grad / units, below 2^15, to out."""
    if len(grad):
        ready, inputs = plan(_units_call, None, (grad, units), (out,))  # units, a slice, may be aligned in any way
        ready.launch(inputs, (out,))


def _units_call(_: None, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...]) -> Call:
    rows, cols = inputs[0].shape
    block_m, block_n = NARROW if cols <= SHORT_ROW else WIDE
    return Call(_units_kernel, (triton.cdiv(rows, block_m), 1, 1), (rows, cols, block_m, block_n), warps=LOSS_WARPS)
