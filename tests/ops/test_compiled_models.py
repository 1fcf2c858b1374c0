"""Models in compiled code: patched ones, and those that train in parallel."""

import contextlib
from datetime import timedelta

import pytest
import torch
import torch.nn.functional as F
from support.device import DEVICE
from support.graphs import compiled, every_choice
from torch import distributed

import sigtorch

pytestmark = [
    pytest.mark.usefixtures("on_device"),
    # Dynamo hides it, but not from "error".
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


class Block(torch.nn.Module):
    """A feed-forward block as models have it."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 12), torch.nn.Linear(6, 8)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return x * torch.sigmoid(self.down(F.silu(gate) * value))


@every_choice
def test_a_patched_model_compiles_to_the_same_graph(backend, variable):
    variable(backend)
    model, x = Block(), torch.randn(4, 8)
    plain, before = compiled(model)
    expected, targets = plain(x), before.targets
    with sigtorch.patch(model):
        patched, after = compiled(model)
        torch.testing.assert_close(patched(x), expected)
        assert after.targets == targets


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 12), torch.nn.Linear(6, 8)

    def forward(self, x, target):
        return sigtorch.binary_cross_entropy_with_logits(self.down(sigtorch.swiglu(self.up(x))), target)


@contextlib.contextmanager
def one_process():
    distributed.init_process_group(
        "gloo" if DEVICE == "cpu" else "cpu:gloo,cuda:nccl",
        store=distributed.HashStore(),
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=60),
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def in_ddp(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def in_fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh(DEVICE, (1,)))
    return model


@pytest.mark.parametrize("wrapped", [in_ddp, in_fsdp])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # PyTorch's own, of its own
def test_in_parallel_training(wrapped, variable):
    variable("triton")
    torch._dynamo.reset()
    model, x, target = Layer(), torch.randn(4, 8), torch.rand(4, 8)
    model(x, target).backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    with one_process():
        whole = torch.compile(wrapped(model), backend="aot_eager")
        whole(x, target).backward()
        found = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
