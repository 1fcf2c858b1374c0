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

# Logits of a chunk: what stays near a CPU's cores between the products, and what fills a GPU; and the least rows of one.
CHUNK_ELEMENTS, CHUNK_ROWS = {"cpu": 2**20, "cuda": 2**25}, 128


class Positives(NamedTuple):
    """Those of a chunk: where they lie in it, counted row by row, and their weights, or None for ones."""

    at: torch.Tensor
    weights: torch.Tensor | None = None


Find = Callable[[int, int], Positives | None]  # the positives of the rows from one to another


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
    find: Find
    divisor: int  # of the loss
    dtype: torch.dtype  # of the result
    narrow: torch.dtype  # that rows and cols are rounded to: their own, or autocast's
    step: str  # what runs between the products: "cpu", "kernels", or "formula" where everything is that
    chunk_size: int
    held: tuple[torch.Tensor, ...] = ()  # tensors that find reads
    group: Any = None  # of processes that hold a part of the rows and cols each

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
    dtype = narrow = torch.promote_types(rows.dtype, cols.dtype)
    kind = rows.device.type
    if narrow != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        narrow = torch.get_autocast_dtype(kind)
        dtype = torch.float32 if dtype in HALF_DTYPES else dtype
    beside = [t for t in others if t.device == rows.device]
    step = _backend.select(rows, cols, beside=beside, cpu_pass=True)
    if any(type(t) not in _backend.PLAIN_TYPES for t in others):  # a 0-d one on the CPU, say
        step = "formula"
    step = "kernels" if step == "triton" else step
    if step == "kernels" and len(cols) < 2:  # a kernel sums over columns
        step = "cpu"
    size = chunk_size or max(CHUNK_ROWS, CHUNK_ELEMENTS.get(kind, 2**20) // max(1, len(cols)))
    return Work(op, dtype=dtype, narrow=narrow, step=step, chunk_size=size, **rest)


def unrounded(t: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where autocast rounds nothing more, on devices that it knows."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


class Sums:
    """What chunks are added to: the loss, and the wanted gradients of loss / divisor; a None is not wanted."""

    def __init__(self, work: Work, needs: Needs, rows: torch.Tensor, scale: torch.Tensor | None) -> None:
        self.work, self.needs = work, needs
        self.loss = rows.new_zeros((), dtype=torch.float64)
        self.factor = self.loss.to(work.wide) + (1 if scale is None else scale) / work.divisor  # of rows and cols
        # Blocks from other processes add to the same rows: rounded once, at the end.
        dtype = work.wide if work.group is not None else work.kept(rows)
        self.rows = torch.zeros(rows.shape, dtype=dtype, device=rows.device) if needs.rows else None
        self.scale = rows.new_zeros((), dtype=torch.float64) if needs.scale else None
        self.bias = rows.new_zeros(len(rows), dtype=work.wide) if needs.bias else None

    def add(
        self,
        rows: torch.Tensor,
        cols: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        find: Find | None,
    ) -> torch.Tensor | None:
        """The pairs of rows and these cols, whose gradient it gives; find is None where there are no positives."""
        work, needs = self.work, self.needs
        cols, size = work.operand(cols), min(work.chunk_size, len(rows))
        grad_cols = (
            torch.zeros_like(cols, dtype=work.wide, memory_format=torch.contiguous_format) if needs.cols else None
        )
        buffer = rows.new_empty((size, len(cols)), dtype=work.wide)
        for start in range(0, len(rows), size):
            stop = min(start + size, len(rows))
            part = work.operand(rows[start:stop])
            offset = bias if bias is None or not bias.dim() else bias[start:stop, None]
            hits = None if find is None else find(start, stop)
            grad = self._step(part, cols, scale, offset, hits, buffer[: stop - start])
            if grad is not None:
                self._add_chunk(grad, part, cols, start, stop)
                if grad_cols is not None:
                    add_product(grad.t(), part, grad_cols)
        if grad_cols is not None:
            if self.scale is not None and not needs.rows:
                self.scale += (cols * grad_cols).sum(dtype=torch.float64)
            grad_cols.mul_(self.factor)
        return grad_cols

    def _step(
        self,
        part: torch.Tensor,
        cols: torch.Tensor,
        scale: torch.Tensor | None,
        offset: torch.Tensor | None,
        hits: Positives | None,
        buffer: torch.Tensor,
    ) -> torch.Tensor | None:
        """Adds a chunk's loss; its logits' gradients, if any are wanted."""
        step = importlib.import_module(f"sigtorch.{self.work.step}.chunked_losses")
        if scale is not None and self.work.step == "cpu":  # cheaper on the part than on the logits
            logits, scale = product(part * scale, cols.t(), buffer), None
        else:
            logits = product(part, cols.t(), buffer)
        at = NOWHERE if hits is None else hits.at
        z = weights = None
        if hits is not None and len(at):
            z, weights = logits.view(-1)[at], hits.weights
            z = z if scale is None else z * scale
            if offset is not None:
                z = z + (offset if not offset.dim() else offset.view(-1)[at // len(cols)])
            values = F.softplus(-z, threshold=50)
            self.loss += (values if weights is None else values * weights).sum(dtype=torch.float64)
        if not any(self.needs):
            self.loss += step.negatives(logits, scale, offset, at)
            return None
        loss, grad = step.negatives_with_gradient(logits, scale, offset, at, part.dtype)
        self.loss += loss
        if z is not None:
            slope = torch.sigmoid(-z).neg_()
            grad.view(-1)[at] = (slope if weights is None else slope * weights).to(grad.dtype)
        return grad

    def _add_chunk(self, grad: torch.Tensor, part: torch.Tensor, cols: torch.Tensor, start: int, stop: int) -> None:
        """Adds what a chunk's gradient is to the bias, to its rows, and by these to the scale."""
        if self.bias is not None:
            self.bias[start:stop] += grad.sum(1, dtype=self.bias.dtype)
        if self.rows is None and (self.scale is None or self.needs.cols):
            return
        of_rows = product(grad, cols)
        if self.scale is not None:  # the sum of all logits' gradients times what the scale multiplies
            self.scale += (part * of_rows).sum(dtype=torch.float64)
        if self.rows is not None:
            self.rows[start:stop] += of_rows.mul_(self.factor)


NOWHERE = torch.empty(0, dtype=torch.int64)


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The product of a and b, in float32 for half types."""
    if a.dtype not in HALF_DTYPES:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, torch.float32) if out is None else torch.mm(a, b, torch.float32, out=out)


def add_product(a: torch.Tensor, b: torch.Tensor, to: torch.Tensor) -> None:
    """Likewise, added to what is there."""
    if a.dtype in HALF_DTYPES:
        torch.addmm(to, a, b, torch.float32, out=to)
    else:
        to.addmm_(a, b)
