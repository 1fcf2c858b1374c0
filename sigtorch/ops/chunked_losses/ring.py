"""Several processes: cols pass round a ring, followed by their gradients, while each process computes with its own rows.

A process holds two blocks of cols at a time. A block's gradient is complete once it has passed every process.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from sigtorch import _eligible
from sigtorch._checks import FLOATS
from sigtorch.ops.chunked_losses import checks
from sigtorch.ops.chunked_losses.products import Sums, rounding

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Self = TypeVar("Self", bound="HasGroup")  # typing's own came with Python 3.11
DIMS = 8  # dimensions of a shape that are sent to the others


def around(group: ProcessGroup, sums: Sums, cols: torch.Tensor) -> torch.Tensor | None:
    """Adds the blocks of all processes; returns the gradient of this process's cols."""
    work, size = sums.work, group.size()
    visiting, passed = cols.to(work.narrow).contiguous(), None  # cols, and the gradient of the block before
    for step in range(size):
        arriving = torch.empty_like(visiting) if step + 1 < size else None
        added = None if passed is None else torch.empty_like(passed)
        transfers = _exchange(group, (visiting, arriving), (passed, added))
        grad = sums.add(visiting, step * len(cols))  # the first block, its own, has the positives
        _wait(transfers)
        if grad is not None and added is not None:
            grad += added
        visiting, passed = visiting if arriving is None else arriving, grad
    if passed is not None and size > 1:  # home
        own = torch.empty_like(passed)
        _wait(_exchange(group, (passed, own)))
        passed = own
    return passed


class Wanted(NamedTuple):
    """Flags: whether any process of the group needs the gradient of its cols, and any gradient at all."""

    of_cols: bool = False
    of_any: bool = True


def agree(where: str, group: ProcessGroup, rows: torch.Tensor, cols: torch.Tensor, numbers: Sequence[Any]) -> Wanted:
    """Tells which gradients the processes need; raises in all of them if shapes or dtypes differ.

    Shapes are checked later: a process that fails before this leaves the others waiting.
    """
    if not _eligible.plain(rows, cols):
        raise checks.error_group(where)
    shapes = [[*t.shape[:DIMS], *[-1] * (DIMS - t.dim())] for t in (rows, cols)]
    needed = any(isinstance(t, torch.Tensor) and t.requires_grad for t in (rows, cols, *numbers))
    wanted = Wanted(cols.requires_grad, needed) if torch.is_grad_enabled() else Wanted(False, False)
    mine = (*shapes[0], *shapes[1], FLOATS.index(rounding(rows, cols)[0]), *wanted)
    seen = gathered(group, torch.tensor(mine, dtype=torch.int64, device=rows.device)).tolist()
    flags = len(Wanted._fields)
    if any(other[:-flags] != seen[0][:-flags] for other in seen):
        said = [(_shape(at[:DIMS]), _shape(at[DIMS : 2 * DIMS]), FLOATS[at[2 * DIMS]]) for at in seen]
        raise checks.error_uneven(where, said)
    return Wanted(*(any(each) for each in zip(*(other[-flags:] for other in seen), strict=True)))


def _shape(padded: list[int]) -> tuple[int, ...]:
    return tuple(n for n in padded if n >= 0)


def check_same_gradient(op: str, group: ProcessGroup, grad: torch.Tensor) -> None:
    """Raises in every process if they differ: the gradients of cols are sums over all processes already."""
    seen = gathered(group, grad.detach().double().reshape(1)).flatten()
    if not seen.isclose(seen[0], rtol=0, atol=0, equal_nan=True).all():  # NaN in all of them is a step to skip
        raise checks.error_unequal(op, seen.tolist())


def gathered(group: ProcessGroup, mine: torch.Tensor) -> torch.Tensor:
    """Returns a row from each process, on the group's device."""
    mine = on_device_of(group, mine)
    every = [torch.empty_like(mine) for _ in range(group.size())]
    torch.distributed.all_gather(every, mine, group=group)
    return torch.stack(every)


def on_device_of(group: ProcessGroup, t: torch.Tensor) -> torch.Tensor:
    """Returns t on a device that follows from the group alone: the CPU, if its backends can send from there."""
    kinds = device_types(group)
    kind = "cpu" if "cpu" in kinds else kinds[0]
    return t if t.device.type == kind else t.to(kind)


def device_types(group: ProcessGroup) -> list[str]:
    """Returns the types of devices that a group can send from."""
    config = torch.distributed.get_backend_config(group)  # such as cpu:gloo,cuda:nccl
    return [pair.partition(":")[0] for pair in config.split(",")]


def _exchange(group: ProcessGroup, *pairs: tuple[torch.Tensor | None, torch.Tensor | None]) -> list[Any]:
    """Starts sending to the next process, and receiving from the one before."""
    dist = torch.distributed
    rank, size = group.rank(), group.size()
    after, before = (dist.get_global_rank(group, (rank + by) % size) for by in (1, -1))
    operations = []
    for tag, (sent, received) in enumerate(pairs):
        if sent is not None and received is not None:
            operations.append(dist.P2POp(dist.isend, sent, after, group, tag))
            operations.append(dist.P2POp(dist.irecv, received, before, group, tag))
    return dist.batch_isend_irecv(operations) if operations else []


def _wait(transfers: list[Any]) -> None:
    for transfer in transfers:
        transfer.wait()


class HasGroup:
    """A module that holds a process group, which its copies share: none can be copied."""

    group: ProcessGroup | None

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        memo[id(self.group)] = self.group
        copied = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied
