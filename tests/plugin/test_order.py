"""A rewritten method evaluates everything in the order in which it was written."""

import pytest
import torch
from support.patching import agree, forward_as, run, spy
from torch import nn

import sigtorch


def tripled(self, x):
    g = self.w1(x)
    return self.w2(self.w3(x) * torch.sigmoid(g).view(g.mul_(3).shape))


def tripled_by_a_method(self, x):
    g = self.w1(x)
    return self.w2(self.w3(x) * torch.sigmoid(g).view(self.triple(g).shape))


def tripled_by_a_property(self, x):
    self.g = self.w1(x)
    return self.w2(torch.sigmoid(self.g) * self.tripled)


def between_two(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g)
    up = self.tripling(g)
    return self.w2(s * up)


def for_a_method(self, x):
    return self.w2(self.w3(x).mul(torch.sigmoid(self.w1(x))))


def index_changes(self, x):
    index = torch.arange(4)
    part = torch.sigmoid(self.w1(x).detach())[index]
    index.zero_()
    return self.w2(part * self.w3(x)[:, :1].detach())


def shape_changes(self, x):
    shape = [4, 10]
    part = torch.sigmoid(self.w1(x).reshape(2, 20)).view(shape)
    shape.reverse()
    return self.w2(part * self.w3(x)[:, :1])


def shape_to_expand_to_changes(self, x):
    shape = [4, 10]
    part = torch.sigmoid(self.w1(x)[:, :1].contiguous()).expand(shape)
    shape.reverse()
    return self.w2(part * self.w3(x)[:1])


def complement_of_what_is_kept(self, x):
    keep, up = self.keep if x.dim() == 2 else self.act, self.w3(x)
    z = keep(self.w1(x))
    return self.w2((1 - z) * self.triple(self.kept) + z * up)


def zero_dimensional(self, x):
    try:
        a, b = torch.sigmoid(self.w1(x).sum())
        return a * x + b * x
    except TypeError:
        return self.w2(self.w3(x))


def keep(self, x):
    self.kept = x.cos().detach()
    return self.kept


def model_of(body):
    model = forward_as(body)
    cls = type(model)
    cls.keep = keep
    cls.triple = lambda self, g: g.mul_(3)
    cls.tripled = property(lambda self: self.g.mul_(3))
    cls.tripling = property(lambda self: self.triple)
    return model


BODIES = [
    tripled, tripled_by_a_method, tripled_by_a_property, between_two, index_changes, shape_changes,
    shape_to_expand_to_changes, zero_dimensional, complement_of_what_is_kept,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_effects_of_arguments_and_attributes(body, monkeypatch):
    model = model_of(body)
    before = run(model)
    with sigtorch.patch(model):
        agree(before, run(model), exactly=True)
        spy(monkeypatch)
        agree(before, run(model))


class Noting:
    """An operand that records the operations on it."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def __getattr__(self, name):
        self.notes.append(f"{self.name}.{name}")
        return lambda *args: torch.ones(2)

    def __mul__(self, other):
        self.notes.append(f"{self.name} *")
        return torch.ones(2)


class Noted(nn.Module):
    def __init__(self):
        super().__init__()
        self.notes = []

    def __getattr__(self, name):
        if name.startswith("note_"):
            self.notes.append(name)
            return Noting(name, self.notes)
        return super().__getattr__(name)

    def call(self, name):
        self.notes.append(name)
        return torch.ones(2)

    def forward(self, x):
        y = self.note_a.mul(torch.sigmoid(self.call("gate")))
        z = self.note_b * self.note_c.sigmoid()
        gate = torch.sigmoid(self.call("named"))
        shape = self.call("shape").shape
        return x * gate.view(shape) * torch.mul(y, self.note_d.sigmoid().view(shape)) * z


def test_everything_happens_where_it_was_written(monkeypatch):
    model, x = Noted(), torch.ones(2)
    spy(monkeypatch)
    expected, notes = model(x), model.notes[:]
    model.notes.clear()
    with sigtorch.patch(model) as patch:
        assert patch.swapped
        torch.testing.assert_close(model(x), expected)
    assert model.notes == notes
