"""A gradient has the strides of its input."""

import pytest
import torch
from support.cases import CASES
from support.loss_cases import IMAGES, LOSSES, WITH_OPTIONS, running

import sigtorch

ORDERS = {
    "contiguous": lambda t: t.contiguous(),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "first axis last": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
}
every_backend = pytest.mark.parametrize("backend", ["auto", "aten", "triton"])


def of_several(t):
    """The strides that matter, of axes with more than one element."""
    return [by for by, n in zip(t.stride(), t.shape) if n > 1]


def dense(t):
    return torch.ops.aten.is_non_overlapping_and_dense(t)


@every_backend
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_of_an_operation(case, order, backend, device):
    """A gradient has its input's strides, or those that PyTorch's operators leave."""
    leaves = [
        (ORDERS[order](t.detach()) if t.dim() == 4 else t.detach()).requires_grad_()
        for t in case.inputs((2, 6, 4, 8), torch.float32, device)
    ]
    incoming = torch.randn_like(case.oracle(*leaves))
    with sigtorch.use_backend(backend):
        grads = torch.autograd.grad(case.ours(*leaves), leaves, incoming)
    pytorchs = torch.autograd.grad(case.oracle(*leaves), leaves, incoming)
    for grad, leaf, theirs in zip(grads, leaves, pytorchs, strict=True):
        assert of_several(grad) in (
            [of_several(leaf)] if backend == "triton" else [of_several(leaf), of_several(theirs)]
        )


def losses():
    """Each with a kind of target and options that it takes."""
    for loss in LOSSES:
        for kind in ("classes", "classes last", "mask", "soft") if loss in WITH_OPTIONS else ("soft",):
            for options in ({}, {"ignore_index": 3}) if loss in WITH_OPTIONS else ({},):
                yield pytest.param(loss, kind, options, id="-".join([loss.__name__, kind, *options]))


@pytest.mark.parametrize("backend", ["auto", "formula", "triton"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "classes first", "transposed"])
@pytest.mark.parametrize(("loss", "kind", "options"), [*losses()])
def test_of_a_loss(loss, layout, kind, options, reduction, backend, device):
    x = IMAGES[layout](torch.randn(3, 5, 4, 6, device=device)).detach().requires_grad_()
    target = torch.rand(x.shape, device=device)
    if kind == "mask":
        target = target.round().byte()
    if kind in ("classes", "classes last"):
        dim = 1 if kind == "classes" else -1
        target = torch.randint(0, 5, x.select(dim, 0).shape, device=device).clamp(max=x.shape[dim])
        options = {**options, "dim": dim}
    with running(backend):
        (grad,) = torch.autograd.grad(loss(x, target, reduction=reduction, **options).sum(), x)
    if dense(x):
        assert of_several(grad) == of_several(x)


def columns_first(rows, cols):
    return torch.randn(cols, rows).t().requires_grad_()


def test_of_losses_over_a_product():
    image, text = columns_first(6, 4), columns_first(6, 4)
    weight, target = columns_first(8, 4), torch.rand(6, 8) > 0.5
    for loss, inputs in (
        (sigtorch.siglip_loss(image, text, 2.0), [image, text]),
        (sigtorch.linear_binary_cross_entropy(image, weight, target), [image, weight]),
    ):
        for grad, leaf in zip(torch.autograd.grad(loss, inputs), inputs):
            assert grad.stride() == leaf.stride()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_where_no_operator_of_pytorchs_serves(reduction):
    x = torch.randn(3, 5, 4, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    target = torch.rand(3, 5, 4, 6)
    loss = sigtorch.sigmoid_focal_loss(x, target, gamma=0.5, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    assert grad.stride() == x.stride()
    torch.autograd.grad(grad.sum(), x)
