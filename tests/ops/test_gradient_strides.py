"""A gradient lies in memory as its input does."""

import pytest
import torch
from cases import CASES
from loss_cases import IMAGES, LOSSES, running

import sigtorch

ORDERS = {
    "contiguous": lambda t: t.contiguous(),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "first axis last": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
}
every_backend = pytest.mark.parametrize("backend", ["auto", "aten", pytest.param("triton", marks=pytest.mark.kernels)])


def of_several(t):
    """The strides that matter, of axes with more than one element."""
    return [by for by, n in zip(t.stride(), t.shape) if n > 1]


def dense(t):
    return torch.ops.aten.is_non_overlapping_and_dense(t)


@every_backend
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_of_an_operation(case, order, backend, device):
    """As its input's; where PyTorch's operators run, as these leave it."""
    leaves = [
        (ORDERS[order](t.detach()) if t.dim() == 4 else t.detach()).requires_grad_()
        for t in case.inputs((2, 6, 4, 8), torch.float32, device)
    ]
    incoming = torch.randn_like(case.oracle(*leaves))
    with sigtorch.use_backend(backend):
        grads = torch.autograd.grad(case.ours(*leaves), leaves, incoming)
    pytorchs = torch.autograd.grad(case.oracle(*leaves), leaves, incoming)
    fused = backend == "triton" and case.fused
    for grad, leaf, theirs in zip(grads, leaves, pytorchs, strict=True):
        assert of_several(grad) in ([of_several(leaf)] if fused else [of_several(leaf), of_several(theirs)])


@pytest.mark.parametrize("backend", ["auto", "formula", pytest.param("triton", marks=pytest.mark.kernels)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 3}], ids=["", "ignoring"])
@pytest.mark.parametrize("kind", ["classes", "classes last", "mask", "soft"])
@pytest.mark.parametrize("layout", IMAGES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_of_a_loss(loss, layout, kind, options, reduction, backend, device):
    x = IMAGES[layout](torch.randn(3, 5, 4, 6, device=device)).detach().requires_grad_()
    target = torch.rand(x.shape, device=device)
    if kind == "mask":
        target = target.round().byte()
    if kind in ("classes", "classes last"):
        class_dim = 1 if kind == "classes" else -1
        target = torch.randint(0, 5, x.select(class_dim, 0).shape, device=device).clamp(max=x.shape[class_dim])
        options = {**options, "class_dim": class_dim}
        if x.shape[class_dim] < 2:
            pytest.skip("class indices need two classes")
    with running(backend):
        (grad,) = torch.autograd.grad(loss(x, target, reduction=reduction, **options).sum(), x)
    # In the formula, which compilers and transforms get, a gradient of other logits lies as PyTorch's operators leave it.
    if dense(x) and (backend != "formula" or x.is_contiguous()):
        assert of_several(grad) == of_several(x)
