"""Several processes: cols pass round a ring, and their gradients after them, while the present block computes.

Each process computes its own rows with everybody's cols, in the memory of two blocks of these. The gradients of cols that
have gone round are the sums of what each process's loss has to say of them.
"""

from __future__ import annotations

from typing import Any

import torch

from sigtorch.ops.chunked_losses import checks
from sigtorch.ops.chunked_losses.products import Needs, Sums, Work

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def around(
    work: Work,
    needs: Needs,
    rows: torch.Tensor,
    cols: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[Sums, torch.Tensor | None]:
    """The sums of all blocks, and the gradient of this process's cols."""
    size = work.group.size()
    wanted = _agreed(work, needs, rows)
    sums = Sums(work, needs._replace(cols=wanted), rows, scale, bias)
    visiting, passed = cols.to(work.narrow).contiguous(), None  # cols, and the gradient of those that were here before
    for step in range(size):
        arriving = torch.empty_like(visiting) if step + 1 < size else None
        added = None if passed is None else torch.empty_like(passed)
        transfers = _exchange(work.group, (visiting, arriving), (passed, added))
        grad = sums.add(visiting, None if step else work.find)
        _wait(transfers)
        if grad is not None and added is not None:
            grad += added
        visiting, passed = visiting if arriving is None else arriving, grad
    if passed is not None and size > 1:  # home
        own = torch.empty_like(passed)
        _wait(_exchange(work.group, (passed, own)))
        passed = own
    return sums, passed if needs.cols else None


def _agreed(work: Work, needs: Needs, rows: torch.Tensor) -> bool:
    """Whether any process wants the gradient of its cols; an error in each of them where their blocks are not alike."""
    mine = (*rows.shape, DTYPES.index(work.narrow), needs.cols)
    seen = _gathered(work.group, torch.tensor(mine, dtype=torch.int64, device=rows.device)).tolist()
    if any(other[:3] != seen[0][:3] for other in seen):
        raise checks.uneven(work.op, [(n, d, DTYPES[dtype]) for n, d, dtype, _ in seen])
    return any(other[3] for other in seen)


def same_gradient(work: Work, needs: Needs, grad: torch.Tensor) -> None:
    """An error in every process where they differ: the gradients of cols are sums over all processes already."""
    seen = _gathered(work.group, grad.detach().double().reshape(1)).flatten().tolist()
    if any(other != seen[0] for other in seen):
        raise checks.unequal(work.op, seen)


def _gathered(group: Any, mine: torch.Tensor) -> torch.Tensor:
    """A row from each process."""
    every = [torch.empty_like(mine) for _ in range(group.size())]
    torch.distributed.all_gather(every, mine, group=group)
    return torch.stack(every)


def _exchange(group: Any, *pairs: tuple[torch.Tensor | None, torch.Tensor | None]) -> list[Any]:
    """Starts to send to the next process, and to receive from the one before."""
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
