"""Several processes: each holds a share of the labels, with the rows of the weight; all hold the same inputs.

The loss and the inputs' gradient are sums over the processes; what belongs to a label stays where it is.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import torch

from sigtorch._checks import FLOATS
from sigtorch.ops.chunked_losses import checks
from sigtorch.ops.chunked_losses.products import Number, wide_rows
from sigtorch.ops.chunked_losses.ring import gathered, on_device_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Replicas of one tensor may differ in last bits: by so many eps of its dtype, relative to a sample's length.
LAST_BITS = 16
SUMS = 6  # of a sample, each with weights of its own: one in a million other samples of bfloat16 passes them all


class Share(NamedTuple):
    """Numbers that a process tells the others of its part; they travel as float64."""

    refused: float = True
    samples: float = 0
    features: float = 0
    product: float = 0  # its dtype, and the result's, as places in FLOATS
    result: float = 0
    means: float = 0  # whether the reduction is the mean
    labels: float = 0
    wants_grad: float = 0  # of the inputs
    needs_grad: float = 0  # of anything

    def as_said(self) -> str:
        """Returns what all processes must agree on, as an error shows it."""
        reduction = "mean" if self.means else "sum"
        shape = (int(self.samples), int(self.features))
        return f"{shape} {FLOATS[int(self.product)]} for a {reduction} of {FLOATS[int(self.result)]}"


class Agreed(NamedTuple):
    """Labels of all processes, and whether any of them wants the inputs' gradient, and needs any gradient."""

    labels: int
    any_wants_grad: bool
    any_needs_grad: bool


class Shares:
    """The processes of a group that hold a share of the labels each.

    As a context, it tells the others if this process raises before all have agreed, so that all raise.
    """

    def __init__(self, where: str, group: ProcessGroup, means: bool) -> None:
        self.where, self.group, self.means = where, group, means
        self.has_told = False

    def __enter__(self) -> Shares:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not self.has_told:
            self._told(Share())

    def agree(self, share: Share, input: torch.Tensor) -> Agreed:
        """Returns what the processes have together; raises in all of them if they disagree."""
        seen = self._told(share)
        if refused := [rank for rank, other in enumerate(seen) if other.refused]:
            raise checks.error_refused(self.where, refused)
        said = [other.as_said() for other in seen]
        if len(set(said)) > 1:
            raise checks.error_disagreeing(self.where, said)
        labels = int(sum(other.labels for other in seen))
        if not labels:
            raise checks.error_no_labels(self.where)
        self._check_same(input, FLOATS[int(share.product)])
        return Agreed(labels, any(other.wants_grad for other in seen), any(other.needs_grad for other in seen))

    def _check_same(self, input: torch.Tensor, product: torch.dtype) -> None:
        """Raises in every process if the inputs differ from those of the first by more than last bits."""
        mine = on_device_of(self.group, fingerprints(input))
        first = mine.clone()
        torch.distributed.broadcast(first, torch.distributed.get_global_rank(self.group, 0), self.group)
        differs = is_other(mine, first, tolerance_of(input.dtype, product)).any()
        apart = gathered(self.group, differs.double()).tolist()
        if any(apart):
            raise checks.error_other_inputs(self.where, apart.index(True))

    def _told(self, share: Share) -> list[Share]:
        self.has_told = True
        mine = torch.tensor(share, dtype=torch.float64)
        return [Share(*row) for row in gathered(self.group, mine).tolist()]

    def summed(self, loss: torch.Tensor, grad: Number) -> tuple[torch.Tensor, Number]:
        """Returns the sums over all processes of their loss and, if any wants it, of their gradient of the inputs."""
        loss = loss.clone()
        torch.distributed.all_reduce(loss, group=self.group)
        if grad is not None:
            torch.distributed.all_reduce(grad, group=self.group)
        return loss, grad


def fingerprints(input: torch.Tensor) -> torch.Tensor:
    """Returns sums of each sample, in float64, and its length in the last column: in no memory of the inputs' size."""
    place = torch.arange(input.shape[1], device=input.device, dtype=torch.float64).square_().unsqueeze_(1)
    weights = place.mul(torch.arange(2, SUMS + 2, device=input.device, dtype=torch.float64).sqrt_()).cos_()
    found = []
    for piece in input.detach().split(wide_rows(input)):
        piece = piece.double()
        found.append(torch.cat([piece @ weights, torch.linalg.vector_norm(piece, dim=1, keepdim=True)], 1))
    return torch.cat(found)


def tolerance_of(dtype: torch.dtype, product: torch.dtype) -> float:
    """Returns by how much replicas may differ, relative to a sample's length, if both dtypes have rounded them."""
    return LAST_BITS * max(torch.finfo(dtype).eps, torch.finfo(product).eps)


def is_other(mine: torch.Tensor, first: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Tells of each sample whether its fingerprint is another one; of two that are no finite numbers it is not."""
    finite = mine.isfinite().all(1), first.isfinite().all(1)
    near = ((mine - first).abs() <= tolerance * first[:, -1:]).all(1)
    return (finite[0] != finite[1]) | (finite[0] & ~near)
