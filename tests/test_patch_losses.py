"""The losses plugged in: PyTorch's module and function, and torchvision's function, of which a stand-in is here."""

import functools
import pickle
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from patching import agree, spy
from torch import nn

import sigtorch
from sigtorch import losses

BCE = "binary_cross_entropy_with_logits"
W = torch.linspace(0.5, 2, 6)
FUNCTIONS = {
    "function": lambda x: F.binary_cross_entropy_with_logits(x, x.detach().abs()),
    "by position": lambda x: F.binary_cross_entropy_with_logits(x, x.detach(), W, None, None, "sum", W),
    "by keyword": lambda x: F.binary_cross_entropy_with_logits(x, target=x.detach(), reduction="none"),
    "module": lambda x: nn.BCEWithLogitsLoss(pos_weight=W)(x, x.detach()),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@pytest.fixture
def calls(monkeypatch):
    return spy(monkeypatch, losses, BCE, "sigmoid_focal_loss")


@every_function
def test_the_function_goes_to_sigtorch(function, calls):
    x = torch.randn(4, 6, requires_grad=True)
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with sigtorch.patched_functions():
        out = function(x)
        agree([expected, gradient], [out, *torch.autograd.grad(out.sum(), x)])
    assert calls == [BCE]
    function(x)
    assert calls == [BCE]


@every_function
def test_the_function_compiles(function):
    torch._dynamo.reset()
    x = torch.randn(4, 6)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(x):
        return function(x)

    with sigtorch.patched_functions():
        torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_swaps_the_loss(reduction, calls):
    loss = nn.BCEWithLogitsLoss(torch.rand(6), reduction=reduction, pos_weight=torch.rand(6))
    held, state = dict(vars(loss)), loss.state_dict()
    x, t = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6)
    expected = loss(x, t)
    with sigtorch.patch(loss) as patch:
        assert patch.swapped == {"": "sigtorch.nn.BCEWithLogitsLoss"}
        torch.testing.assert_close(loss(x, t), expected)
        torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(x, t), expected)
        assert loss.state_dict().keys() == state.keys()
    assert calls == [BCE, BCE]
    assert type(loss) is nn.BCEWithLogitsLoss
    assert dict(vars(loss)) == held


def test_legacy_reductions_stay_pytorchs(calls):
    x = torch.randn(4)
    with pytest.warns(UserWarning, match="size_average and reduce"), sigtorch.patched_functions():
        out = F.binary_cross_entropy_with_logits(x, x, size_average=False)
    torch.testing.assert_close(out, F.binary_cross_entropy_with_logits(x, x, reduction="sum"))
    assert not calls


@pytest.fixture
def torchvision(monkeypatch):
    """The modules that hold its focal loss, a detector that imported it by name among them, and that loss."""

    def focal(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
        """What torchvision's does."""
        p = torch.sigmoid(inputs)
        loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
        loss = loss * (1 - p * targets - (1 - p) * (1 - targets)) ** gamma
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss if alpha >= 0 else loss
        return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]

    names = ("torchvision", "torchvision.ops", "torchvision.ops.focal_loss", "torchvision.models.detection.fcos")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name in names[1:]:
        sys.modules[name].sigmoid_focal_loss = focal
    return [sys.modules[name] for name in names[1:]], focal


def test_torchvisions_focal_loss(torchvision, calls):
    modules, focal = torchvision
    x, t = torch.randn(4, 6), torch.rand(4, 6).round()
    with sigtorch.patched_functions():
        for i, module in enumerate(modules, 1):
            out = module.sigmoid_focal_loss(x, t, alpha=0.3, gamma=1.5, reduction="sum")
            torch.testing.assert_close(out, focal(x, t, 0.3, 1.5, "sum"))
            assert calls.count("sigmoid_focal_loss") == i
        with sigtorch.patched_functions():
            modules[1].sigmoid_focal_loss(x, t)
        inside = modules[1].sigmoid_focal_loss
        assert inside is not focal
        calls.clear()
        other = threading.Thread(target=inside, args=(x, t))
        other.start()
        other.join()
        sys.modules["torchvision"].imported_inside = inside
    assert not calls
    assert all(module.sigmoid_focal_loss is focal for module in modules)
    assert sys.modules["torchvision"].imported_inside is focal
    torch.testing.assert_close(inside(x, t), focal(x, t))
    assert not calls


def test_torchvisions_focal_loss_after_an_exception(torchvision):
    modules, focal = torchvision

    @sigtorch.patched_functions()
    def fails():
        assert modules[2].sigmoid_focal_loss is not focal
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fails()
    assert all(module.sigmoid_focal_loss is focal for module in modules)


def test_torchvisions_focal_loss_compiles(torchvision, monkeypatch):
    modules, focal = torchvision
    monkeypatch.setattr(losses, "sigmoid_focal_loss", lambda inputs, targets: inputs + targets + 7)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(x, t):
        return modules[2].sigmoid_focal_loss(x, t)

    x, t = torch.randn(4, 6), torch.rand(4, 6).round()
    for _ in range(2):
        torch.testing.assert_close(compiled(x, t), focal(x, t))
        with sigtorch.patched_functions():
            torch.testing.assert_close(compiled(x, t), x + t + 7)
