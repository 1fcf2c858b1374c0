"""A linear layer's loss whose labels are shared among processes: loss and gradients are those of one with all labels."""

import copy
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.chunked_cases import csr, indices
from support.device import DEVICE
from support.grouping import group_of
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import sigtorch
from sigtorch import linear_binary_cross_entropy
from sigtorch.ops.chunked_losses import linear, ring

interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="these processes have their tensors on the CPU")
SAMPLES, D, LABELS = 6, 4, 13
SIZES = {1: (13,), 2: (9, 4), 4: (5, 0, 7, 1)}  # labels of each process
KINDS = {"matrix": lambda hits: hits, "csr": csr, "indices": indices}


def layer(dtype=torch.float64):
    """Inputs, weight, bias, weights of the positives, and the positives of all labels."""
    torch.manual_seed(5)
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((SAMPLES, D), (LABELS, D), (LABELS,))]
    return *[t.to(dtype) for t in tensors], torch.rand(LABELS) + 0.5, torch.rand(SAMPLES, LABELS) < 0.3


def part(rank, tensors):
    sizes = SIZES[dist.get_world_size()]
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x, weight, bias, weights, hits = tensors
    return x, weight[mine], bias[mine], weights[mine], hits[:, mine]


def trained(rank, kind, reduction="mean", dtype=torch.float64, frozen=(), backend="auto", chunk_size=2, again=False):
    """The loss and the gradients of this process."""
    x, weight, bias, weights, hits = part(rank, layer(dtype))
    leaves = [t.requires_grad_(n not in frozen) for n, t in {"x": x, "weight": weight, "bias": bias}.items()]
    given = {"linear_bias": bias, "pos_weight": weights, "reduction": reduction, "chunk_size": chunk_size}
    with sigtorch.use_backend(backend):
        loss = linear_binary_cross_entropy(x, weight, KINDS[kind](hits), group=dist.group.WORLD, **given)
        (loss * 1.5).backward(retain_graph=again)
    grads = [t.grad for t in leaves]
    if again:
        for t in leaves:
            t.grad = None
        (loss * 1.5).backward()
        assert_close([t.grad for t in leaves], grads)
    return loss.detach(), grads


def oracle(reduction="mean"):
    x, weight, bias, weights, hits = layer()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    loss = F.binary_cross_entropy_with_logits(
        F.linear(*leaves), hits.double(), pos_weight=weights.double(), reduction=reduction
    )
    return loss.detach(), torch.autograd.grad(loss * 1.5, leaves)


@pytest.mark.parametrize(
    ("processes", "kind", "options"),
    [
        *((n, kind, {"again": True}) for n in SIZES for kind in KINDS),
        (2, "indices", {"reduction": "sum", "chunk_size": None}),
        (4, "matrix", {"reduction": "sum", "frozen": ("weight",)}),
        (2, "matrix", {"frozen": ("x", "bias")}),
        pytest.param(2, "indices", {"backend": "triton"}, marks=interpreted),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_all_labels(processes, kind, options):
    found = group_of(trained, processes, interpret="backend" in options, kind=kind, **options)
    assert not any(isinstance(answer, str) for answer in found), found
    value, (grad_x, *of_labels) = oracle(options.get("reduction", "mean"))
    for loss, grads in found:
        assert_close(loss, value)
        assert torch.equal(loss, found[0][0])
        assert grads[0] is None or (torch.equal(grads[0], found[0][1][0]) and grads[0].shape == grad_x.shape)
        if "x" not in options.get("frozen", ()):
            assert_close(grads[0], grad_x)
    for place, (name, whole) in enumerate(zip(("weight", "bias"), of_labels), 1):
        parts = [grads[place] for _, grads in found]
        if name in options.get("frozen", ()):
            assert parts == [None] * processes
        else:
            assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    value, expected = oracle()
    rtol = {torch.float32: 1e-5}.get(dtype, 0.05)
    for loss, grads in group_of(trained, 2, kind="indices", dtype=dtype):
        assert_close(loss.double(), value, rtol=rtol, atol=0)
        assert grads[0].dtype == dtype
        assert_close(grads[0].double(), expected[0], rtol=rtol, atol=rtol * expected[0].abs().max().item())


def some_record(rank):
    """The first process evaluates while the others train."""
    x, weight, *_, hits = part(rank, layer())
    x.requires_grad_()
    with torch.set_grad_enabled(rank > 0):
        loss = linear_binary_cross_entropy(x, weight, hits, group=dist.group.WORLD)
    return loss.detach()


def test_who_records_does_not_decide_who_answers():
    x, weight, *_, hits = layer()
    for loss in group_of(some_record, 2):
        assert_close(loss, F.binary_cross_entropy_with_logits(x @ weight.T, hits.double()))


def one_needs(rank, needing):
    """Loss and gradients where only some processes need any; backward is called in all."""
    x, weight, bias, _, hits = part(rank, layer())
    weight.requires_grad_(rank in needing)
    loss = linear_binary_cross_entropy(x, weight, hits, linear_bias=bias, group=dist.group.WORLD)
    if not loss.requires_grad:
        return None
    loss.backward(retain_graph=True)
    (again,) = torch.autograd.grad(loss, weight, create_graph=True) if rank in needing else (None,)
    if rank not in needing:
        loss.backward()
    return weight.grad, None if again is None else again.detach()


def test_one_needs_a_gradient_and_all_call_backward():
    x, weight, bias, _, hits = layer()
    weight.requires_grad_()
    F.binary_cross_entropy_with_logits(F.linear(x, weight, bias), hits.double()).backward()
    frozen, (grad, again) = group_of(one_needs, 2, needing=(1,))
    assert frozen == (None, None)
    assert_close(grad, weight.grad[SIZES[2][0] :])
    assert_close(again, grad)
    assert group_of(one_needs, 2, needing=()) == [None, None]


def of_module(rank):
    """A module, and a copy of it that shares its group."""
    x, weight, bias, weights, hits = part(rank, layer())
    module = sigtorch.nn.LinearBCE(
        D, len(weight), dtype=torch.float64, pos_weight=weights, reduction="sum", group=dist.group.WORLD
    )
    assert "group=" in repr(module)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    other = copy.deepcopy(torch.nn.Sequential(module))[0]
    assert other.group is module.group
    assert other.weight is not module.weight
    assert module(x).shape == (SAMPLES, len(weight))
    assert_close(other(x, hits), module(x, hits))
    return module(x, hits).detach()


def test_module():
    for loss in group_of(of_module, 2):
        assert_close(loss * 1.5, oracle("sum")[0] * 1.5)


# Refused.


def answers(rank, own):
    """Returns what each of the wrong calls of the last process says, in this one."""
    said = []
    for mistake in (OWN if own else ALL).values():
        x, weight, *_, hits = part(rank, layer(torch.float32))
        given = {"input": x, "linear_weight": weight, "target": hits, "group": dist.group.WORLD}
        if rank == dist.get_world_size() - 1:
            given |= mistake(**given)
        try:
            linear_binary_cross_entropy(**given)
        except (TypeError, ValueError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    x, weight, *_, hits = part(rank, layer())
    linear_binary_cross_entropy(x, weight, hits, group=dist.group.WORLD)  # all are in step
    return said


def malformed(target, **_):
    return {"target": (torch.arange(SAMPLES + 1), torch.full((SAMPLES,), 99))}


OWN = {  # what the process says that makes the mistake
    "unknown reduction='none'": lambda **_: {"reduction": "none"},
    "input must be a Tensor, got float": lambda **_: {"input": 1.0},
    "tensors on several devices": lambda input, **_: {"input": input.to("meta")},
    "target must have shape (6, 4), got (6, 3)": lambda target, **_: {"target": target[:, 1:]},
    "target names label 99, expected 0 to 3": malformed,
    "pos_weight gets no gradient in a group": lambda **_: {"pos_weight": torch.ones(4, requires_grad=True)},
    "there are no samples or no labels": lambda input, target, **_: {"input": input[:0], "target": target[:0]},
}
ALL = {  # what every process says
    "one shape, one dtype and one reduction, got (6, 4) torch.float32 for a mean of torch.float32, "
    "(5, 4) torch.float32": lambda input, target, **_: {"input": input[1:], "target": target[1:]},
    "(6, 4) torch.float32 for a sum of torch.float32": lambda **_: {"reduction": "sum"},
    "(6, 4) torch.float64 for a mean of torch.float64": lambda linear_weight, **_: {
        "linear_weight": linear_weight.double()
    },
    "(6, 3) torch.float32": lambda input, linear_weight, **_: {
        "input": input[:, 1:],
        "linear_weight": linear_weight[:, 1:],
    },
    "must give the same inputs, process 1 has others than 0": lambda input, **_: {"input": input.flip(0)},
    "the same inputs, process 1 has others": lambda input, **_: {"input": F.layer_norm(input, (D,))},
}


def test_a_mistake_in_one_process_is_an_error_in_all():
    first, last = group_of(answers, 2, own=True)
    assert all(expected in said for expected, said in zip(OWN, last, strict=True)), last
    assert all("process 1 of the group refused the arguments, and says why" in said for said in first), first
    assert len(first) == len(OWN)
    said = group_of(answers, 2, own=False)
    assert said[0] == said[1]
    assert all(expected in line for expected, line in zip(ALL, said[0], strict=True)), said[0]
    assert all("\n" not in line for line in (*first, *last, *said[0]))


def without_labels(rank):
    linear_binary_cross_entropy(
        torch.ones(2, 3), torch.ones(0, 3), torch.ones(2, 0, dtype=torch.bool), group=dist.group.WORLD
    )


def test_somebody_has_labels():
    said = ["ValueError: linear_binary_cross_entropy(): there are no labels in any process of the group"] * 2
    assert group_of(without_labels, 2) == said


def almost_the_same(rank, dtype):
    """Replicas that differ in last bits, and others that are no numbers."""
    x, weight, *_, hits = part(rank, layer(dtype))
    noise = 1 + torch.finfo(dtype).eps * torch.randint(-1, 2, x.shape, generator=torch.manual_seed(rank))
    linear_binary_cross_entropy((x * noise).to(dtype), weight, hits, group=dist.group.WORLD)
    return linear_binary_cross_entropy(x * torch.nan, weight, hits, group=dist.group.WORLD).isnan().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_last_bits_may_differ(dtype):
    assert group_of(almost_the_same, 2, dtype=dtype) == [True] * 2


def weighted(rank):
    x, weight, *_, hits = part(rank, layer())
    loss = linear_binary_cross_entropy(x.requires_grad_(), weight, hits, group=dist.group.WORLD)
    (loss * (1 + rank)).backward()


def test_unequal_gradients_are_refused_by_every_process():
    said = "backward must get the same gradient in every process of a group, got 1, 2"
    assert group_of(weighted, 2) == [f"ValueError: linear_binary_cross_entropy(): {said}"] * 2


def watched(rank):
    x, weight, *_, hits = part(rank, layer())
    for context in (sigtorch.use_backend("aten"), FlopCounterMode(display=False)):
        with pytest.raises(RuntimeError, match="group= takes plain tensors"), context:
            linear_binary_cross_entropy(x, weight, hits, group=dist.group.WORLD)
    with pytest.raises(TypeError, match="group must be a ProcessGroup that this process is in, got 3"):
        linear_binary_cross_entropy(x, weight, hits, group=3)
    with pytest.raises(TypeError, match=r"LinearBCE\(\): group must be a ProcessGroup"):
        sigtorch.nn.LinearBCE(3, 4, group="world")
    compiled = torch.compile(
        lambda x: linear_binary_cross_entropy(x * 2, weight, hits, group=dist.group.WORLD), backend="eager"
    )
    assert_close(compiled(x / 2), linear_binary_cross_entropy(x, weight, hits, group=dist.group.WORLD))
    return "refused"


def test_a_group_takes_plain_tensors_and_breaks_the_graph():
    assert group_of(watched, 1) == ["refused"]


def on_devices(rank):
    """Which device the processes speak from does not follow from what one of them was given."""
    group, (x, weight, *_, hits) = dist.group.WORLD, part(rank, layer())
    for config, expected in {"cpu:gloo,meta:x": "cpu", "meta:x,cpu:gloo": "cpu", "meta:x": "meta"}.items():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(dist, "get_backend_config", lambda group, config=config: config)
            assert ring.on_device_of(group, x).device.type == expected
            kept = torch.ones(2, device=expected)
            assert ring.on_device_of(group, kept) is kept
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(linear, "device_types", lambda group: ["cuda"])
        with pytest.raises(ValueError, match="the group sends from cuda, got tensors on cpu"):
            linear_binary_cross_entropy(x, weight, hits, group=group)
    return "chosen"


def test_the_group_chooses_the_device():
    assert group_of(on_devices, 1) == ["chosen"]


def outside(rank):
    groups = [dist.new_group([0]), dist.new_group([1])]
    x, weight, *_, hits = part(rank, layer())
    with pytest.raises(TypeError, match="that this process is in"):
        linear_binary_cross_entropy(x, weight, hits, group=groups[1 - rank])
    return linear_binary_cross_entropy(x, weight, hits, group=groups[rank])


def test_groups_of_some():
    x, weight, *_, hits = layer()
    first, second = group_of(outside, 2)
    size = SIZES[2][0]
    assert_close(first, F.binary_cross_entropy_with_logits(x @ weight[:size].T, hits[:, :size].double()))
    assert_close(second, F.binary_cross_entropy_with_logits(x @ weight[size:].T, hits[:, size:].double()))


def dies(rank):
    started = time.monotonic()
    x, weight, *_, hits = part(rank, layer())
    if rank == 1:
        return None
    try:
        linear_binary_cross_entropy(x, weight, hits, group=dist.group.WORLD)
    except RuntimeError:
        return f"{time.monotonic() - started:.0f}"


def test_a_process_that_does_not_call_fails_the_others():
    seconds = group_of(dies, 2, timeout=5)[0]
    assert float(seconds) < 15
