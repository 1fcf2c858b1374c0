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

from sigtorch import _backend
from sigtorch._backend import HALF_DTYPES

# Logits of a chunk: what stays near a CPU's cores between the products, or fills a GPU; and the rows of one, at least.
CHUNK_ELEMENTS, CHUNK_ROWS = {"cpu": 2**20, "cuda": 2**25}, {"cpu": 2**10, "cuda": 2**12}


class Positives(NamedTuple):
    """Those of a chunk: where they lie in it, counted row by row, and their weights, or None for ones."""

    at: torch.Tensor
    weights: torch.Tensor | None = None


Find = Callable[[int, int, int, int], Positives | None]  # the positives from a row to another, from a column to another
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
    step: str  # what runs between the products: "cpu", "kernels", or "formula" where everything is that
    chunk_size: int
    find: Find | None = None
    held: tuple[torch.Tensor, ...] = ()  # tensors that find reads
    group: Any = None  # of processes that hold a part of the rows and cols each
    wanted: bool = False  # whether any of them wants the gradient of its cols

    @property
    def wide(self) -> torch.dtype:
        """Logits and sums are in this."""
        return torch.float32 if self.narrow in HALF_DTYPES else self.narrow

    def operand(self, t: torch.Tensor) -> torch.Tensor:
        """As a product takes it: a GPU multiplies bfloat16 into float32, and float16 is too narrow for gradients."""
        t = t.to(self.narrow)
        return t if t.is_cuda and t.dtype == torch.bfloat16 and self.step == "kernels" else t.to(self.wide)

    def kept(self, t: torch.Tensor) -> torch.dtype:
        """What a gradient is kept in until backward multiplies it: float16 would lose what a loss scale saves."""
        return self.wide if t.dtype == torch.float16 else t.dtype


def work_for(
    op: str, rows: torch.Tensor, cols: torch.Tensor, others: Sequence[torch.Tensor], chunk_size: int | None, **rest: Any
) -> Work:
    """Fills in what follows from the tensors, and from autocast."""
    narrow, dtype = rounding(rows, cols)
    kind = rows.device.type
    beside = [t for t in others if t.device == rows.device]
    step = _backend.select(rows, beside=[cols, *beside], cpu_pass=True)  # of dtypes that may differ
    if any(type(t) not in _backend.PLAIN_TYPES for t in others):  # a 0-d one on the CPU, say
        step = "formula"
    step = "kernels" if step == "triton" else step
    size = chunk_size or max(CHUNK_ROWS.get(kind, 1), chunk_elements(rows) // max(1, len(cols)))
    return Work(op, dtype=dtype, narrow=narrow, step=step, chunk_size=size, **rest)


def rounding(rows: torch.Tensor, cols: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
    """What rows and cols are multiplied in, by autocast too, and the dtype of the result."""
    narrow = dtype = torch.promote_types(rows.dtype, cols.dtype)
    kind = rows.device.type
    if narrow != torch.float64 and _backend.autocasts(kind):
        narrow = torch.get_autocast_dtype(kind)
        dtype = torch.float32 if dtype in HALF_DTYPES else dtype
    return narrow, dtype


def chunk_elements(t: torch.Tensor) -> int:
    return CHUNK_ELEMENTS.get(t.device.type, 2**20)


def unrounded(t: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where autocast rounds nothing more, on devices that it knows."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if _backend.knows_autocast(kind) else contextlib.nullcontext()


class Sums:
    """What chunks are added to: the loss, and the wanted gradients of loss / divisor; a None is not wanted."""

    def __init__(self, work: Work, needs: Needs, rows: torch.Tensor, scale: Number, bias: Number) -> None:
        self.work, self.needs, self.rows, self.scale, self.bias = work, needs, rows, scale, bias
        self.step = importlib.import_module(f"sigtorch.{work.step}.chunked_losses")
        self.loss = rows.new_zeros((), dtype=torch.float64)
        self.factor = self.loss.to(work.wide) + (1 if scale is None else scale) / work.divisor  # of rows and cols
        # Blocks from other processes add to the same rows: rounded once, at the end.
        dtype = work.wide if work.group is not None else work.kept(rows)
        self.grad_rows = torch.zeros(rows.shape, dtype=dtype, device=rows.device) if needs.rows else None
        self.grad_scale = rows.new_zeros((), dtype=torch.float64) if needs.scale else None
        self.grad_bias = rows.new_zeros(len(rows), dtype=work.wide) if needs.bias else None

    def add(self, cols: torch.Tensor, find: Find | None) -> torch.Tensor | None:
        """All rows' pairs with these cols, whose gradient it gives; find is None where there are no positives."""
        work, needs, rows = self.work, self.needs, self.rows
        cols, size = work.operand(cols), min(work.chunk_size, len(rows))
        width = min(max(1, chunk_elements(rows) // size), len(cols))
        grad_cols = torch.zeros(cols.shape, dtype=work.wide, device=cols.device) if needs.cols else None
        by_rows = needs.rows or (needs.scale and not needs.cols)  # what gives the scale its gradient, too
        buffer = rows.new_empty(size * width, dtype=work.wide)
        for start in range(0, len(rows), size):
            part = scaled = work.operand(rows[start : start + size])
            if self.scale is not None and work.step == "cpu":  # cheaper here than on the logits
                scaled = part * self.scale
            of_part = torch.zeros(part.shape, dtype=work.wide, device=part.device) if by_rows else None
            for left in range(0, len(cols), width):
                block = cols[left : left + width]
                hits = None if find is None else find(start, start + len(part), left, left + len(block))
                logits = product(scaled, block.t(), buffer[: len(part) * len(block)].view(len(part), -1))
                grad = self._step(logits, start, hits, block.dtype)
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
                self.grad_scale += (cols * grad_cols).sum(dtype=torch.float64)
            grad_cols.mul_(self.factor)
        return grad_cols

    def _step(self, logits: torch.Tensor, start: int, hits: Positives | None, dtype: torch.dtype) -> Number:
        """Adds the loss of a chunk whose first row this is; its logits' gradients, if any are wanted."""
        scale, bias = None if self.work.step == "cpu" else self.scale, self.bias
        at = NOWHERE.to(logits.device) if hits is None else hits.at
        if bias is not None and bias.dim():
            bias = bias[start : start + len(logits), None]
        slope = None
        if hits is not None and len(at):
            z = logits.view(-1)[at]
            z = z if scale is None else z * scale
            if bias is not None:
                z = z + (bias.view(-1)[at // logits.shape[1]] if bias.dim() else bias)
            values, slope = F.softplus(-z, threshold=50), -torch.sigmoid(-z)
            if hits.weights is not None:
                values, slope = values * hits.weights, slope * hits.weights
            self.loss += values.sum(dtype=torch.float64)
        if not any(self.needs):
            self.loss += self.step.negatives(logits, scale, bias, at)
            return None
        loss, grad = self.step.negatives_with_gradient(logits, scale, bias, at, dtype)
        self.loss += loss
        if slope is not None:
            grad.view(-1)[at] = slope.to(grad.dtype)
        return grad  # type: ignore[no-any-return]

    def _add_part(self, part: torch.Tensor, of_part: torch.Tensor, start: int) -> None:
        """Adds what a part of the rows has got, but for the factor."""
        if self.grad_scale is not None:  # the sum of all logits' gradients times what the scale multiplies
            self.grad_scale += (part * of_part).sum(dtype=torch.float64)
        if self.grad_rows is not None:
            self.grad_rows[start : start + len(part)] += of_part.mul_(self.factor)


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
