"""The step between the products of a chunk of logits, by PyTorch's in-place operators on any device; named as in kernels."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

Number = torch.Tensor | None

# The factor, and the gradient of the scale, are left to the sums that the products make, of fewer elements than the logits.
LEAVES_FACTOR = True
THRESHOLD = 50  # PyTorch's own, 20, would cost float64 its last digits
# Softplus of all logits at once would double their memory: a piece has this many, or 1 / SHARE of them if that is more.
PIECE, SHARE = 2**10, 8


class Positives(Protocol):
    """Knows the positives among all pairs."""

    def places(self, top: int, bottom: int, left: int, right: int) -> Number:
        """Returns the places of those in logits[top:bottom, left:right], counted row by row; None if there are none."""


class OnDiagonal:
    """The positives of pairs: where row and column are the same."""

    def places(self, top: int, bottom: int, left: int, right: int) -> Number:
        first, last, width = max(top, left), min(bottom, right), right - left
        if first >= last:
            return None
        corner = (first - top) * width + first - left
        return torch.arange(corner, corner + (last - first) * (width + 1), width + 1, device="cpu")


class Listed:
    """The positives whose row * cols + column are listed, sorted and distinct."""

    def __init__(self, keys: torch.Tensor, rows: int, cols: int) -> None:
        self.keys, self.cols = keys, cols

    def places(self, top: int, bottom: int, left: int, right: int) -> Number:
        ends = torch.tensor([top * self.cols, bottom * self.cols], device=self.keys.device)
        first, last = torch.searchsorted(self.keys, ends).tolist()
        at = self.keys[first:last] - top * self.cols
        if right - left == self.cols:
            return at
        row, column = torch.div(at, self.cols, rounding_mode="floor"), at % self.cols
        inside = (column >= left) & (column < right)
        return (row * (right - left) + column - left)[inside]


class InMatrix:
    """The positives of a bool matrix, of columns and rows."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets

    def places(self, top: int, bottom: int, left: int, right: int) -> Number:
        return self.targets[left:right, top:bottom].t().reshape(-1).nonzero().view(-1)


on_diagonal, listed, in_matrix = OnDiagonal, Listed, InMatrix  # as in kernels


class Step:
    """The step between the products, for all chunks of a loss; it holds the sum of the losses. Arguments as in kernels."""

    def __init__(
        self,
        like: torch.Tensor,
        positives: Positives,
        scale: Number,
        bias: Number,
        weights: Number,
        factor: torch.Tensor,
        sums_scale: bool,
    ) -> None:
        self.positives, self.scale, self.bias, self.weights = positives, scale, bias, weights
        self.loss = like.new_zeros((), dtype=torch.float64)
        self.like = like

    def sums_of_rows(self, rows: int, cols: int) -> torch.Tensor:
        """Returns zeros for a part of the rows: ``add`` adds the logits' gradients to it, their sum over dim 0 is the bias'."""
        return self.like.new_zeros(1, rows)

    def add(self, logits: torch.Tensor, top: int, left: int, sums_of_rows: Number, dtype: torch.dtype | None) -> Number:
        """Adds the loss of a chunk whose first row is top, and first column left. Overwrites the logits.

        Returns their gradients: in place, or in a new tensor if dtype is another one. If it is None, there are none, unless
        they are summed.
        """
        at = self.positives.places(top, top + len(logits), left, left + logits.shape[1])
        at = None if at is None or not len(at) else at.to(logits.device)
        bias = self.bias
        if bias is not None and bias.dim():
            bias = bias[top : top + len(logits), None]
        slopes = None if at is None else self._positives(logits, bias, at, top)
        if self.scale is not None:
            logits.mul_(self.scale)
        if bias is not None:
            logits.add_(bias)
        if at is not None:
            logits.view(-1).index_fill_(0, at, -torch.inf)  # which has neither loss nor gradient
        for piece in logits.view(-1).split(max(PIECE, logits.numel() // SHARE)):
            self.loss += torch.ops.aten.softplus(piece, 1, THRESHOLD).sum()
        if dtype is None and sums_of_rows is None:
            return None
        grad = logits.sigmoid_().to(logits.dtype if dtype is None else dtype)
        if at is not None and slopes is not None:
            grad.view(-1)[at] = slopes.to(grad.dtype)
        if sums_of_rows is not None:
            sums_of_rows[0] += grad.sum(1, dtype=sums_of_rows.dtype)
        return None if dtype is None else grad

    def _positives(self, logits: torch.Tensor, bias: Number, at: torch.Tensor, top: int) -> torch.Tensor:
        """Adds the loss of a chunk's positives; returns the gradients of their logits."""
        slopes = logits.new_empty(len(at))
        piece = max(PIECE, logits.numel() // SHARE)
        for some, slope in zip(at.split(piece), slopes.split(piece), strict=True):
            row = some // logits.shape[1]
            z = logits.view(-1)[some]
            if self.scale is not None:
                z *= self.scale
            if bias is not None:
                z += bias.view(-1)[row] if bias.dim() else bias
            values = F.softplus(z.neg_(), threshold=THRESHOLD)
            torch.sigmoid(z, out=slope)
            if self.weights is not None:
                weights = self.weights[row.add_(top)]
                values *= weights
                slope *= weights
            self.loss += values.sum(dtype=torch.float64)
        return slopes.neg_()

    def totals(self) -> tuple[torch.Tensor, Number]:
        """Returns the loss so far, in float64; the scale's gradient is not summed here."""
        return self.loss, None


def write_in_units(grad: torch.Tensor, out: torch.Tensor, units: torch.Tensor) -> None:
    """Writes the units of grad's rows, powers of two, to units, and grad / units, below 2^15, to out. Overwrites grad."""
    largest = torch.linalg.vector_norm(grad, torch.inf, dim=1, keepdim=True)
    largest = largest.nan_to_num(2**14, posinf=2**14)  # their unit is 1, so that infinity and NaN stay
    torch.ldexp(torch.ones_like(largest), largest.frexp().exponent.clamp_(min=-100) - 15, out=units)
    out.copy_(grad.div_(units))
