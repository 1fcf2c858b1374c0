"""SigLIP's loss in several processes: each one's gradients, averaged as DDP does, are those of one process with all pairs."""

import copy
import math
import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.cases import HALF, assert_rounded_once
from support.device import TORCH
from support.grouping import group_of
from torch.testing import assert_close

import sigtorch
from sigtorch.ops.chunked_losses import products, ring

EACH, D = 5, 4


class Towers(torch.nn.Module):
    """Two of them, with SigLIP's scale and bias."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = torch.nn.Linear(D, 3, dtype=dtype), torch.nn.Linear(D, 3, dtype=dtype)
        self.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.tensor(-2.0, dtype=dtype))

    def forward(self, images, texts):
        return (
            F.normalize(self.image(images), dim=-1),
            F.normalize(self.text(texts), dim=-1),
            self.scale.exp(),
            self.bias,
        )


def batch(processes, dtype):
    torch.manual_seed(4)
    return torch.randn(processes * EACH, D).to(dtype), torch.randn(processes * EACH, D).to(dtype)


def oracle(image, text, scale, bias):
    z = image @ text.T * scale + bias
    return -F.logsigmoid((2 * torch.eye(len(z), dtype=z.dtype) - 1) * z).sum() / len(z)


def trained(rank, dtype=torch.float64, frozen=(), chunk_size=2, again=False):
    """The loss and DDP's gradients of this process's share."""
    size = dist.get_world_size()
    towers = Towers(dtype)
    for name in frozen:
        getattr(towers, name).requires_grad_(False)
    model = torch.nn.parallel.DistributedDataParallel(towers)
    mine = slice(rank * EACH, (rank + 1) * EACH)
    loss_of = sigtorch.nn.SigLIPLoss(chunk_size=chunk_size, group=dist.group.WORLD)
    loss = loss_of(*model(*[t[mine] for t in batch(size, dtype)]))
    loss.backward(retain_graph=again)
    grads = {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}
    if again:  # computed anew, in all processes
        model.zero_grad()
        with model.no_sync():
            loss.backward()
        for p in towers.parameters():
            dist.all_reduce(p.grad)
            p.grad /= size
        assert_close({name: p.grad for name, p in towers.named_parameters()}, grads)
    return loss.detach(), grads


@pytest.mark.parametrize(
    ("processes", "frozen"),
    [*((n, ()) for n in (1, 2, 3, 4)), (2, ("text",)), (3, ("text",)), (3, ("image",)), (2, ("scale", "bias"))],
    ids=str,
)
def test_gradients_are_those_of_one_process(processes, frozen):
    found = group_of(trained, processes, frozen=frozen, again=not frozen)
    towers = Towers(torch.float64)
    loss = oracle(*towers(*batch(processes, torch.float64)))
    loss.backward()
    for _, grads in found:
        assert len(grads) == 6 - len(frozen) * (2 if frozen[0] in ("image", "text") else 1) if frozen else 6
        assert_close(grads, {name: p.grad for name, p in towers.named_parameters() if name in grads})
    assert_close(sum(mine for mine, _ in found) / processes, loss.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    found = group_of(trained, 2, dtype=dtype)
    towers = Towers(dtype).double()
    oracle(*towers(*[t.double() for t in batch(2, dtype)])).backward()
    rtol = {torch.float32: 1e-5}.get(dtype, 0.05)
    for _, grads in found:
        for name, p in towers.named_parameters():
            assert_close(grads[name].double(), p.grad, rtol=rtol, atol=rtol * p.grad.abs().max().item())


def one_needs(rank, needing):
    """The gradient of this process's images, if it needs one; backward is called in all."""
    image, text = (t[rank * EACH : (rank + 1) * EACH] for t in batch(2, torch.float64))
    image.requires_grad_(rank in needing)
    loss = sigtorch.siglip_loss(image, text, 2.0, -1.0, group=dist.group.WORLD)
    if not loss.requires_grad:
        return None
    loss.backward()
    return image.grad, "called"


def test_one_needs_a_gradient_and_all_call_backward():
    image, text = batch(2, torch.float64)
    image.requires_grad_()
    (oracle(image, text, 2.0, -1.0) * 2).backward()
    (none, _), (grad, _) = group_of(one_needs, 2, needing=(1,))
    assert none is None
    assert_close(grad, image.grad[EACH:])
    assert group_of(one_needs, 2, needing=()) == [None, None]


def features(processes, dtype):
    return [F.normalize(t.double(), dim=-1).to(dtype) for t in batch(processes, dtype)]


def of_features(rank, dtype):
    """The gradients of this process's features."""
    mine = slice(rank * EACH, (rank + 1) * EACH)
    inputs = [t[mine].requires_grad_() for t in features(dist.get_world_size(), dtype)]
    loss = sigtorch.siglip_loss(*inputs, 6.0, -3.0, group=dist.group.WORLD)
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_are_rounded_once(dtype):
    """Not once a block: to half a unit of the last place."""
    found = group_of(of_features, 3, dtype=dtype)
    whole = [t.double().requires_grad_() for t in features(3, dtype)]
    expected = torch.autograd.grad(oracle(*whole, 6.0, -3.0) * 3, whole)  # which DDP divides again
    for mine, theirs in zip(map(torch.cat, zip(*found)), expected):
        assert_rounded_once(mine, theirs, atol=1e-6)


def counted(rank, grad):
    """Counts matrix products."""
    count = [0]
    for name in ("product", "add_product"):
        original = getattr(products, name)
        setattr(
            products, name, lambda *args, original=original: (count.__setitem__(0, count[0] + 1), original(*args))[1]
        )
    image, text = (t[rank * EACH : (rank + 1) * EACH].requires_grad_(grad) for t in batch(3, torch.float64))
    sigtorch.siglip_loss(image, text, 2.0, -1.0, group=dist.group.WORLD)
    return count[0]


def test_products():
    assert group_of(counted, 3, grad=False) == [3] * 3
    assert group_of(counted, 3, grad=True) == [9] * 3


def ordered(rank):
    """Returns the steps of a process, in order."""
    done = []
    for module, name in ((ring, "_exchange"), (ring, "_wait"), (products.Sums, "add")):
        original = getattr(module, name)
        setattr(module, name, lambda *args, name=name, original=original: (done.append(name), original(*args))[1])
    image, text = (t[rank * EACH : (rank + 1) * EACH].requires_grad_() for t in batch(3, torch.float64))
    sigtorch.siglip_loss(image, text, 2.0, group=dist.group.WORLD)
    return done


def test_transfers_are_under_way_while_a_block_computes():
    assert group_of(ordered, 3) == [["_exchange", "add", "_wait"] * 3 + ["_exchange", "_wait"]] * 3


def some_record(rank):
    """The first process evaluates while the others train: their texts' gradients need its images all the same."""
    image, text = (t[rank * EACH : (rank + 1) * EACH].requires_grad_() for t in batch(2, torch.float64))
    with torch.set_grad_enabled(rank > 0):
        loss = sigtorch.siglip_loss(image, text, 2.0, -1.0, group=dist.group.WORLD)
    return loss.detach()


def test_who_records_does_not_decide_who_answers():
    losses = group_of(some_record, 2)
    assert_close(sum(losses) / 2, oracle(*batch(2, torch.float64), 2.0, -1.0))


def sub_groups(rank):
    """Two groups of two, at once."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    image, text = (t[rank * EACH : (rank + 1) * EACH] for t in batch(4, torch.float64))
    others = groups[1 - rank // 2]
    with pytest.raises(TypeError, match="that this process is in"):
        sigtorch.siglip_loss(image, text, 2.0, group=others)
    return sigtorch.siglip_loss(image, text, 2.0, -1.0, group=groups[rank // 2])


def test_groups_of_some():
    losses = group_of(sub_groups, 4)
    image, text = batch(4, torch.float64)
    for half, pair in enumerate((losses[:2], losses[2:])):
        mine = slice(half * 2 * EACH, (half + 1) * 2 * EACH)
        assert_close(sum(pair) / 2, oracle(image[mine], text[mine], 2.0, -1.0))


# Refused.


def uneven(rank, others):
    """Returns the answer to each of these batches of the second process."""
    said = []
    for image, text, dtype in others:
        if rank == 0:
            image, text, dtype = (5, 3), (5, 3), torch.float32
        try:
            sigtorch.siglip_loss(torch.ones(image, dtype=dtype), torch.ones(text), 1.0, group=dist.group.WORLD)
        except ValueError as error:
            said.append(str(error))
    return said


def test_uneven_batches_are_refused_by_every_process():
    others = {
        "(4, 3) torch.float32": ((4, 3), (4, 3), torch.float32),
        "(5, 2) torch.float32": ((5, 2), (5, 2), torch.float32),
        "(0, 3) torch.float32": ((0, 3), (0, 3), torch.float32),
        "(5, 3) torch.float64": ((5, 3), (5, 3), torch.float64),
        "(5, 3) with (4, 3) torch.float32": ((5, 3), (4, 3), torch.float32),
        "(5, 3) with (3,) torch.float32": ((5, 3), (3,), torch.float32),
        "() with (1, 5, 3) torch.float32": ((), (1, 5, 3), torch.float32),
    }
    said = group_of(uneven, 2, others=[*others.values()])
    expected = "siglip_loss(): every process of a group must give features of one shape and dtype, got"
    assert said[0] == said[1] == [f"{expected} (5, 3) torch.float32, {other}" for other in others]


def mixed(rank):
    image, text = (t[rank * EACH : (rank + 1) * EACH] for t in batch(2, torch.float32))
    return sigtorch.siglip_loss(image, text.double(), 2.0, -1.0, group=dist.group.WORLD)


def test_dtypes_may_be_mixed_where_all_mix_them():
    losses = group_of(mixed, 2)
    assert_close(sum(losses) / 2, oracle(*[t.double() for t in batch(2, torch.float32)], 2.0, -1.0))


def weighted(rank, weights=(1, 2)):
    image, text = (t[rank * EACH : (rank + 1) * EACH].requires_grad_() for t in batch(2, torch.float64))
    loss = sigtorch.siglip_loss(image, text, 2.0, group=dist.group.WORLD)
    (loss * weights[rank]).backward()
    return image.grad


def test_unequal_gradients_are_refused_by_every_process():
    said = group_of(weighted, 2)
    assert (
        said
        == ["ValueError: siglip_loss(): backward must get the same gradient in every process of a group, got 1, 2"] * 2
    )


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_are_the_same(weight):
    """All gradients are infinite or NaN, so that a loss scaler skips the step."""
    for grad in group_of(weighted, 2, weights=(weight, weight)):
        assert not grad.isfinite().any()


def copied(rank):
    module = sigtorch.nn.SigLIPLoss(chunk_size=2, group=dist.group.WORLD)
    module.train(False)
    for given in (module, sigtorch.nn.SigLIPLoss(chunk_size=2).train(False)):
        other = copy.deepcopy(torch.nn.Sequential(given))[0]
        assert other is not given
        assert (other.group is given.group, other.chunk_size, other.training) == (True, 2, False)
    return "copied"


def test_a_copy_of_the_module_shares_its_group():
    """A moving average of a model deep-copies its modules."""
    assert group_of(copied, 1) == ["copied"]


def no_plain_tensor(rank):
    with sigtorch.use_backend("aten"):
        sigtorch.siglip_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, group=dist.group.WORLD)


def test_a_formula_knows_no_group():
    (said,) = group_of(no_plain_tensor, 1)
    assert said.startswith("RuntimeError: siglip_loss(): group= takes plain tensors")


def dies(rank, when):
    """The last process dies before it has sent anything, or in its second block."""
    if rank == 2 and when == "before":
        os._exit(1)
    if rank == 2:
        add, blocks = products.Sums.add, []

        def dying(*args):
            blocks.append(1)
            if len(blocks) == 2:
                os._exit(1)
            return add(*args)

        products.Sums.add = dying
    started = time.monotonic()
    image, text = (t[rank * EACH : (rank + 1) * EACH].requires_grad_() for t in batch(3, torch.float64))
    try:
        for _ in range(3):  # a neighbour may have all it needs for the first
            sigtorch.siglip_loss(image, text, 2.0, group=dist.group.WORLD)
    except RuntimeError:
        return time.monotonic() - started
    return None


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_process_that_dies_fails_the_others(when):
    *others, dead = group_of(dies, 3, timeout=10, when=when)
    assert dead is None
    assert all(seconds is not None and seconds < 15 for seconds in others), others


def dtensor(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    image, text = batch(2, torch.float64)
    expected = oracle(image.requires_grad_(), text, 2.0, -1.0)
    (grad,) = torch.autograd.grad(expected, image)
    for place in (Shard(0), Shard(1), Replicate()):
        a, b = (distribute_tensor(t.detach(), mesh, [place]).requires_grad_() for t in (image, text))
        loss = sigtorch.siglip_loss(a, b, 2.0, -1.0)
        assert_close(loss.full_tensor(), expected)
        loss.backward()
        assert_close(a.grad.full_tensor(), grad)
    targets = torch.arange(60).view(10, 6) % 4 == 0
    weight = torch.randn(6, D, dtype=torch.float64)
    weight, hits = (distribute_tensor(t, mesh, [Replicate()]) for t in (weight, targets))
    x = distribute_tensor(image.detach(), mesh, [Shard(0)])
    loss = sigtorch.linear_binary_cross_entropy(x, weight, hits).full_tensor()
    assert_close(loss, F.binary_cross_entropy_with_logits(image @ weight.full_tensor().T, targets.double()))
    sparse = targets.double().to_sparse_csr()
    pair = (sparse.crow_indices(), sparse.col_indices())
    for given in (targets, sparse, pair, tuple(distribute_tensor(t, mesh, [Replicate()]) for t in pair)):
        with pytest.raises(TypeError, match="a DTensor goes with DTensors alone, target too, as a bool matrix, got in"):
            sigtorch.linear_binary_cross_entropy(x, weight, given)
    with pytest.raises(TypeError, match="got input DTensor, linear_weight DTensor, pos_weight Tensor, target DTensor"):
        sigtorch.linear_binary_cross_entropy(x, weight, hits, pos_weight=torch.ones(6))
    with pytest.raises(
        TypeError, match="DTensors alone, got image_features DTensor, text_features Tensor, logit_scale"
    ):
        sigtorch.siglip_loss(x, image, torch.ones(1))
    return "same"


@pytest.mark.skipif(TORCH == (2, 8), reason="its DTensor has no rule for softplus")
def test_dtensors_take_the_formula():
    assert group_of(dtensor, 2) == ["same"] * 2
