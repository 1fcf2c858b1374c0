"""Products that seem to suit a kernel but must run in PyTorch, and nested blocks of patched functions."""

import pytest
import torch
import torch.fx.experimental.proxy_tensor
import torch.nn.functional as F
from support.patching import Backwards, Switched, View, spy
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import sigtorch


class Expanded(nn.Module):
    """Computes a product of a shape that neither factor had before."""

    def forward(self, x, g, like):
        return x * torch.sigmoid(g).expand_as(like)


class Global(nn.Module):
    def forward(self, x, g):
        global kept
        kept = torch.sigmoid(g)
        return x * kept


class Ordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = Backwards(nn.Sigmoid(), nn.Linear(6, 6))

    def forward(self, x):
        return x * self.fc(x)


GUARDED = {
    "a gate expanded to another shape": (Expanded, lambda: (*torch.randn(2, 4, 1), torch.randn(4, 5))),
    "a view of a gate that is not contiguous": (View, lambda: (torch.randn(6), torch.randn(3, 4)[:, :2])),
    "a gate without a graph": (Switched, lambda: (torch.randn(6), torch.randn(6, requires_grad=True))),
    "a gate with a global name": (Global, lambda: (torch.randn(6), torch.randn(6))),
    "a sequence in another order": (Ordered, lambda: (torch.randn(4, 6),)),
}


@pytest.mark.parametrize(("model", "inputs"), GUARDED.values(), ids=GUARDED)
def test_patched_model_agrees_with_unpatched(model, inputs, monkeypatch):
    model, inputs, calls = model(), inputs(), spy(monkeypatch)
    expected = model(*inputs)
    with sigtorch.patch(model):
        found = model(*inputs)
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == expected.requires_grad
    assert "sigmoid_gate" not in calls


class Product(nn.Module):
    def forward(self, x, g):
        return x * torch.sigmoid(g)


ODD = {
    "integers": lambda: (torch.randn(6), torch.arange(6)),
    "bools": lambda: (torch.randn(6), torch.ones(6, dtype=torch.bool)),
    "complex numbers": lambda: (torch.randn(6), torch.randn(6, dtype=torch.complex64)),
    "integers by complex numbers": lambda: (torch.randn(6, dtype=torch.complex64), torch.arange(6)),
    "a negative view": lambda: (torch.randn(6), torch.randn(6, dtype=torch.complex64).conj().imag),
    "tensors without values": lambda: torch.randn(2, 6, device="meta").unbind(),
    "doubles by floats": lambda: (torch.randn(6, dtype=torch.float64), torch.randn(6)),
}


@pytest.mark.kernels
@pytest.mark.parametrize("inputs", ODD.values(), ids=ODD)
def test_what_no_kernel_takes_is_pytorchs(inputs):
    """Also where kernels are forced, which refuse such tensors: a product asks first."""
    model, given = Product(), inputs()
    expected = model(*given)
    with sigtorch.patch(model), sigtorch.use_backend("triton"):
        torch.testing.assert_close(model(*given), expected, rtol=0, atol=0)


class Viewed(nn.Module):
    def forward(self, x, g):
        return x * torch.sigmoid(g).unsqueeze(0)


class Operators(TorchDispatchMode):
    """Keeps the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.kernels
@pytest.mark.parametrize("model", [Product, Viewed])
def test_a_mode_sees_what_was_written(model):
    """Operators and their order are those of the plain model: no kernel runs under a mode that watches."""
    model, (x, g) = model(), torch.randn(2, 6)
    with Operators() as plain:
        model(x, g)
    with sigtorch.patch(model), sigtorch.use_backend("triton"), Operators() as patched:
        model(x, g)
    assert patched.names == plain.names


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors():
    x, g = (torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]) for _ in range(2))
    gated = type("Gated", (nn.Module,), {"forward": by_silu})()
    expected = gated(x, g)
    with sigtorch.patch(gated), sigtorch.use_backend("triton"):
        torch.testing.assert_close(gated(x, g).unbind(), expected.unbind(), rtol=0, atol=0)


def by_silu(self, x, g):
    return x * F.silu(g)


class Blend(nn.Module):
    """Has a method named as a tensor's, whose product is its own."""

    def forward(self, x, g):
        return self.lerp(x, torch.sigmoid(g))

    def lerp(self, x, s):
        return x * s * torch.sigmoid(x)


def test_a_lerp_of_something_else():
    model, (x, g) = Blend(), torch.randn(2, 6)
    expected = model(x, g)
    with sigtorch.patch(model) as patch, sigtorch.use_backend("triton"):
        torch.testing.assert_close(model(x, g), expected)
        assert "sigmoid_lerp" not in str(patch)


TRANSFORMS = {
    "vmap": lambda f, x, g: torch.vmap(f)(x, g),
    "jvp": lambda f, x, g: torch.func.jvp(f, (x, g), (g, x)),
    "a Hessian": lambda f, x, g: torch.func.hessian(lambda x, g: f(x, g).sum(), argnums=1)(x, g),
    "a batch of gradients": lambda f, x, g: torch.vmap(torch.func.grad(lambda x, g: f(x, g).sum()))(x, g),
    "make_fx": lambda f, x, g: torch.fx.experimental.proxy_tensor.make_fx(f)(x, g)(x, g),
    "a FLOP counter": lambda f, x, g: counted(f, x, g),
}


def counted(f, x, g):
    with FlopCounterMode(display=False):
        return f(x, g)


@pytest.mark.kernels
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_what_a_transform_gives_is_pytorchs(transform):
    model, (x, g) = Product(), torch.randn(2, 3, 4)
    expected = transform(model, x, g)
    with sigtorch.patch(model), sigtorch.use_backend("triton"):
        torch.testing.assert_close(transform(model, x, g), expected, rtol=0, atol=0)


def test_a_global_gate_is_a_tensor(monkeypatch):
    """Other code that reads the global name gets a tensor."""
    spy(monkeypatch)
    model, (x, g) = Global(), torch.randn(2, 6)
    with sigtorch.patch(model):
        model(x, g)
    assert type(kept) is torch.Tensor
    torch.testing.assert_close(kept, torch.sigmoid(g))


def test_leaving_an_inner_block_keeps_the_outer_one(monkeypatch):
    focal_loss = pytest.importorskip("torchvision.ops.focal_loss")
    from sigtorch.plugin import functions

    ours, calls = functions.losses.sigmoid_focal_loss, []
    monkeypatch.setattr(functions.losses, "sigmoid_focal_loss", lambda *a: calls.append(a) or ours(*a))
    x = torch.randn(4)
    with sigtorch.patched_functions():
        with sigtorch.patched_functions():
            pass
        focal_loss.sigmoid_focal_loss(x, torch.ones(4))
    assert len(calls) == 1
    focal_loss.sigmoid_focal_loss(x, torch.ones(4))
    assert len(calls) == 1
