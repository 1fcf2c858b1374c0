"""A method, and code that holds a module, sees no trace of a patch, neither while it lasts nor after."""

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from support.patching import MLP, agree, forward_as, run
from torch import nn
from torch.nn.utils import parametrize

import sigtorch


class Options(nn.Module):
    """Builds keyword arguments from its local variables."""

    def forward(self, x, g):
        options = dict(locals())
        return self.gated(**{name: value for name, value in options.items() if name != "self"})

    def gated(self, x, g):
        names = sorted(locals())
        return x * torch.sigmoid(g), names


def test_a_methods_variables(calls):
    model, x = Options(), torch.randn(3)
    expected, names = model(x, x)
    patch = sigtorch.patch(model)
    out, seen = model(x, x)
    torch.testing.assert_close(out, expected)
    assert seen == names == ["g", "self", "x"]
    assert patch.left[""].endswith(": it looks at its own variables")


class Counting(nn.Module):
    """Keeps shared values on its class."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        self.__class__.last = x
        return x * torch.sigmoid(x)

    @classmethod
    def again(cls):
        return cls()


def test_attributes_set_on_a_class(calls):
    model, other, x = Counting(), Counting(), torch.ones(2)
    patch = sigtorch.patch(model)
    model(x)
    other(x)
    assert (Counting.calls, type(model).calls) == (2, 2)
    assert Counting.last is x
    type(model).calls = 7
    assert Counting.calls == other.calls == 7
    del type(model).last
    assert not hasattr(Counting, "last")
    patch.undo()
    assert model.calls == 7
    assert calls == ["sigmoid_gate"]
    Counting.calls = 0


def test_a_class_makes_models_that_are_not_patched():
    model = Counting()
    sigtorch.patch(model)
    for made in (type(model)(), model.again(), model.__class__.again()):
        assert type(made) is Counting
    swapped = nn.Sigmoid()
    sigtorch.patch(swapped)
    assert type(type(swapped)()) is nn.Sigmoid


def test_its_only_base_is_the_original_class():
    for model in (MLP(), nn.Sigmoid(), Counting()):
        cls = type(model)
        sigtorch.patch(model)
        assert type(model) is not cls
        assert type(model).__bases__ == (cls,)
        assert type(model).__mro__[1:] == cls.__mro__
        assert (type(model).__name__, type(model).__qualname__, type(model).__module__) == (
            cls.__name__, cls.__qualname__, cls.__module__
        )  # fmt: skip


def parametrized():
    model = MLP()
    model.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(model, "scale", nn.Identity())
    return model


@pytest.mark.parametrize("first", ["patch", "parametrize"])
def test_parametrizations_are_removed(first, calls):
    model = MLP()
    model.scale = nn.Parameter(torch.ones(1))
    before = run(model)
    patch = sigtorch.patch(model) if first == "patch" else None
    parametrize.register_parametrization(model, "scale", nn.Identity())
    patch = patch or sigtorch.patch(model)
    parametrize.remove_parametrizations(model, "scale")
    agree(before, run(model))
    assert "scale" in dict(model.named_parameters())
    patch.undo()
    assert not hasattr(type(model), "_sigtorch_original")
    agree(before, run(model), exactly=True)


class Made(nn.Module):
    """Is made with keyword arguments alone."""

    def __new__(cls, *, size):
        made = super().__new__(cls)
        made.__dict__["size"] = size
        return made

    def __init__(self, *, size):
        super().__init__()

    def __getnewargs_ex__(self):
        return (), {"size": self.size}

    def forward(self, x):
        return x * torch.sigmoid(x)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_with_keyword_arguments(protocol, calls):
    model, x = Made(size=3), torch.randn(4)
    sigtorch.patch(model)
    expected = model(x)
    for again in (pickle.loads(pickle.dumps(model, protocol)), copy.deepcopy(model), copy.copy(model)):
        assert again.size == 3
        assert type(again) is type(model)
        torch.testing.assert_close(again(x), expected)
    assert calls == ["sigmoid_gate"] * 4


def test_a_shallow_copy_runs_on_what_it_holds(calls):
    model = MLP()
    sigtorch.patch(model)
    again = copy.copy(model)
    again._modules = {**model._modules, "w2": nn.Identity()}
    assert again(torch.randn(4, 6)).shape == (4, 10)


def test_signature_and_variables_are_the_methods(calls):
    model = MLP()
    plain = MLP.forward
    sigtorch.patch(model)
    ours = type(model).forward
    assert ours is not plain
    assert ours.__code__.co_varnames == plain.__code__.co_varnames
    assert ours.__code__.co_cellvars == plain.__code__.co_cellvars
    assert inspect.signature(ours) == inspect.signature(plain)


def local_class():
    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = Own()

        def gate(self, x):
            return self.act(x)

        def forward(self, x):
            return self.gate(x) * x + unused(x)

    class Own(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x)

    unused = lambda x: 0  # noqa: E731
    return Local


def test_nothing_is_kept(calls):
    """After undo, nothing keeps a class, a function or a closure alive."""
    cls = local_class()
    model = cls()
    patch = sigtorch.patch(model)
    model(torch.ones(2))
    assert calls
    patch.undo()
    seen = [weakref.ref(o) for o in (cls, cls.forward, cls.gate, type(model.act), type(model.act).forward)]
    del cls, model, patch
    gc.collect()
    assert [r() for r in seen] == [None] * len(seen)


def local_model():
    """A model whose functions and methods hold themselves, or their class, as variables."""

    def again(x, n):
        return again(x, n - 1) if n else x * torch.sigmoid(x)

    class Base(nn.Module):
        def gated(self, x):
            return x * torch.sigmoid(x)

    class Processor:
        def __call__(self, x):
            super().__init__()
            return torch.sigmoid(x * 2) * x

    class Local(Base):
        def __init__(self):
            super().__init__()
            self.again, self.processor = again, Processor()

        def gated(self, x):
            return super().gated(x)

        def forward(self, x):
            return self.gated(self.again(self.processor(x), 0))

    return Local()


def test_functions_that_a_model_calls_are_not_kept(calls):
    model = local_model()
    patch = sigtorch.patch(model)
    model(torch.ones(2))
    assert calls == ["sigmoid_gate"] * 3
    patch.undo()
    seen = [weakref.ref(o) for o in (*type(model).__mro__[:2], model.again, type(model.processor))]
    del model, patch
    gc.collect()
    assert [r() for r in seen] == [None] * len(seen)


def test_a_bound_method_outlives_a_patch(calls):
    model, x = MLP(), torch.randn(4, 6)
    patch = sigtorch.patch(model)
    bound = model.forward
    patch.undo()
    torch.testing.assert_close(bound(x), model(x))


def test_one_class_for_models_that_are_alike():
    first, second = MLP(), MLP()
    sigtorch.patch(first)
    sigtorch.patch(second)
    assert type(first) is type(second)
    other = forward_as(MLP.forward)
    sigtorch.patch(other)
    assert type(other) is not type(first)
