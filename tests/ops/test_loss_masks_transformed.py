"""Losses with ignored targets, differentiated again, transformed, compiled, checkpointed and sharded."""

import functools
import itertools

import pytest
import torch
import torch.distributed as dist
from support.device import TORCH
from support.loss_cases import (
    IGNORED,
    ORACLES,
    WITH_OPTIONS,
    every_backend,
    every_kind,
    every_loss_with_options,
    every_path,
    images,
    masked,
    running,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.checkpoint import checkpoint

import sigtorch
from sigtorch import sigmoid_focal_loss


@every_backend
@every_loss_with_options
@every_kind
def test_backward_again_and_differentiably(loss, kind, backend, device):
    x, target = masked((4, 6), torch.float64, kind, device)
    exact, given = x.detach().clone().requires_grad_(), {"reduction": "mean", "ignore_index": IGNORED[kind]}
    with sigtorch.use_backend(backend):
        value = loss(x, target, **given)
        first = torch.autograd.grad(value, x, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(value, x, retain_graph=True)[0], first)
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        grad.square().sum().backward()
    (expected,) = torch.autograd.grad(ORACLES[loss](exact, target, **given), exact, create_graph=True)
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, exact.grad)


@every_backend
def test_weights_and_numbers_have_gradients(backend, device):
    """None from what is ignored, whatever is there."""
    for kind in ("soft", "index"):
        x, target = masked((4, 3), torch.float64, kind, device)
        x, number = x.detach(), IGNORED[kind]
        out = target == number if kind == "soft" else (target == number).unsqueeze(-1)
        x = x.masked_fill(out, torch.inf)
        given = [torch.rand(3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)]
        given += [torch.tensor(v, dtype=torch.float64, device=device, requires_grad=True) for v in (0.3, 1.5)]

        def focal(loss, weight, pos_weight, alpha, gamma, x=x, target=target, number=number):
            weights = {"weight": weight, "pos_weight": pos_weight, "ignore_index": number}
            return loss(x, target, alpha, gamma, "mean", **weights)

        with sigtorch.use_backend(backend):
            ours = torch.autograd.grad(focal(sigmoid_focal_loss, *given), given)
            assert torch.autograd.gradcheck(functools.partial(focal, sigmoid_focal_loss), given)
        torch.testing.assert_close(ours, torch.autograd.grad(focal(ORACLES[sigmoid_focal_loss], *given), given))


@every_loss_with_options
def test_weights_learn_beside_a_mask_that_is_not_looked_at(loss):
    """Inside a transform an ignored 255 is not refused, but it is no share either."""
    x, target = masked((4, 6), torch.float64, "uint8")
    x, weight = x.detach(), torch.rand(6, dtype=torch.float64, requires_grad=True)

    def total(weight, x, target, f=loss):
        return f(x, target, weight=weight, reduction="sum", ignore_index=255)

    found = torch.func.vmap(torch.func.grad(total), (None, 0, 0))(weight.detach(), x, target)
    (expected,) = torch.autograd.grad(total(weight, x, target, ORACLES[loss]), weight)
    torch.testing.assert_close(found.sum(0), expected)


OPTIONS = [
    pytest.param(WITH_OPTIONS[0], {"label_smoothing": 0.1}, id="bce"),
    pytest.param(WITH_OPTIONS[1], {"pos_weight": torch.linspace(0.5, 3, 6, dtype=torch.float64)}, id="focal"),
]


every_option = pytest.mark.parametrize(("loss", "options"), OPTIONS)


@every_backend
@every_option
@pytest.mark.parametrize("kind", ["soft", "bool", "index"])
def test_transforms(loss, options, kind, backend, device):
    x, target = masked((4, 6), torch.float64, kind, device)
    target[3] = IGNORED[kind]  # a sample of which nothing is left
    x, tangent = x.detach(), torch.randn(4, 6, dtype=torch.float64, device=device)
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    given = {"reduction": "mean", "ignore_index": IGNORED[kind]} | options
    oracle = functools.partial(ORACLES[loss], **given)
    with sigtorch.use_backend(backend):
        batched = torch.vmap(lambda x, t: loss(x, t, **given))(x, target)
        per_sample = torch.vmap(torch.func.grad(lambda x, t: loss(x, t, **given)))(x, target)
        hessian = torch.func.hessian(lambda x: loss(x, target[:2], **given))(x[:2])
        with dual_level():
            jvp = unpack_dual(loss(make_dual(x, tangent), target, **given)).tangent
    torch.testing.assert_close(batched, torch.stack([oracle(a, b) for a, b in zip(x, target, strict=True)]))
    grads = [torch.func.grad(lambda a, b=b: oracle(a, b))(a) for a, b in zip(x, target, strict=True)]
    torch.testing.assert_close(per_sample, torch.stack(grads))
    torch.testing.assert_close(jvp, torch.func.jvp(lambda x: oracle(x, target), (x,), (tangent,))[1])
    torch.testing.assert_close(hessian, torch.func.hessian(lambda x: oracle(x, target[:2]))(x[:2]))


def of_images(loss, x, target, **given):
    return loss(x, target, reduction="mean", dim=1, ignore_index=255, pos_weight=x.new_full((5, 1, 1), 2), **given)


@every_loss_with_options
def test_classes_of_images_transform(loss):
    x, target = images(torch.float64, "contiguous")
    x = x.detach()
    call, oracle = (functools.partial(of_images, f) for f in (loss, ORACLES[loss]))
    alone = torch.vmap(lambda x, t: loss(x, t, reduction="mean", dim=0, ignore_index=255))(x, target)
    each = [ORACLES[loss](a, b, reduction="mean", dim=0, ignore_index=255) for a, b in zip(x, target)]
    torch.testing.assert_close(alone, torch.stack(each))
    torch.testing.assert_close(torch.func.grad(call)(x, target), torch.func.grad(oracle)(x, target))


@every_loss_with_options
@pytest.mark.parametrize("kind", ["soft", "uint8", "index", "image"])
def test_compiles_and_traces(loss, kind):
    if kind == "image":
        x, target = images(torch.float32, "contiguous")
        call = functools.partial(of_images, loss)
    else:
        x, target = masked((4, 6), torch.float32, kind)
        call = functools.partial(loss, reduction="mean", ignore_index=IGNORED[kind])
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(x, target), call(x, target)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (actual, expected)))
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        assert call(mode.from_tensor(x), mode.from_tensor(target)).dtype == x.dtype
    assert call(x.to("meta"), target.to("meta")).shape == ()


@every_path
@every_loss_with_options
@every_kind
def test_checkpointing(loss, kind, backend, device):
    if backend == "formula" and device == "cuda" and TORCH < (2, 14):
        pytest.skip("it recomputes in a thread that knows of no choice")
    x, target = masked((4, 6), torch.float32, kind, device)
    call = functools.partial(loss, reduction="mean", ignore_index=IGNORED[kind])
    grads = []
    with running(backend):
        for run in (call, functools.partial(checkpoint, call, use_reentrant=False)):
            grads.append(torch.autograd.grad(run(x, target), x)[0])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.skipif(TORCH == (2, 8), reason="its DTensor has no rule for softplus")
@every_loss_with_options
def test_dtensor(loss, tmp_path):
    """The formula takes sharded and replicated logits."""
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for kind, placement in itertools.product(("soft", "uint8"), (Shard(0), Replicate())):
            x, target = masked((4, 6), torch.float32, kind)
            given = {"reduction": "mean", "ignore_index": IGNORED[kind]}
            d = distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
            value = loss(d, distribute_tensor(target, mesh, [placement]), **given)
            value.backward()
            expected = ORACLES[loss](x, target, **given)
            torch.testing.assert_close(value.full_tensor().double(), expected)
            torch.testing.assert_close(d.grad.full_tensor(), torch.autograd.grad(expected, x)[0])
    finally:
        dist.destroy_process_group()
