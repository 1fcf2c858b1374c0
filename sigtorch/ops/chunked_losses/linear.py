"""A linear layer with a binary cross-entropy over its outputs, the labels, which may be millions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from sigtorch.ops.chunked_losses import checks
from sigtorch.ops.chunked_losses.function import loss_of, uncompiled
from sigtorch.ops.chunked_losses.products import POSITIVES, SHARE, Find, Work, tile_of, unrounded, work_for

Targets = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
# A CSR that holds more than one label of this many becomes a bool matrix: to sort it takes 32 bytes for each positive.
MANY = 16


@uncompiled
def linear_binary_cross_entropy(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    *,
    chunk_size: int | None = None,
    reduction: str = "mean",
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Computes the binary cross-entropy of a linear layer's outputs, which are never held as a whole.

    It is ``binary_cross_entropy_with_logits(F.linear(input, weight, bias), targets, ...)``, a chunk of labels at a time.
    Gradients are computed with the loss: three matrix products in forward, none in backward. The weight's gradient is
    held once: backward hands it out, or with ``retain_graph=True`` a copy. What wants no gradient costs no product.

    Exported, traced or transformed code, tensor subclasses such as DTensor, the backend ``"aten"``, and a pos_weight that
    wants a gradient get a formula in PyTorch's operators, which holds all logits. ``torch.compile`` does not look into the
    loss: the graph breaks there.

    Args:
        input: of shape (N, D), floating.
        weight: of shape (L, D): L labels.
        bias: of shape (L,), or None.
        targets: which labels are positive: a sparse CSR tensor of shape (N, L) whose values are ones; or its
            ``crow_indices`` and ``col_indices`` in a tuple; or a bool tensor of shape (N, L).
        chunk_size: labels in a chunk; what suits the device, where it is None.
        reduction: ``"mean"``, over all N times L, or ``"sum"``.
        pos_weight: what positives count, broadcastable to (L,).

    Returns:
        A scalar of the dtype of input and weight; under autocast float32 for half types. Differentiable once in input,
        weight and bias.

    Raises:
        TypeError: what is no tensor, or of no dtype above; DTensors beside plain tensors, or beside a CSR.
        ValueError: shapes that do not fit, an empty batch, an unknown reduction, a malformed CSR, a label that is not
            there, a chunk size below 1, several devices.
        RuntimeError: differentiated twice; a sparse CSR tensor in exported, traced or transformed code, which takes its
            indices in a tuple.

    Source:
        Zhang et al., "ELMO: Efficiency via Low-precision and Peak Memory Optimization in Large Output Spaces", 2025, for
        chunks of labels.
    """
    where = "linear_binary_cross_entropy()"
    checks.layer(where, input, weight, bias, pos_weight)
    checks.reduction(where, reduction)
    chunk_size = checks.chunk_size(where, chunk_size)
    samples, labels = input.shape[0], weight.shape[0]
    parts = checks.targets(where, targets, input, labels)
    others = [t for t in (bias, pos_weight, *parts) if t is not None]
    work = work_for(
        "linear_binary_cross_entropy", weight, input, others,
        divisor=samples * labels if reduction == "mean" else 1,
    )  # fmt: skip
    if work.step == "aten" or (pos_weight is not None and pos_weight.requires_grad and torch.is_grad_enabled()):
        try:
            dense = parts[0] if len(parts) == 1 else _dense(where, parts, samples, labels)
            return _formula(work, input, weight, bias, dense, pos_weight)
        except RuntimeError:
            checks.distributed(where, parts, input=input, weight=weight, bias=bias, pos_weight=pos_weight)
            raise
    tile = tile_of(work, weight, input, chunk_size)
    if len(parts) == 2 and parts[1].shape[0] > max(POSITIVES, samples * labels // MANY):
        parts = (_filled(where, parts, samples, labels),)
    if len(parts) == 1:
        find: Find = _Dense(parts[0])
    else:
        find = _Sparse(checks.sparse(where, parts, samples, labels), tile.rows, labels, samples)
    weights = None if pos_weight is None else pos_weight.detach().to(work.wide).expand(labels)
    return loss_of(replace(work, find=find, weights=weights), tile, weight, input, None, bias)


class _Sparse:
    """The positives of a chunk, of all in the order of their labels; rows of a chunk are labels, columns samples."""

    def __init__(self, at: torch.Tensor, size: int, labels: int, samples: int) -> None:
        self.at, self.size, self.samples = at, size, samples
        starts = torch.arange(0, labels + size, size, device=at.device) * samples
        self.starts = torch.searchsorted(at, starts).tolist()  # read once, for a device would wait each time

    def __call__(self, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
        number = top // self.size
        at = self.at[self.starts[number] : self.starts[number + 1]] - top * self.samples
        if right - left == self.samples:
            return at
        row, column = torch.div(at, self.samples, rounding_mode="floor"), at % self.samples
        inside = (column >= left) & (column < right)  # how many, a device would have to tell
        return (row * (right - left) + column - left)[inside]


class _Dense:
    """The positives of a chunk, of a bool matrix of samples and labels."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets

    def __call__(self, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
        return self.targets[left:right, top:bottom].t().reshape(-1).nonzero().view(-1)


def _dense(where: str, parts: tuple[torch.Tensor, ...], samples: int, labels: int) -> torch.Tensor:
    """Targets as a bool matrix."""
    if all(map(checks.readable, parts)):
        checks.sparse(where, parts, samples, labels)  # raises for what is malformed
    label, sample = checks.pairs(parts, samples)
    targets = torch.zeros(samples, labels, dtype=torch.bool, device=label.device)
    return targets.index_put((sample, label), torch.ones_like(label, dtype=torch.bool))


def _filled(where: str, parts: tuple[torch.Tensor, ...], samples: int, labels: int) -> torch.Tensor:
    """The same of a CSR whose positives are many, a part of them at a time."""
    checks.well_formed(where, parts, labels)
    crow, col = parts[0].long(), parts[1]
    matrix = torch.zeros(samples, labels, dtype=torch.bool, device=col.device)
    place = torch.arange(len(col), device=col.device)
    for label, at in zip(*(t.split(max(POSITIVES, len(col) // SHARE)) for t in (col, place)), strict=True):
        matrix[torch.searchsorted(crow, at, right=True).sub_(1), label] = True
    if int(matrix.count_nonzero()) < len(col):
        checks.sparse(where, parts, samples, labels)  # raises for what is named twice
    return matrix


def _formula(
    work: Work,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    pos_weight: torch.Tensor | None,
) -> torch.Tensor:
    """Plain and differentiable, with the same rounding of what is multiplied."""
    with unrounded(weight):
        z = F.linear(*(t.to(work.narrow).to(work.wide) for t in (input, weight)))
        z = z if bias is None else z + bias.to(work.wide)
        values = F.softplus(torch.where(targets, -z, z), threshold=50)
        if pos_weight is not None:
            values = torch.where(targets, values * pos_weight.to(work.wide), values)
        return (values.sum() / work.divisor).to(work.dtype)


class LinearBCE(torch.nn.Linear):
    """A linear layer over labels with :func:`sigtorch.linear_binary_cross_entropy`: a :class:`torch.nn.Linear` with a loss.

    Args:
        in_features: D.
        num_labels: L.
        bias: whether the layer has one.
        device: of the weights.
        dtype: of the weights.
        chunk_size: labels in a chunk; what suits the device, where it is None.
        reduction: ``"mean"`` or ``"sum"``.
        pos_weight: what positives count, broadcastable to (L,); a buffer.

    Raises:
        TypeError, ValueError: a chunk size that is no whole number, or below 1; an unknown reduction; a pos_weight that is
            no tensor.
    """

    pos_weight: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        chunk_size: int | None = None,
        reduction: str = "mean",
        pos_weight: torch.Tensor | None = None,
    ) -> None:
        super().__init__(in_features, num_labels, bias, device, dtype)
        where = "LinearBCE()"
        self.chunk_size = checks.chunk_size(where, chunk_size)
        checks.reduction(where, reduction)
        self.reduction = reduction
        if pos_weight is not None:
            checks.floating(where, pos_weight=pos_weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: torch.Tensor, targets: Targets | None = None) -> torch.Tensor:
        """The loss; without targets the logits, as of a linear layer."""
        if targets is None:
            return super().forward(input)
        return linear_binary_cross_entropy(
            input, self.weight, self.bias, targets,
            chunk_size=self.chunk_size, reduction=self.reduction, pos_weight=self.pos_weight,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, chunk_size={self.chunk_size}, reduction={self.reduction!r}"
