"""Modules that cannot be inspected or swapped: each gets a row, and the rest of the model is patched."""

import pytest
import torch
from support.patching import MLP
from torch import nn

import sigtorch
import sigtorch.plugin.patch


class Sealed(nn.Sigmoid):
    """Refuses to have its ``__class__`` set."""

    def __setattr__(self, name, value):
        if name == "__class__":
            raise AttributeError("sealed")
        super().__setattr__(name, value)


class Fixed(nn.Sigmoid):
    """Has a ``__class__`` of its own."""

    __class__ = property(lambda self: Fixed)


class Homeless(MLP):
    __module__ = None


class Unasked(dict):
    """Raises an error when it is asked for what it holds."""

    def values(self):
        raise RuntimeError("not now")


def test_an_odd_module_is_a_row(calls):
    """The other modules are patched."""
    model, x = nn.Sequential(nn.Sigmoid(), Sealed(), Fixed(), Homeless()), torch.randn(4, 6)
    expected = model(x)
    before = [type(m) for m in model]
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == ["0", "1", "3"]
    assert patch.left["2"].startswith("its class cannot be changed: AttributeError: ")
    torch.testing.assert_close(model(x), expected)
    assert calls == ["sigmoid", "sigmoid", "swiglu"]
    patch.undo()
    assert [type(m) for m in model] == before
    odd = nn.Sequential(nn.Sigmoid(), MLP())
    odd[1].held = Unasked()
    patch = sigtorch.patch(odd)
    assert list(patch.swapped) == ["0"]
    assert patch.left == {"1": "it cannot be inspected: RuntimeError: not now"}


def test_an_error_patches_nothing(monkeypatch):
    """An error that is not one module's undoes the whole patch."""
    model = nn.Sequential(nn.Sigmoid(), nn.GLU())
    real = sigtorch.plugin.patch._set_class
    monkeypatch.setattr("sigtorch.plugin.patch._set_class", lambda m, cls: 1 / 0 if type(m) is nn.GLU else real(m, cls))
    with pytest.raises(ZeroDivisionError):
        sigtorch.patch(model)
    assert [type(m) for m in model] == [nn.Sigmoid, nn.GLU]


def test_undo_of_a_module_that_refuses_it(monkeypatch):
    model = nn.Sequential(Sealed(), MLP())
    patch = sigtorch.patch(model)
    real = sigtorch.plugin.patch._set_class
    with monkeypatch.context() as patching:
        patching.setattr("sigtorch.plugin.patch._set_class", lambda m, cls: 1 / 0 if cls is Sealed else real(m, cls))
        with pytest.raises(RuntimeError, match=r"'0'$") as raised:
            patch.undo()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert type(model[1]) is MLP
    patch.undo()
    assert type(model[0]) is Sealed


class OfInstances:
    """A descriptor that refuses a class."""

    def __get__(self, instance, owner):
        if instance is None:
            raise RuntimeError("read from the class")
        return torch.sigmoid


class Odd:
    act = OfInstances()

    def __call__(self, x):
        return self.act(x) if x.dim() else torch.sigmoid(x)


class HoldsOdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.odd = [Odd()]

    def forward(self, x):
        act = self.odd[0] if self.training else torch.sigmoid
        return act(x) * x


def test_descriptors_do_not_run_while_a_function_is_read(calls):
    model, x = HoldsOdd(), torch.randn(4)
    expected = model(x)
    with sigtorch.patch(model) as patch:
        assert patch.swapped
        torch.testing.assert_close(model(x), expected)
