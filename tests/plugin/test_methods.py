"""A rewritten method keeps all but its products: signature, source, traceback, decorators, class."""

import copy
import functools
import inspect
import traceback

import pytest
import torch
from support.patching import MLP, agree, forward_as, run, scaled, the_other_way_round
from torch import nn
from torch.nn.utils import parametrize

import sigtorch


class Base(nn.Module):
    def forward(self, x):
        return x + 1


FACTOR = 3


def made_in(scope):
    class Odd(Base):
        """Has a method with all kinds of parameters, names and nested functions."""

        __hidden = 2

        def forward(self, x, /, y=FACTOR + 1, *args, z: int = 5, **kwargs) -> torch.Tensor:
            """Has a docstring."""
            x = super().forward(x) * torch.sigmoid(x) * y * z

            def within(t):
                return t * torch.sigmoid(t)

            self.names = (within.__qualname__, (lambda: 0).__qualname__, within.__code__.co_name)
            x = x + within(x)
            return x * self.__hidden * FACTOR * scope * __class__.__hidden

        forward.note = "kept"

    return Odd


def test_a_method_keeps_its_attributes():
    cls, x = made_in(11), torch.linspace(-2, 2, 5)
    model = cls()
    expected = [model(x), model(x, 2, 3, z=4, more=5)]
    names, model.names = model.names, None
    sigtorch.patch(model)
    torch.testing.assert_close([model(x), model(x, 2, 3, z=4, more=5)], expected, rtol=0, atol=0)
    assert model.names == names
    ours = type(model).forward
    assert ours is not cls.forward
    assert inspect.signature(ours) == inspect.signature(cls.forward)
    for name in ("__doc__", "__name__", "__qualname__", "__module__", "__annotations__", "__globals__", "note"):
        assert getattr(ours, name) == getattr(cls.forward, name)
    assert inspect.getsource(ours) == inspect.getsource(cls.forward)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
        model()


def test_a_traceback_shows_the_line_it_was_written_in():
    model = forward_as(scaled)
    sigtorch.patch(model)
    with pytest.raises(RuntimeError) as error:
        model(torch.ones(5))
    frames = [f for f in traceback.extract_tb(error.tb) if f.name == "scaled"]
    assert [(f.lineno, f.line) for f in frames] == [
        (scaled.__code__.co_firstlineno + 1, "return self.w2(self.act(self.w1(x)) * self.w3(x)) * 2")
    ]


def keeping_count(function):
    @functools.wraps(function)
    def counted(self, *args, **kwargs):
        self.count = getattr(self, "count", 0) + 1
        return function(self, *args, **kwargs)

    return counted


def hiding(function):
    held = [function]

    @functools.wraps(function)
    def hidden(self, *args):
        return held[0](self, *args)

    return hidden


def test_decorators(calls):
    model = forward_as(keeping_count(keeping_count(scaled)))
    before = run(model)
    sigtorch.patch(model)
    agree(before, run(model))
    assert model.count == 4
    assert calls == ["swiglu"]
    patch = sigtorch.patch(forward_as(hiding(scaled)))
    assert patch.left[""].endswith(": a decorator hides the method")
    assert not patch.swapped


def test_defaults_that_are_tensors(calls):
    def forward(self, x, by=torch.ones(6)):  # noqa: B008
        return self.w2(torch.sigmoid(self.w1(x)) * self.w3(x)) * by

    first = forward_as(forward)
    second = type(first)()
    sigtorch.patch(first)
    forward.__defaults__ = (torch.full((6,), 2.0),)
    before = run(second)
    sigtorch.patch(second)
    agree(before, run(second))
    assert calls == ["sigmoid_gate"]
    assert type(second) is not type(first)


def test_a_source_that_differs_from_the_code_is_left(calls):
    """After an edit of the file or the function, the code that runs is not replaced by the source that is read."""
    edited = copy.copy(scaled)
    edited = type(scaled)(scaled.__code__.replace(co_consts=(None, 3)), scaled.__globals__, "scaled")
    model = forward_as(edited)
    before = run(model)
    patch = sigtorch.patch(model)
    assert patch.left[""].endswith(": its source differs from the code that runs")
    agree(before, run(model), exactly=True)
    made = {}
    exec("def forward(self, x):\n    return self.w2(self.act(self.w1(x)) * self.w3(x))", made)
    assert not sigtorch.patch(forward_as(made["forward"])).swapped


def test_a_class_whose_method_was_replaced(calls):
    """Libraries and notebooks replace methods: the present one is rewritten."""
    cls, x = type("Own", (MLP,), {"forward": scaled}), torch.randn(4, 6)
    sigtorch.patch(cls()).undo()
    cls.forward = the_other_way_round
    model = cls()
    expected = model(x)
    assert f":{the_other_way_round.__code__.co_firstlineno + 1}" in sigtorch.patch(model).swapped[""]
    torch.testing.assert_close(model(x), expected)
    assert calls == ["swiglu"]


# fmt: off
class Itself(nn.Module):
    """Names its own class, and has lines that are not indented."""

    factor = 2

    def forward(self, x):
        note = """
text there
"""
        x = super(Itself, self).extra_repr() + note and x  # noqa: UP008
# a comment there
        return torch.sigmoid(x) * x * Itself.factor
# fmt: on


def test_a_class_by_its_name_and_text_that_is_not_indented(calls):
    model, x = Itself(), torch.randn(4, 6)
    expected = model(x)
    patch = sigtorch.patch(model)
    line = Itself.forward.__code__.co_firstlineno + 6
    assert patch.swapped == {"": f"sigtorch.sigmoid_gate at test_methods.py:{line}, fuses if shapes allow"}
    assert not patch.left
    torch.testing.assert_close(model(x), expected)
    assert calls == ["sigmoid_gate"]


def with_an_empty_cell():
    def forward(self, x):
        if self.training:
            return torch.sigmoid(x) * x
        return later(x)

    return forward_as(forward)
    later = torch.tanh


class Strange:
    """Cannot be hashed or compared."""

    def __hash__(self):
        raise ValueError

    def __eq__(self, other):
        return torch.zeros(2) == 0

    def __call__(self, a, b):
        return a + b


STRANGE = Strange()


def calls_strangers(self, x):
    return STRANGE(x, x) + self.stranger(x, x) + torch.sigmoid(x) * x


def test_unusual_values_that_a_method_names(calls):
    strange, x = forward_as(calls_strangers), torch.randn(4, 6)
    strange.stranger = STRANGE
    for model in (strange, with_an_empty_cell()):
        expected = model(x)
        assert sigtorch.patch(model).swapped
        torch.testing.assert_close(model(x), expected)
    assert calls == ["sigmoid_gate"] * 2


def test_classes_made_at_run_time(calls):
    """Such a class is named as one of torch: its base is a user's."""
    model = MLP()
    model.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(model, "scale", nn.Identity())
    assert type(model).__name__ == "ParametrizedMLP"
    before = run(model)
    with sigtorch.patch(model) as patch:
        assert list(patch.swapped) == [""]
        agree(before, run(model))
    assert calls == ["swiglu"]
    assert type(model).__name__ == "ParametrizedMLP"
    sigmoid = nn.Sigmoid()
    sigmoid.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(sigmoid, "scale", nn.Identity())
    assert list(sigtorch.patch(sigmoid).swapped) == [""]
