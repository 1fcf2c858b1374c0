"""Several processes: each holds a share of the labels, with the rows of the weight; all hold the same inputs.

The loss and the inputs' gradient are sums over the processes; what belongs to a label stays where it is.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sigtorch._checks import FLOATS
from sigtorch.ops.chunked_losses import checks
from sigtorch.ops.chunked_losses.products import Number, unrounded
from sigtorch.ops.chunked_losses.ring import gathered

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Replicas of one tensor may differ in last bits; other samples, or another order, by about as much as the tensor is long.
ALIKE = 0.01


class Share(NamedTuple):
    """What a process tells the others of its part; numbers alone, so that they travel as float64."""

    refused: float = True
    samples: float = 0
    features: float = 0
    product: float = 0  # its dtype, and the result's, as places in FLOATS
    result: float = 0
    means: float = 0  # whether the reduction is the mean
    labels: float = 0
    wants_grad: float = 0  # of the inputs
    direction: float = 0  # of the inputs: a number that another order changes
    length: float = 0

    def as_said(self) -> str:
        """Returns what all processes must agree on, as an error shows it."""
        reduction = "mean" if self.means else "sum"
        shape = (int(self.samples), int(self.features))
        return f"{shape} {FLOATS[int(self.product)]} for a {reduction} of {FLOATS[int(self.result)]}"


class Shares:
    """The processes of a group that hold a share of the labels each.

    As a context, it tells the others if this process raises before all have agreed, so that all raise.
    """

    def __init__(self, where: str, group: ProcessGroup, like: Any, means: bool) -> None:
        self.where, self.group, self.means = where, group, means
        self.device = like.device if isinstance(like, torch.Tensor) else torch.device("cpu")
        self.has_told = False

    def __enter__(self) -> Shares:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not self.has_told:
            self._told(Share())

    def agree(self, share: Share) -> tuple[int, bool]:
        """Returns the labels of all processes, and whether any wants the inputs' gradient; raises in all if they disagree."""
        seen = self._told(share)
        if refused := [rank for rank, other in enumerate(seen) if other.refused]:
            raise checks.error_refused(self.where, refused)
        said = [other.as_said() for other in seen]
        if len(set(said)) > 1:
            raise checks.error_disagreeing(self.where, said)
        first = seen[0]
        apart = [abs(other.direction - first.direction) > ALIKE * first.length for other in seen]  # false for NaN
        if any(apart):
            raise checks.error_other_inputs(self.where, apart.index(True))
        labels = int(sum(other.labels for other in seen))
        if not labels:
            raise checks.error_no_labels(self.where)
        return labels, any(other.wants_grad for other in seen)

    def _told(self, share: Share) -> list[Share]:
        self.has_told = True
        mine = torch.tensor(share, dtype=torch.float64, device=self.device)
        return [Share(*row) for row in gathered(self.group, mine).tolist()]

    def summed(self, loss: torch.Tensor, grad: Number) -> tuple[torch.Tensor, Number]:
        """Returns the sums over all processes of their loss and, if any wants it, of their gradient of the inputs."""
        loss = loss.clone()
        torch.distributed.all_reduce(loss, group=self.group)
        if grad is not None:
            torch.distributed.all_reduce(grad, group=self.group)
        return loss, grad


def fingerprint(input: torch.Tensor) -> tuple[float, float]:
    """Returns a sum of the inputs, each with a weight of its own, and their length: in no memory of their size."""
    samples, features = input.shape
    with unrounded(input):
        of_features = torch.arange(features, device=input.device, dtype=torch.float64).mul_(1.7).cos_().to(input.dtype)
        of_samples = torch.arange(samples, device=input.device, dtype=torch.float64).cos_()
        direction = (input.detach() @ of_features).double() @ of_samples
        length = torch.linalg.vector_norm(input.detach(), dtype=torch.float64)
    return tuple(torch.stack([direction, length]).tolist())  # type: ignore[return-value]
