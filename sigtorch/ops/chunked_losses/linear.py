"""A binary cross-entropy over the outputs of a linear layer, its labels, of which there may be millions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch._checks import FLOATS
from sigtorch.ops.chunked_losses import checks, operators
from sigtorch.ops.chunked_losses.checks import CSR
from sigtorch.ops.chunked_losses.function import Result, breaks_graphs, loss_and_gradients, loss_of, needs_of
from sigtorch.ops.chunked_losses.products import (
    Needs,
    Operands,
    Work,
    steps,
    tile_of,
    unrounded,
    work_for,
)
from sigtorch.ops.chunked_losses.ring import HasGroup, device_types
from sigtorch.ops.chunked_losses.shares import Share, Shares

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OP = "linear_binary_cross_entropy"
Target = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
# A CSR with more positives than these, and than one in so many logits, becomes a bool matrix, a part of them at a time:
# sorting takes 32 bytes for each.
FEW, DENSE_FROM, PARTS = 2**10, 16, 8


def _needs_break(input: Any, linear_weight: Any, target: Any, group: ProcessGroup | None = None, **kwargs: Any) -> bool:
    return group is not None or (isinstance(target, torch.Tensor) and target.layout == torch.sparse_csr)


@breaks_graphs(_needs_break)
def linear_binary_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: Target,
    *,
    linear_bias: torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    chunk_size: int | None = None,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    r"""Computes the binary cross-entropy of a linear layer's outputs without ever holding all of them.

    The result is ``binary_cross_entropy_with_logits(F.linear(input, linear_weight, linear_bias), target, ...)``, computed
    for a chunk of labels at a time. Gradients are computed with the loss: three matrix products in forward, none in
    backward. The weight's gradient is held once: backward returns it, or a copy with ``retain_graph=True``. A tensor that
    needs no gradient costs no product.

    Some callers get a formula in PyTorch's operators, which holds all logits: exported, traced and transformed code,
    tensor subclasses such as DTensor, the backend ``"aten"``, and a pos_weight that requires a gradient.
    For ``torch.compile`` the loss is one operator; a sparse CSR tensor and a group break the graph.

    Args:
        input: shape (N, D), floating.
        linear_weight: shape (L, D), for L labels.
        target: the positive labels. A sparse CSR tensor of shape (N, L) whose values are ones; or its ``crow_indices``
            and ``col_indices`` in a tuple; or a bool tensor of shape (N, L).
        linear_bias: shape (L,).
        pos_weight: weight of the positives, broadcastable to (L,).
        reduction: ``"mean"``, over all N times L logits, or ``"sum"``.
        chunk_size: labels in a chunk; by default as many as suit the device.
        group: a process group of ``torch.distributed``, such as ``torch.distributed.group.WORLD``. Each process holds a
            share of the labels, of any size: their rows of linear_weight, their linear_bias and pos_weight, and target
            among them. All give the same input. Every process gets the loss of all labels, and the gradient of input
            that they all have; other gradients are its own. Every process must call the loss and backward equally
            often, with the same incoming gradient.

    Returns:
        A scalar of the dtype of input and linear_weight; under autocast float32 for half types. It can be differentiated
        once in input, linear_weight and linear_bias.

    Raises:
        TypeError: an argument that is no tensor, or has a dtype not listed above; DTensors beside plain tensors or a CSR.
        ValueError: shapes that do not fit, an empty batch, an unknown reduction, a malformed CSR, a label out of range, a
            chunk size below 1, several devices; processes that give different inputs, or get different gradients.
        RuntimeError: differentiated twice; a group with tensor subclasses, in transformed code, or where another process
            refused its arguments; a sparse CSR tensor in exported, traced or transformed code, which takes its
            indices in a tuple.

    Source:
        Zhang et al., "ELMO: Efficiency via Low-precision and Peak Memory Optimization in Large Output Spaces", 2025, for
        chunks of labels.

    Example:
        >>> input, weight = torch.zeros(2, 4), torch.zeros(100_000, 4)
        >>> rows, labels = torch.tensor([0, 2, 3]), torch.tensor([17, 4711, 3])  # the first sample has two labels
        >>> sigtorch.linear_binary_cross_entropy(input, weight, (rows, labels))
        tensor(0.6931)
    """
    where = "linear_binary_cross_entropy()"
    checks.check_group(where, group)
    options = linear_bias, pos_weight, reduction, chunk_size
    if group is None:
        return _loss(where, None, input, linear_weight, target, *options)
    with Shares(where, group, means=reduction == "mean") as shares:
        return _loss(where, shares, input, linear_weight, target, *options)


def _loss(
    where: str,
    shares: Shares | None,
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: Target,
    linear_bias: torch.Tensor | None,
    pos_weight: torch.Tensor | None,
    reduction: Literal["mean", "sum"],
    chunk_size: int | None,
) -> torch.Tensor:
    """Checks the arguments and computes the loss, of all shares of the labels if there are any."""
    checks.check_layer(where, input, linear_weight, linear_bias, pos_weight, alone=shares is None)
    checks.check_reduction(where, reduction)
    chunk_size = checks.check_chunk_size(where, chunk_size)
    samples, labels = input.shape[0], linear_weight.shape[0]
    positives = checks.check_target(where, target, input, labels)
    given = positives if isinstance(positives, CSR) else (positives,)
    others = [t for t in (linear_bias, pos_weight, *given) if t is not None]
    work = work_for(
        OP, linear_weight, input, others, divisor=samples * labels if reduction == "mean" else 1, shares=shares
    )
    if shares is not None:
        if work.runner not in ("triton", "cpu"):
            raise checks.error_group(where)
        if input.device.type not in device_types(shares.group):
            raise checks.error_group_device(where, input.device, device_types(shares.group))
        if pos_weight is not None and pos_weight.requires_grad and torch.is_grad_enabled():
            raise checks.error_weights_differentiated(where)
    if work.runner == "aten" or (pos_weight is not None and pos_weight.requires_grad and torch.is_grad_enabled()):
        try:
            if isinstance(positives, CSR):
                positives = _traced_matrix(where, positives, samples, labels)
            return _formula(work, input, linear_weight, linear_bias, positives, pos_weight)
        except RuntimeError:
            layer = {"linear_weight": linear_weight, "linear_bias": linear_bias, "pos_weight": pos_weight}
            checks.check_dtensors(where, given, input=input, **layer)
            raise
    operands = Operands(linear_weight, input, None, linear_bias)
    if work.runner in ("compiled", "operator"):
        csr = (None, *positives) if isinstance(positives, CSR) else (positives, None, None)
        settings = *csr, pos_weight, reduction, work.dtype, work.narrow, chunk_size
        if work.runner == "compiled":
            return OPERATOR(input, linear_weight, linear_bias, *settings, [*needs_of(operands)])[0]  # type: ignore[no-any-return]
        return loss_of(work.op, None, partial(_by_operator, settings), operands)
    compute = partial(_in_chunks, work, positives, pos_weight, chunk_size)
    return loss_of(work.op, None if shares is None else shares.group, compute, operands)


def _in_chunks(
    work: Work,
    positives: torch.Tensor | CSR,
    pos_weight: torch.Tensor | None,
    chunk_size: int | None,
    needs: Needs,
    operands: Operands,
) -> Result:
    where = f"{work.op}()"
    labels, samples = operands.rows.shape[0], operands.cols.shape[0]
    tile = tile_of(work, operands.rows, operands.cols, chunk_size)
    if isinstance(positives, CSR) and labels and len(positives.col) > max(FEW, samples * labels // DENSE_FROM):
        positives = _matrix_in_parts(where, positives, samples, labels)
    step = steps(work.runner)
    if isinstance(positives, CSR):
        found = step.listed(checks.check_csr(where, positives, samples, labels), labels, samples)
    else:
        found = step.in_matrix(positives)
    weights = None if pos_weight is None else pos_weight.detach().to(work.wide).expand(labels)
    if work.shares is not None:
        work = _agreed(work, work.shares, operands, needs)
    return loss_and_gradients(replace(work, positives=found, weights=weights), tile, needs, operands)


def _agreed(work: Work, shares: Shares, operands: Operands, needs: Needs) -> Work:
    """Returns the settings of a loss of all labels, once all processes have agreed on them."""
    (samples, features), labels = operands.cols.shape, len(operands.rows)
    dtypes = FLOATS.index(work.narrow), FLOATS.index(work.dtype)
    share = Share(False, samples, features, *dtypes, shares.means, labels, needs.cols, any(needs))
    labels, any_wants_grad, any_needs_grad = shares.agree(share, operands.cols)
    divisor = samples * labels if shares.means else 1
    return replace(work, divisor=divisor, any_wants_cols_grad=any_wants_grad, any_needs_grad=any_needs_grad)


def _by_operator(settings: tuple[Any, ...], needs: Needs, operands: Operands) -> Result:
    return operators.call_observed(OPERATOR, (operands.cols, operands.rows, operands.bias, *settings), needs)


def _run(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    target: torch.Tensor | None, crow: torch.Tensor | None, col: torch.Tensor | None, pos_weight: torch.Tensor | None,
    reduction: str, dtype: torch.dtype, product_dtype: torch.dtype, chunk_size: int | None, needs: Sequence[bool],
) -> Result:  # fmt: skip
    """Computes the operator."""
    where, samples, labels = f"torch.ops.sigtorch.{OP}", input.shape[0], weight.shape[0]
    checks.check_layer(where, input, weight, bias, pos_weight)
    checks.check_reduction(where, reduction)
    checks.check_chunk_size(where, chunk_size)
    if (target is None) == (crow is None) or (crow is None) != (col is None):
        raise checks.error_no_target(OP)
    positives = checks.check_target(where, (crow, col) if target is None else target, input, labels)
    work = Work(
        OP, divisor=samples * labels if reduction == "mean" else 1, dtype=dtype, narrow=product_dtype,
        runner=operators.runner(weight, input, bias, target, crow, col, pos_weight),
    )  # fmt: skip
    return _in_chunks(work, positives, pos_weight, chunk_size, Needs(*needs), Operands(weight, input, None, bias))


OPERATOR = operators.define(
    OP, "Tensor input, Tensor linear_weight, Tensor? linear_bias, "
    "Tensor? target, Tensor? crow_indices, Tensor? col_indices, Tensor? pos_weight, str reduction",
    ("linear_weight", "input", None, "linear_bias"), _run, waits=True,
)  # fmt: skip


def _traced_matrix(where: str, csr: CSR, samples: int, labels: int) -> torch.Tensor:
    """Returns a CSR as a bool matrix, by operators that can be traced."""
    if all(map(checks.readable, csr)):
        checks.check_csr(where, csr, samples, labels)
    label, sample = checks.pairs(csr, samples)
    targets = torch.zeros(samples, labels, dtype=torch.bool, device=label.device)
    return targets.index_put((sample, label), torch.ones_like(label, dtype=torch.bool))


def _matrix_in_parts(where: str, csr: CSR, samples: int, labels: int) -> torch.Tensor:
    """Returns a CSR of many positives as a bool matrix, writing a part of them at a time."""
    crow, col = csr.crow.long().contiguous(), csr.col  # contiguous, or searchsorted warns
    matrix = torch.zeros(samples, labels, dtype=torch.bool, device=col.device)
    for start in range(0, len(col), max(FEW, len(col) // PARTS)):
        label = col[start : start + max(FEW, len(col) // PARTS)]
        sample = checks.samples_of(crow, start, len(label), samples)
        matrix[sample, label.clamp(0, labels - 1)] = True  # malformed ones are looked at below, once
    if not checks.is_formed(csr, labels) & (matrix.count_nonzero() == len(col)):
        checks.check_csr(where, csr, samples, labels)  # raises
    return matrix


def _formula(
    work: Work,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    pos_weight: torch.Tensor | None,
) -> torch.Tensor:
    """Computes the loss in differentiable operators, which round the factors of the product as chunks do."""
    with unrounded(weight):
        z = F.linear(*(t.to(work.narrow).to(work.wide) for t in (input, weight)))
        z = z if bias is None else z + bias.to(work.wide)
        values = F.softplus(torch.where(targets, -z, z), threshold=50)
        if pos_weight is not None:
            values = torch.where(targets, values * pos_weight.to(work.wide), values)
        return (values.sum() / work.divisor).to(work.dtype)


class LinearBCE(HasGroup, torch.nn.Linear):
    """A :class:`torch.nn.Linear` over labels that computes :func:`sigtorch.linear_binary_cross_entropy` of its outputs.

    Args:
        in_features: D.
        num_labels: L; with a group, those of this process.
        bias: True for a layer with a bias.
        device: of the parameters.
        dtype: of the parameters.
        chunk_size: labels in a chunk; by default as many as suit the device.
        reduction: ``"mean"`` or ``"sum"``.
        pos_weight: weight of the positives, broadcastable to (L,); a buffer.
        group: a process group, each of which has a layer of its own with a share of the labels. DDP must not average them:
            keep the layer out of what it wraps.

    Raises:
        TypeError, ValueError: a chunk size that is no whole number, or below 1; an unknown reduction; a pos_weight that is
            no tensor; a group that is no process group.

    Example:
        >>> layer = sigtorch.nn.LinearBCE(64, 100_000)
        >>> input, rows, labels = torch.randn(2, 64), torch.tensor([0, 2, 3]), torch.tensor([17, 4711, 3])
        >>> layer(input, (rows, labels)).backward()
        >>> layer(input).shape
        torch.Size([2, 100000])
    """

    pos_weight: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        chunk_size: int | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        pos_weight: torch.Tensor | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(in_features, num_labels, bias, device, dtype)
        where = "LinearBCE()"
        self.chunk_size = checks.check_chunk_size(where, chunk_size)
        checks.check_reduction(where, reduction)
        self.reduction: Literal["mean", "sum"] = reduction
        checks.check_group(where, group)
        self.group = group
        if pos_weight is not None:
            checks.check_floating(where, pos_weight=pos_weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: torch.Tensor, target: Target | None = None) -> torch.Tensor:
        """Returns the loss; without a target the logits, of this process's labels, as a linear layer does."""
        if target is None:
            return super().forward(input)
        return linear_binary_cross_entropy(
            input, self.weight, target,
            linear_bias=self.bias, pos_weight=self.pos_weight, reduction=self.reduction, chunk_size=self.chunk_size,
            group=self.group,
        )  # fmt: skip

    def extra_repr(self) -> str:
        options: dict[str, Any] = {
            "chunk_size": self.chunk_size,
            "reduction": self.reduction,
            "pos_weight": self.pos_weight,
        }
        options |= {} if self.group is None else {"group": self.group}
        return f"{super().extra_repr()}, {_checks.shown(**options)}"
