"""Products that are not rewritten: each has a row, unless it is not of two tensors."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from support.patching import Silu, agree, forward_as, run
from torch import nn

import sigtorch
from sigtorch.plugin.elsewhere import FUNCTION_REASON, OBJECT_REASON
from sigtorch.plugin.overlooked import FORM_REASON, GLU_REASON, IN_PLACE_REASON

ACTIVATIONS = {"silu": nn.SiLU(), "relu": nn.ReLU()}


def cast(self, x):
    return self.w2(self.w3(x) * torch.sigmoid(self.w1(x)).to(x.dtype))


def item(self, x):
    return self.w2(self.w3(x) * torch.sigmoid(self.w1(x).mean(-1))[:, None])


def negated(self, x):
    return self.w2(-torch.sigmoid(self.w1(x)) * self.w3(x))


def reshaped(self, x):
    return self.w2(F.silu(self.w1(x)).reshape(4, 10).mul(self.w3(x)))


def option(self, x):
    return self.w2(F.silu(self.w1(x), inplace=False) * self.w3(x))


def method_in_place(self, x):
    return self.w2(self.w1(x).sigmoid_() * self.w3(x))


def by_its_name_in_a_table(self, x):
    return self.w2(ACTIVATIONS["silu"](self.w1(x)) * self.w3(x))


def made_at_each_call(self, x):
    return self.w2(nn.Sigmoid()(self.w1(x)) * self.w3(x))


def by_another_name(self, x):
    act = torch.sigmoid
    return self.w2(act(self.w1(x)) * self.w3(x))


def within_a_statement(self, x):
    if self.training:
        gate = torch.sigmoid(self.w1(x))
    return self.w2(gate * self.w3(x))


def walrus(self, x):
    return self.w2((gate := torch.sigmoid(self.w1(x))) * self.w3(x)) + 0 * gate.sum()


def times_a_number(self, x):
    return self.w2(2 * torch.sigmoid(self.w1(x)) * self.w3(x))


# The line of each one's product, counted from that of its name.
FORMS = {
    cast: 1, item: 1, negated: 1, reshaped: 1, option: 1, method_in_place: 1, by_its_name_in_a_table: 1, made_at_each_call: 1,
    by_another_name: 2, within_a_statement: 3, walrus: 1, times_a_number: 1,
}  # fmt: skip


@pytest.mark.parametrize("body", FORMS, ids=lambda body: body.__name__)
def test_a_form_that_is_not_rewritten_has_a_row(body, monkeypatch):
    model = forward_as(body)
    before = run(model)
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert patch.left == {"": f"test_overlooked.py:{body.__code__.co_firstlineno + FORMS[body]}: {FORM_REASON}"}
    monkeypatch.setattr("sigtorch.plugin.products.runs_kernel", lambda *tensors: True)
    agree(before, run(model), exactly=True)


def named_in_place(self, x):
    h, gate = self.w3(x), torch.sigmoid(self.w1(x))
    gate = torch.sigmoid(self.w1(x))
    h.mul_(gate)
    h *= gate
    return self.w2(h)


def test_in_place_by_a_name():
    first = named_in_place.__code__.co_firstlineno
    left = sigtorch.patch(forward_as(named_in_place)).left[""]
    assert left.splitlines() == [f"test_overlooked.py:{first + n}: {IN_PLACE_REASON}" for n in (3, 4)]


class Numbers(nn.Module):
    """Multiplies sigmoids by numbers."""

    def __init__(self):
        super().__init__()
        self.alpha = 0.2
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, alpha=None):
        if alpha is not None:
            return torch.sigmoid(x) * alpha
        y = self.alpha * torch.sigmoid(x) + torch.sigmoid(x) * self.scale
        return (
            y + torch.sigmoid(x) * x.shape[-1] ** -0.5 + F.silu(x).mul(math.sqrt(2) / x.size(0)) + len(x) * x.sigmoid()
        )


def test_numbers_are_no_operands():
    patch = sigtorch.patch(Numbers())
    line = Numbers.forward.__code__.co_firstlineno + 2
    # The product with an argument, which may be a tensor.
    assert patch.swapped == {"": f"sigtorch.sigmoid_gate at test_overlooked.py:{line}, fuses if shapes allow"}
    assert not patch.left


class Chained(nn.Module):
    """Has two products that begin at the same place, one within the other."""

    def forward(self, x, g):
        return torch.sigmoid(g) * x * torch.sigmoid(g.clone()).clone()


def test_a_product_of_a_product():
    patch = sigtorch.patch(Chained())
    assert list(patch.swapped) == [""]
    assert patch.left[""].endswith(FORM_REASON)


class Parent(nn.Module):
    def forward(self, x):
        return torch.sigmoid(x) * x


class Child(Parent):
    def forward(self, x):
        return super().forward(x) + 1


class Named(Parent):
    def forward(self, x):
        return Parent.forward(self, x) + 1


@pytest.mark.parametrize("cls", [Child, Named])
def test_a_method_that_a_subclass_calls(cls):
    line = Parent.forward.__code__.co_firstlineno + 1
    assert sigtorch.patch(cls()).left == {"": f"test_overlooked.py:{line}: a method of a subclass calls it"}


def test_no_source():
    made = {"torch": torch}
    exec("def forward(self, x): return torch.sigmoid(x) * x\ndef summed(self, x): return torch.sigmoid(x) + x", made)
    assert sigtorch.patch(forward_as(made["forward"])).left == {"": "<string>:1: its source cannot be read"}
    assert not sigtorch.patch(forward_as(made["summed"])).left


def scanned(x, gate):
    return x * torch.sigmoid(gate)


def scanning(x, gate):
    return scanned(x, gate)


class Scan(nn.Module):
    def forward(self, x):
        return scanning(x, x)


class Processor:
    def __call__(self, x):
        return F.silu(x) * x


class Processed(nn.Module):
    def __init__(self):
        super().__init__()
        self.processor = Processor()

    def forward(self, x):
        return self.processor(x)


def sigmoid(x, inplace=False):
    return x.sigmoid_() if inplace else x.sigmoid()


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = functools.partial(sigmoid, inplace=False)

    def forward(self, x):
        return x * self.gate(x)


class Halves(nn.Module):
    def forward(self, x):
        return F.glu(x)


# The function with the product, the line in it, and the reason why it is left.
ELSEWHERE = {
    Scan: (scanned, 1, FUNCTION_REASON),
    Processed: (Processor.__call__, 1, OBJECT_REASON),
    Wrapping: (Wrapping.forward, 1, FORM_REASON),
    Halves: (Halves.forward, 1, GLU_REASON),
}


@pytest.mark.parametrize("cls", ELSEWHERE, ids=lambda cls: cls.__name__)
def test_a_product_outside_of_methods_has_a_row(cls):
    function, line, why = ELSEWHERE[cls]
    model = nn.Sequential(cls(), cls())
    patch = sigtorch.patch(model)
    row = f"test_overlooked.py:{function.__code__.co_firstlineno + line}: {why}"
    assert patch.left == {"0": row, "1": row}
    assert not patch.swapped


class TwoOnALine(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Silu(), Silu()

    def forward(self, x):
        return self.a(x) * x + self.b(x) * x


def test_a_second_product_on_the_same_line():
    model = TwoOnALine()
    model.b.register_forward_hook(lambda *_: None)
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == [""]
    assert "b cannot be fused, it has hooks" in patch.left[""]


class Bound(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = self.inner

    def inner(self, x):
        return torch.sigmoid(x) * x

    def forward(self, x):
        return self.kept(x)


def test_a_method_that_was_bound_before():
    assert sigtorch.patch(Bound()).left[""].endswith(": the attribute kept holds the original inner")
