"""Several processes that train one model: who they are, what they tell each other, how they share the model.

Without torchrun there is one process, and every function here answers for it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

PARALLEL = ("ddp", "fsdp")
T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int | None:
    """The number of this process on its machine: the number of its GPU. None for a process on its own."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else None


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Meet the other processes that torchrun started; only the first of them prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # Numbers that the host reads travel by gloo, and what is on the GPUs by NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    with contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield
        except SystemExit:  # all come here together
            _leave()
            raise
        _leave()  # after an exception the others may wait for something else: no goodbye


def _leave() -> None:
    # gloo's threads need the interpreter's lock to free what they sent last, and PyTorch waits for them holding it.
    time.sleep(0.2)
    dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their numbers."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def first(value: T) -> T:
    """The value that the first process has."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def together(do: Callable[[], T]) -> list[T]:
    """Call it in every process, and answer with what came out in each; an OSError in one is raised in all."""
    answer, failure = None, None
    try:
        answer = do()
    except OSError as error:
        failure = str(error)
    said = gather((answer, failure))
    for _, failure in said:
        if failure is not None:
            raise OSError(failure)
    return [answer for answer, _ in said]


def spread(
    model: nn.Module, units: Iterable[nn.Module], parallel: str, device: torch.device, own: Iterable[str] = ()
) -> nn.Module:
    """The model to call in training: of one process the model itself, else copies of it (ddp) or shards (fsdp).

    Shards are gathered unit by unit, and what belongs to none of the units all at once. ``own`` are the parameters of which
    no copy is like another (labels).
    """
    if size() == 1:
        return model
    if parallel in ("ddp", "labels"):
        model._ddp_params_and_buffers_to_ignore = [*own]  # as DistributedDataParallel looks for them
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (size(),))
    for module in (*units, model):
        fully_shard(module, mesh=mesh)
        if device.type == "cpu":
            module.set_force_sum_reduction_for_comms(
                True
            )  # where it should average, torch 2.8's gloo sums without a word
    return model


def accumulating(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Around forward and backward of a part of a batch: gradients are exchanged after the last part alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, in shards where there are: an evaluation leaves some of them gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return dict(model.named_parameters())


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor whole, if it is in shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
