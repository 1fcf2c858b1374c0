"""Loss and gradients of logits = scale * rows @ cols.T + bias, a chunk of rows at a time: what the family shares.

The loss is a scalar, so that its gradients are known in forward but for one factor: each chunk of logits becomes its own
gradient in place, and two more products add it to those of rows and cols. Three products a chunk, as eager code needs;
nothing of the size of all logits is ever held.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sigtorch import _backend, _eligible
from sigtorch._eligible import HALF_DTYPES

# Logits of a chunk, in float32: what stays near a CPU's cores between the products, or fills a GPU; and its least rows.
CHUNK_ELEMENTS, CHUNK_ROWS = {"cpu": 2**20, "cuda": 2**25}, {"cpu": 2**10, "cuda": 2**12}
# Where logits are few a chunk is a third of them, for eager code holds them all; where they are this few, a chunk is all.
PART = 3
FEW_ELEMENTS = {"cpu": 2**14, "cuda": 2**20}
# A gradient in units of its own is multiplied this many elements at a time.
UNITS = {"cpu": 2**16, "cuda": 2**23}
# Positives are computed this many at a time, or 1 / SHARE of a chunk's logits if that is more: each takes more memory.
POSITIVES, SHARE = 2**10, 8

# Where the positives lie in a chunk, counted row by row: from a row to another, from a column to another.
Find = Callable[[int, int, int, int], torch.Tensor | None]
Number = torch.Tensor | None


class Needs(NamedTuple):
    """Whose gradients are wanted."""

    rows: bool
    cols: bool
    scale: bool
    bias: bool


@dataclass(frozen=True)
class Work:
    """All that a loss is beside its tensors."""

    op: str
    divisor: int  # of the loss
    dtype: torch.dtype  # of the result
    narrow: torch.dtype  # that rows and cols are rounded to: their own, or autocast's
    step: str  # what runs between the products: "cpu", "kernels", or "aten" where everything is the formula
    find: Find | None = None
    weights: Number = None  # of the positives in each row; None for ones
    group: Any = None  # of processes that hold a part of the rows and cols each
    wanted: bool = False  # whether any of them wants the gradient of its cols

    @property
    def wide(self) -> torch.dtype:
        """Logits and sums are in this."""
        return torch.float32 if self.narrow in HALF_DTYPES else self.narrow

    def operand(self, t: torch.Tensor) -> torch.Tensor:
        """The tensor in the dtype of a product: a GPU multiplies bfloat16 into float32; float16 is too narrow for gradients."""
        t = t.to(self.narrow)
        return t if t.is_cuda and t.dtype == torch.bfloat16 and self.step == "kernels" else t.to(self.wide)


class Tile(NamedTuple):
    """Rows and columns of a chunk."""

    rows: int
    cols: int


def tile_of(work: Work, rows: torch.Tensor, cols: torch.Tensor, chunk_size: int | None) -> Tile:
    """How large a chunk is, so that its logits, and what else grows with its rows and columns, stay within bounds."""
    kind, features = rows.device.type, max(1, rows.shape[1])
    part = rows.shape[0] * cols.shape[0] // PART
    elements = CHUNK_ELEMENTS.get(kind, 2**20) * 4 // work.wide.itemsize
    elements = min(elements, max(part, FEW_ELEMENTS.get(kind, 2**14)))
    size = chunk_size or max(min(CHUNK_ROWS.get(kind, 1), rows.shape[0] // PART), elements // cols.shape[0])
    width = cols.shape[0]
    if work.group is not None or rows.dtype != work.wide or cols.dtype != work.wide:
        # Not added up where they are returned: a chunk holds two copies of its rows' features, and one of its columns'.
        size = size if chunk_size else min(size, elements // (2 * features))
        width = min(width, elements // features)
    size = max(1, min(size, rows.shape[0]))
    return Tile(size, max(1, min(width, elements // size)))


def work_for(op: str, rows: torch.Tensor, cols: torch.Tensor, others: Sequence[torch.Tensor], **rest: Any) -> Work:
    """Fills in what follows from the tensors, and from autocast."""
    narrow, dtype = rounding(rows, cols)
    beside = [t for t in others if t.device == rows.device]
    step = _backend.select(rows, beside=[cols, *beside], cpu_pass=True)  # of dtypes that may differ
    if any(type(t) not in _eligible.PLAIN_TYPES for t in others):  # a 0-d one on the CPU, say
        step = "aten"
    return Work(op, dtype=dtype, narrow=narrow, step="kernels" if step == "triton" else step, **rest)


def rounding(rows: torch.Tensor, cols: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The dtype in which rows and cols are multiplied, under autocast too, and the dtype of the result."""
    narrow = dtype = torch.promote_types(rows.dtype, cols.dtype)
    kind = rows.device.type
    if narrow != torch.float64 and _eligible.autocasts(kind):
        narrow = torch.get_autocast_dtype(kind)
        dtype = torch.float32 if dtype in HALF_DTYPES else dtype
    return narrow, dtype


def unrounded(t: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where autocast rounds nothing more, on devices that it knows."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if _eligible.knows_autocast(kind) else contextlib.nullcontext()


class Sums:
    """Sums over chunks: the loss, and the wanted gradients of loss / divisor. A None is not wanted."""

    def __init__(self, work: Work, tile: Tile, needs: Needs, rows: torch.Tensor, scale: Number, bias: Number) -> None:
        self.work, self.tile, self.needs = work, tile, needs
        self.rows, self.bias = rows, bias
        self.step = importlib.import_module(f"sigtorch.{work.step}.chunked_losses")
        # Cheaper on a chunk's rows than on its logits, where these are more.
        self.row_scale = scale if work.step == "cpu" and rows.shape[1] < tile.cols else None
        self.logit_scale = None if self.row_scale is not None else scale
        self.loss = rows.new_zeros((), dtype=torch.float64)
        self.factor = self.loss.to(work.wide) + (1 if scale is None else scale) / work.divisor  # of rows and cols
        # Blocks from other processes add to the same rows: rounded once, at the end.
        dtype = rows.dtype if work.group is None else work.wide
        self.grad_rows = torch.zeros(rows.shape, dtype=dtype, device=rows.device) if needs.rows else None
        by_units = needs.rows and work.group is None and has_units(rows)
        self.row_units = rows.new_empty(len(rows), 1, dtype=work.wide) if by_units else None
        self.direct = needs.rows and work.group is None and dtype == work.wide  # are parts added up where they end
        self.grad_scale = rows.new_zeros((), dtype=torch.float64) if needs.scale else None
        self.grad_bias = rows.new_zeros(len(rows), dtype=work.wide) if needs.bias else None

    def add(self, cols: torch.Tensor, find: Find | None) -> torch.Tensor | None:
        """All rows' pairs with these cols, whose gradient it gives; find is None where there are no positives."""
        work, needs, rows, (size, width) = self.work, self.needs, self.rows, self.tile
        grad_cols = torch.zeros(cols.shape, dtype=work.wide, device=cols.device) if needs.cols else None
        by_rows = needs.rows or (needs.scale and not needs.cols)  # what gives the scale its gradient, too
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
        """Adds the loss of a chunk whose first row this is; its logits' gradients, if any are wanted."""
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
        """Adds the loss of a chunk's positives; the gradients of their logits."""
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
        """Zeros that the gradient of a part of the rows is added up in."""
        if self.direct and self.grad_rows is not None:
            return self.grad_rows[start : start + len(part)]
        return torch.zeros(part.shape, dtype=self.work.wide, device=part.device)

    def _add_part(self, part: torch.Tensor, of_part: torch.Tensor, start: int) -> None:
        """Adds what a part of the rows has got, but for the factor."""
        if self.grad_scale is not None:  # the sum of all logits' gradients times what the scale multiplies
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
    """The product of a and b, in float32 for half types."""
    return torch.mm(a, b, torch.float32, out=out) if a.dtype in HALF_DTYPES else torch.mm(a, b, out=out)


def add_product(a: torch.Tensor, b: torch.Tensor, to: torch.Tensor) -> None:
    """Likewise, added to what is there."""
    if a.dtype in HALF_DTYPES:
        torch.addmm(to, a, b, torch.float32, out=to)
    else:
        to.addmm_(a, b)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of all products of two elements, in no memory of their size."""
    return torch.bmm(a.to(b.dtype).unsqueeze(1), b.unsqueeze(2)).sum(dtype=torch.float64)


# A gradient of float16 waits for backward in units of its own a row, for a loss scale saves what float16 alone would lose.


def has_units(t: torch.Tensor) -> bool:
    """Whether the gradient of t does."""
    return t.dtype == torch.float16 and t.dim() == 2 and t.shape[1] > 0


def write_in_units(grad: torch.Tensor, out: torch.Tensor, units: torch.Tensor) -> None:
    """Writes grad / units to out and the units, powers of two, to units: each row's largest is below 2^15 then. Spends grad."""
    largest = torch.linalg.vector_norm(grad, torch.inf, dim=1, keepdim=True)
    largest = largest.nan_to_num(2**14, posinf=2**14)  # has the unit 1: infinity and NaN stay what they are
    torch.ldexp(torch.ones_like(largest), largest.frexp().exponent.clamp_(min=-100) - 15, out=units)
    out.copy_(grad.div_(units))


def times(grad: torch.Tensor, units: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes grad * units * factor to out, which may be grad, rounded once; a part of the rows at a time."""
    size = max(1, UNITS.get(grad.device.type, 2**16) // grad.shape[1])
    for rows, unit, to in zip(grad.split(size), units.split(size), out.split(size), strict=True):
        to.copy_(rows * (unit * factor))
    return out
