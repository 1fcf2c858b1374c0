"""A layer whose rows are shared among processes: which ones are whose, and what a checkpoint and a norm see of them.

A checkpoint holds them whole, as it does the shards of FSDP, so that any number of processes can go on.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import _distributed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard


def rows(whole: int) -> range:
    """The rows that this process has of so many, as PyTorch's shards divide them: the last ones may have fewer."""
    most = -(-whole // _distributed.size())
    first = min(whole, most * _distributed.rank())
    return range(first, min(whole, first + most))


def group(parallel: str) -> dist.ProcessGroup | None:
    """The processes that share the labels of a layer, if they do."""
    return dist.group.WORLD if parallel == "labels" and _distributed.size() > 1 else None


def names(model: nn.Module) -> set[str]:
    """The parameters that are shared: of the layers that have a group."""
    layers = {name: layer for name, layer in model.named_modules() if getattr(layer, "group", None) is not None}
    return {f"{name}.{parameter}" for name, layer in layers.items() for parameter, _ in layer.named_parameters()}


def norm(tensors: Mapping[str, Tensor], shared: Collection[str]) -> Tensor:
    """The norm of all these tensors, of shared ones over all processes."""
    if not shared:
        return nn.utils.get_total_norm([*tensors.values()])
    own, alike = (
        nn.utils.get_total_norm([t for name, t in tensors.items() if (name in shared) == one]) for one in (True, False)
    )
    return _distributed.total(own.square()).add(alike.square()).sqrt()


def wholes(state: dict[str, Any], shared: Collection[str]) -> dict[str, Any]:
    """The state of a model and its optimizer, with each shared tensor as this process's shard of a whole one."""
    return _with(state, shared, _shard)


def own(state: dict[str, Any], shared: Collection[str]) -> dict[str, Any]:
    """The state with each shard as a tensor of its own."""
    return _with(state, shared, lambda t: t.to_local() if isinstance(t, DTensor) else t)


def _with(state: dict[str, Any], shared: Collection[str], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    model = {name: change(t) if name in shared else t for name, t in state["model"].items()}
    kept = {
        name: {key: change(t) for key, t in of_one.items()} if name in shared else of_one
        for name, of_one in state["optimizer"]["state"].items()
    }
    return {"model": model, "optimizer": state["optimizer"] | {"state": kept}}


def _shard(t: Tensor) -> Tensor:
    if not t.dim():  # an optimizer's count of steps
        return t
    mesh = init_device_mesh(t.device.type, (_distributed.size(),))
    shape = torch.Size([int(_distributed.total(torch.tensor(len(t)))), *t.shape[1:]])
    return DTensor.from_local(t, mesh, [Shard(0)], shape=shape, stride=t.stride(), run_check=False)
