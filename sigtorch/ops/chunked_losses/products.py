"""Loss and gradients of logits = scale * rows @ cols.T + bias, computed a chunk at a time.

The loss is a scalar, so forward knows its gradients but for one factor. Each chunk of logits is overwritten with its
gradient, and two more products add that to the gradients of rows and cols. These are three products a chunk, as many as eager
code needs, and no tensor has the size of all logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from sigtorch import _backend, _eligible
from sigtorch._eligible import HALF_DTYPES
from sigtorch._once import once

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Logits of a chunk in float32, as many as stay in a CPU's cache or fill a GPU; and the fewest rows of a chunk.
CHUNK_ELEMENTS, CHUNK_ROWS = {"cpu": 2**20, "cuda": 2**25}, {"cpu": 2**10, "cuda": 2**12}
# Of few logits a chunk is a third, so that it takes less memory than eager code; of fewer than FEW_ELEMENTS, all.
PART = 3
FEW_ELEMENTS = {"cpu": 2**14, "cuda": 2**20}
# A gradient in units is multiplied this many elements at a time.
UNIT_ELEMENTS = {"cpu": 2**16, "cuda": 2**23}
# Positives are computed this many at a time, or 1 / SHARE of a chunk's logits if that is more, to bound their memory.
POSITIVES, SHARE = 2**10, 8

# find(top, bottom, left, right) returns the places of the positives in logits[top:bottom, left:right], counted row by row, or
# None.
Find = Callable[[int, int, int, int], torch.Tensor | None]
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
    find: Find | None = None
    weights: Number = None  # of the positives in each row; None for ones
    group: ProcessGroup | None = None  # each process holds a part of rows and cols
    any_wants_cols_grad: bool = False  # any process of the group

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
    elements = CHUNK_ELEMENTS.get(kind, 2**20) * 4 // work.wide.itemsize
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
def _steps(runner: _backend.Runner) -> ModuleType:
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
        self.rows, self.bias = rows, bias
        self.step = _steps(work.runner)
        # A CPU scales a chunk's rows if they are fewer elements than its logits.
        self.row_scale = scale if work.runner == "cpu" and rows.shape[1] < tile.cols else None
        self.logit_scale = None if self.row_scale is not None else scale
        self.loss = rows.new_zeros((), dtype=torch.float64)
        self.factor = self.loss.to(work.wide) + (1 if scale is None else scale) / work.divisor  # of rows and cols
        # In a group, blocks of other processes add to the same rows: they are rounded once, at the end.
        dtype = rows.dtype if work.group is None else work.wide
        self.grad_rows = torch.zeros(rows.shape, dtype=dtype, device=rows.device) if needs.rows else None
        by_units = needs.rows and work.group is None and has_units(rows)
        self.row_units = rows.new_empty(len(rows), 1, dtype=work.wide) if by_units else None
        self.direct = needs.rows and work.group is None and dtype == work.wide  # parts are summed in grad_rows itself
        self.grad_scale = rows.new_zeros((), dtype=torch.float64) if needs.scale else None
        self.grad_bias = rows.new_zeros(len(rows), dtype=work.wide) if needs.bias else None

    def add(self, cols: torch.Tensor, find: Find | None) -> torch.Tensor | None:
        """Adds the pairs of all rows with these cols; returns the gradient of cols. Without find there are no positives."""
        work, needs, rows, (size, width) = self.work, self.needs, self.rows, self.tile
        grad_cols = torch.zeros(cols.shape, dtype=work.wide, device=cols.device) if needs.cols else None
        by_rows = needs.rows or (needs.scale and not needs.cols)  # the gradient of the scale comes with it
        buffer = rows.new_empty(size * width, dtype=work.wide)
        for start in range(0, len(rows), size):
            part = work.operand(rows[start : start + size])
            scaled = part if self.row_scale is None else part * self.row_scale
            of_part = self._new_part(part, start) if by_rows else None
            for left in range(0, len(cols), width):
                block = work.operand(cols[left : left + width])
                at = None if find is None else find(start, start + len(part), left, left + len(block))
                logits = product(scaled, block.t(), buffer[: len(part) * len(block)].view(len(part), -1))
                grad = self._step(logits, start, at, block.dtype)
                del at
                if grad is None:
                    continue
                if self.grad_bias is not None:
                    self.grad_bias[start : start + size] += grad.sum(1, dtype=work.wide)
                if of_part is not None:
                    add_product(grad, block, of_part)
                if grad_cols is not None:
                    add_product(grad.t(), part, grad_cols[left : left + width])
            if of_part is not None:
                self._add_part(part, of_part, start)
        if grad_cols is not None:
            if self.grad_scale is not None and not by_rows:
                for left in range(0, len(cols), width):
                    self.grad_scale += dot(work.operand(cols[left : left + width]), grad_cols[left : left + width])
            grad_cols.mul_(self.factor)
        return grad_cols

    def _step(self, logits: torch.Tensor, start: int, at: torch.Tensor | None, dtype: torch.dtype) -> Number:
        """Adds the loss of the chunk that starts at this row; returns the gradient of its logits, if one is needed."""
        scale, bias = self.logit_scale, self.bias
        if bias is not None and bias.dim():
            bias = bias[start : start + len(logits), None]
        at = NOWHERE.to(logits.device) if at is None else at
        slopes = self._positives(logits, scale, bias, at, start) if len(at) else None
        if not any(self.needs):
            self.loss += self.step.negatives(logits, scale, bias, at)
            return None
        loss, grad = self.step.negatives_with_gradient(logits, scale, bias, at, dtype)
        self.loss += loss
        if slopes is not None:
            grad.view(-1)[at] = slopes.to(grad.dtype)
        return grad  # type: ignore[no-any-return]

    def _positives(
        self, logits: torch.Tensor, scale: Number, bias: Number, at: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Adds the loss of a chunk's positives; returns the gradients of their logits."""
        slopes = logits.new_empty(len(at))
        piece = max(POSITIVES, logits.numel() // SHARE)
        for some, slope in zip(at.split(piece), slopes.split(piece), strict=True):
            row = some // logits.shape[1]
            z = logits.view(-1)[some]
            if scale is not None:
                z *= scale
            if bias is not None:
                z += bias.view(-1)[row] if bias.dim() else bias
            values = F.softplus(z.neg_(), threshold=50)
            torch.sigmoid(z, out=slope)
            if self.work.weights is not None:
                weights = self.work.weights[row.add_(start)]
                values *= weights
                slope *= weights
            self.loss += values.sum(dtype=torch.float64)
        return slopes.neg_()

    def _new_part(self, part: torch.Tensor, start: int) -> torch.Tensor:
        """Returns zeros in which the gradient of a part of the rows is summed."""
        if self.direct and self.grad_rows is not None:
            return self.grad_rows[start : start + len(part)]
        return torch.zeros(part.shape, dtype=self.work.wide, device=part.device)

    def _add_part(self, part: torch.Tensor, of_part: torch.Tensor, start: int) -> None:
        """Adds the gradient of a part of the rows, times the factor."""
        if self.grad_scale is not None:  # the sum of all logits' gradients, each times rows @ cols.T
            self.grad_scale += dot(part, of_part)
        if self.grad_rows is not None:
            of_part.mul_(self.factor)
            stop = start + len(part)
            if self.row_units is not None:
                write_in_units(of_part, self.grad_rows[start:stop], self.row_units[start:stop])
            elif not self.direct:
                self.grad_rows[start:stop] += of_part


NOWHERE = torch.empty(0, dtype=torch.int64, device="cpu")


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


# A float16 gradient is saved as multiples of a unit, one a row: float16 alone would lose what a loss scale is there to keep.


def has_units(t: torch.Tensor) -> bool:
    """Tells whether the gradient of t is saved in units."""
    return t.dtype == torch.float16 and t.dim() == 2 and t.shape[1] > 0


def write_in_units(grad: torch.Tensor, out: torch.Tensor, units: torch.Tensor) -> None:
    """Writes the units of grad, powers of two, and grad / units, below 2^15, to out. Overwrites grad."""
    largest = torch.linalg.vector_norm(grad, torch.inf, dim=1, keepdim=True)
    largest = largest.nan_to_num(2**14, posinf=2**14)  # their unit is 1, so that infinity and NaN stay
    torch.ldexp(torch.ones_like(largest), largest.frexp().exponent.clamp_(min=-100) - 15, out=units)
    out.copy_(grad.div_(units))


def multiply_in_units(grad: torch.Tensor, units: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes grad * units * factor, rounded once, to out, which may be grad; a part of the rows at a time."""
    size = max(1, UNIT_ELEMENTS.get(grad.device.type, 2**16) // grad.shape[1])
    for rows, unit, to in zip(grad.split(size), units.split(size), out.split(size), strict=True):
        to.copy_(rows * (unit * factor))
    return out
