"""The step between the products of a chunk of logits, by PyTorch's in-place operators on any device; named as in kernels."""

from __future__ import annotations

import torch

Number = torch.Tensor | None


def negatives(logits: torch.Tensor, scale: Number, bias: Number, positives: torch.Tensor) -> torch.Tensor:
    """Sums the loss of all pairs as negatives, without those at positives. Overwrites the logits."""
    _scored(logits, scale, bias, positives)
    return _loss(logits)


def negatives_with_gradient(
    logits: torch.Tensor, scale: Number, bias: Number, positives: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums likewise; also returns the gradients, which overwrite the logits unless dtype differs."""
    _scored(logits, scale, bias, positives)
    return _loss(logits), logits.sigmoid_().to(dtype)


THRESHOLD = 50  # PyTorch's own, 20, would cost float64 its last digits
# Softplus of all logits at once would double their memory: a piece has this many, or 1 / SHARE of them if that is more.
PIECE, SHARE = 2**10, 8


def _loss(logits: torch.Tensor) -> torch.Tensor:
    """Sums softplus over all logits."""
    total = logits.new_zeros((), dtype=torch.float64)
    for piece in logits.view(-1).split(max(PIECE, logits.numel() // SHARE)):
        total += torch.ops.aten.softplus(piece, 1, THRESHOLD).sum()
    return total


def _scored(logits: torch.Tensor, scale: Number, bias: Number, positives: torch.Tensor) -> None:
    """Applies scale and bias in place, and writes -inf, which has neither loss nor gradient, at the positives."""
    if scale is not None:
        logits.mul_(scale)
    if bias is not None:
        logits.add_(bias)
    if len(positives):
        logits.view(-1).index_fill_(0, positives, -torch.inf)
