"""Loss and gradients of logits = scale * rows @ cols.T + bias, computed a chunk at a time.

The loss is a scalar, so forward knows its gradients but for one factor. Each chunk of logits is overwritten with its
gradient, and two more products add that to the gradients of rows and cols. These are three products a chunk, as many as eager
code needs, and no tensor has the size of all logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sigtorch import _backend, _eligible
from sigtorch._eligible import HALF_DTYPES
from sigtorch._once import once

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from sigtorch.ops.chunked_losses.shares import Shares

# Bytes of a chunk's logits, as many as stay in a CPU's cache or fill a GPU; and the fewest rows of a chunk.
CHUNK_BYTES, CHUNK_ROWS = {"cpu": 2**22, "cuda": 2**26}, {"cpu": 2**10, "cuda": 2**12}
# Of few logits a chunk is a third, so that it takes less memory than eager code; of fewer than FEW_ELEMENTS, all.
PART = 3
FEW_ELEMENTS = {"cpu": 2**14, "cuda": 2**20}
# What needs a wide copy of a tensor goes this many elements at a time.
WIDE_ELEMENTS = {"cpu": 2**16, "cuda": 2**23}

Number = torch.Tensor | None


class Needs(NamedTuple):
    """Flags: which gradients are needed."""

    rows: bool
    cols: bool
    scale: bool
    bias: bool


class Operands(NamedTuple):
    """Tensors of logits = scale * rows @ cols.T + bias; scale and bias may be missing."""

    rows: torch.Tensor
    cols: torch.Tensor
    scale: Number
    bias: Number


@dataclass(frozen=True)
class Work:
    """Settings of a loss that are no tensors to differentiate."""

    op: str
    divisor: int  # of the summed loss
    dtype: torch.dtype  # of the result
    narrow: torch.dtype  # of the factors of a product: that of rows and cols, or autocast's
    runner: _backend.Runner  # of the step between the products
    positives: Any = None  # as a step's module makes them
    weights: Number = None  # of the positives in each row; None for ones
    group: ProcessGroup | None = None  # each process holds a part of rows and cols, which pass by all others
    shares: Shares | None = None  # or of the rows alone
    any_wants_cols_grad: bool = False  # any process of the group
    any_needs_grad: bool = True  # of anything, any process of the group

    @property
    def wide(self) -> torch.dtype:
        """The dtype of logits and sums."""
        return torch.float32 if self.narrow in HALF_DTYPES else self.narrow

    def operand(self, t: torch.Tensor) -> torch.Tensor:
        """Returns t in the dtype of a product. A GPU multiplies bfloat16 into float32; float16 is too narrow for gradients."""
        t = t.to(self.narrow)
        return t if t.is_cuda and t.dtype == torch.bfloat16 and self.runner == "triton" else t.to(self.wide)


class Tile(NamedTuple):
    """Rows and columns of a chunk."""

    rows: int
    cols: int


def tile_of(work: Work, rows: torch.Tensor, cols: torch.Tensor, chunk_size: int | None) -> Tile:
    """Chooses the size of a chunk, which bounds its logits and all buffers that grow with its rows and columns."""
    kind, features = rows.device.type, max(1, rows.shape[1])
    part = rows.shape[0] * cols.shape[0] // PART
    elements = CHUNK_BYTES.get(kind, 2**22) // work.wide.itemsize
    elements = min(elements, max(part, FEW_ELEMENTS.get(kind, 2**14)))
    size = chunk_size or max(min(CHUNK_ROWS.get(kind, 1), rows.shape[0] // PART), elements // cols.shape[0])
    width = cols.shape[0]
    if work.group is not None or rows.dtype != work.wide or cols.dtype != work.wide:
        # Gradients are not summed in the tensors returned: a chunk holds two copies of its rows' features, one of its columns'.
        size = size if chunk_size else min(size, elements // (2 * features))
        width = min(width, elements // features)
    size = max(1, min(size, rows.shape[0]))
    return Tile(size, max(1, min(width, elements // size)))


def work_for(op: str, rows: torch.Tensor, cols: torch.Tensor, others: Sequence[torch.Tensor], **rest: Any) -> Work:
    """Makes the settings, with those that follow from the tensors and from autocast."""
    narrow, dtype = rounding(rows, cols)
    beside = [t for t in others if t.device == rows.device]
    runner = _backend.select(rows, beside=[cols, *beside], cpu_pass=True, opaque=True)  # cols may have another dtype
    if any(type(t) not in _eligible.PLAIN_TYPES for t in others):  # such as a 0-d tensor on the CPU
        runner = "aten"
    return Work(op, dtype=dtype, narrow=narrow, runner=runner, **rest)


def rounding(rows: torch.Tensor, cols: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Returns the dtype in which rows and cols are multiplied, under autocast too, and the dtype of the result."""
    narrow = dtype = torch.promote_types(rows.dtype, cols.dtype)
    kind = rows.device.type
    if narrow != torch.float64 and _eligible.autocasts(kind):
        narrow = torch.get_autocast_dtype(kind)
        dtype = torch.float32 if dtype in HALF_DTYPES else dtype
    return narrow, dtype


def unrounded(t: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which autocast rounds nothing, on devices that it knows."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if _eligible.knows_autocast(kind) else contextlib.nullcontext()


@once
def steps(runner: _backend.Runner) -> ModuleType:
    """Imports the steps between the products: kernels only when the first tensor needs them."""
    if runner == "triton":
        from sigtorch.kernels import chunked_losses as kernels

        return kernels
    from sigtorch.cpu import chunked_losses as cpu

    return cpu


class Sums:
    """Sums over chunks: the loss, and the gradients of loss / divisor that are needed, None for others."""

    def __init__(self, work: Work, tile: Tile, needs: Needs, rows: torch.Tensor, scale: Number, bias: Number) -> None:
        self.work, self.tile, self.needs = work, tile, needs
        self.rows, self.steps = rows, steps(work.runner)
        like = rows.new_empty((), dtype=work.wide)
        self.factor = torch.zeros_like(like) + (1 if scale is None else scale) / work.divisor  # of rows and cols
        # A chunk's rows are scaled if they are fewer elements than its logits.
        self.row_scale = scale if self.steps.LEAVES_FACTOR and rows.shape[1] < tile.cols else None
        logit_scale = None if self.row_scale is not None else scale
        numbers = logit_scale, bias, work.weights, self.factor
        self.step = self.steps.Step(like, work.positives, *numbers, needs.scale)
        # In a group, blocks of other processes add to the same rows: they are rounded once, at the end.
        dtype = rows.dtype if work.group is None else work.wide
        empty = torch.empty if work.group is None else torch.zeros
        self.grad_rows = empty(rows.shape, dtype=dtype, device=rows.device) if needs.rows else None
        by_units = needs.rows and work.group is None and has_units(rows)
        self.row_units = rows.new_empty(len(rows), 1, dtype=work.wide) if by_units else None
        self.direct = needs.rows and work.group is None and dtype == work.wide  # parts are summed in grad_rows itself
        self.grad_scale = torch.zeros_like(like, dtype=torch.float64)  # what the step leaves of it
        self.grad_bias = rows.new_zeros(len(rows), dtype=work.wide) if needs.bias else None

    def add(self, cols: torch.Tensor, first: int = 0) -> Number:
        """Adds the pairs of all rows with these cols, counted from the first; returns the gradient of cols."""
        work, needs, rows, (size, width) = self.work, self.needs, self.rows, self.tile
        grad_cols = torch.zeros(cols.shape, dtype=work.wide, device=cols.device) if needs.cols else None
        # The gradient of the scale comes with that of the rows, where the step leaves it.
        by_rows = needs.rows or (needs.scale and not needs.cols and self.steps.LEAVES_FACTOR)
        buffer = rows.new_empty(size * width, dtype=work.wide)
        for top in range(0, len(rows), size):
            part = work.operand(rows[top : top + size])
            scaled = part if self.row_scale is None else part * self.row_scale
            of_part = self._new_part(part, top) if by_rows else None
            sums_of_rows = self.step.sums_of_rows(len(part), min(width, len(cols))) if needs.bias else None
            for left in range(0, len(cols), width):
                block = work.operand(cols[left : left + width])
                logits = product(scaled, block.t(), buffer[: len(part) * len(block)].view(len(part), -1))
                dtype = block.dtype if by_rows or needs.cols else None
                grad = self.step.add(logits, top, first + left, sums_of_rows, dtype)
                if of_part is not None and left == 0:
                    product(grad, block, of_part)
                elif of_part is not None:
                    add_product(grad, block, of_part)
                if grad_cols is not None:
                    add_product(grad.t(), part, grad_cols[left : left + width])
            if self.grad_bias is not None and sums_of_rows is not None:
                self.grad_bias[top : top + size] += sums_of_rows.sum(0)
            if of_part is not None:
                self._add_part(part, of_part, top)
        if grad_cols is not None and self.steps.LEAVES_FACTOR:
            if needs.scale and not by_rows:
                for left in range(0, len(cols), width):
                    self.grad_scale += dot(work.operand(cols[left : left + width]), grad_cols[left : left + width])
            grad_cols.mul_(self.factor)
        return grad_cols

    def totals(self) -> tuple[torch.Tensor, Number]:
        """Returns the loss and the gradient of the scale, not divided yet."""
        loss, grad_scale = self.step.totals()
        if not self.needs.scale:
            return loss, None
        return loss, self.grad_scale if grad_scale is None else grad_scale

    def _new_part(self, part: torch.Tensor, top: int) -> torch.Tensor:
        """Returns memory for the gradient of a part of the rows."""
        if self.direct and self.grad_rows is not None:
            return self.grad_rows[top : top + len(part)]
        return torch.empty(part.shape, dtype=self.work.wide, device=part.device)

    def _add_part(self, part: torch.Tensor, of_part: torch.Tensor, top: int) -> None:
        """Adds the gradient of a part of the rows, with the factor."""
        if self.steps.LEAVES_FACTOR:
            if self.needs.scale:  # the sum of all logits' gradients, each times rows @ cols.T
                self.grad_scale += dot(part, of_part)
            of_part.mul_(self.factor)
        if self.grad_rows is None or self.direct:
            return
        out = self.grad_rows[top : top + len(part)]
        if self.row_units is not None:
            self.steps.write_in_units(of_part, out, self.row_units[top : top + len(part)])
        elif self.work.group is None:
            out.copy_(of_part)
        else:
            out += of_part


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Computes a @ b, in float32 for half types."""
    return torch.mm(a, b, torch.float32, out=out) if a.dtype in HALF_DTYPES else torch.mm(a, b, out=out)


def add_product(a: torch.Tensor, b: torch.Tensor, to: torch.Tensor) -> None:
    """Adds a @ b to a tensor, in float32 for half types."""
    if a.dtype in HALF_DTYPES:
        torch.addmm(to, a, b, torch.float32, out=to)
    else:
        to.addmm_(a, b)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sums a * b, in no memory of their size."""
    return torch.bmm(a.to(b.dtype).unsqueeze(1), b.unsqueeze(2)).sum(dtype=torch.float64)


def wide_rows(t: torch.Tensor) -> int:
    """Returns how many rows of t are copied in a wider dtype at a time."""
    return max(1, WIDE_ELEMENTS.get(t.device.type, 2**16) // max(1, t.shape[1]))


# A float16 gradient is saved as multiples of a unit, one a row: float16 alone would lose what a loss scale is there to keep.


def has_units(t: torch.Tensor) -> bool:
    """Tells whether the gradient of t is saved in units."""
    return t.dtype == torch.float16 and t.dim() == 2 and t.shape[1] > 0


def multiply_in_units(grad: torch.Tensor, units: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes grad * units * factor, rounded once, to out, which may be grad; a part of the rows at a time."""
    size = wide_rows(grad)
    for rows, unit, to in zip(grad.split(size), units.split(size), out.split(size), strict=True):
        to.copy_(rows * (unit * factor))
    return out
