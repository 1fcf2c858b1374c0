"""Products in the forms in which models hold them: wrapped, looked up, named, seen otherwise, in functions and objects."""

import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.patching import MLP, agree, run, spy
from torch import nn
from torch.nn.functional import silu as act

import sigtorch


def sigmoid(x, inplace: bool = False):
    return x.sigmoid_() if inplace else x.sigmoid()


def by_statements(x, inplace=False):
    """Computes silu."""
    if inplace:
        return F.silu(x, inplace=True)
    return F.silu(x, inplace=inplace)


def hidden(x):
    return sigmoid(x)


def swish(x):
    return x * torch.sigmoid(x)


def swish_in_place(x, inplace=False):
    return x.mul_(x.sigmoid()) if inplace else x.mul(x.sigmoid())


def mixed(x):
    return hidden(x) * x.cos()


def gate_of(x, scale):
    return torch.sigmoid(x / scale)


def apply_gate(gate, up):
    return F.silu(gate) * up


def reaches(gate, up):
    return apply_gate(gate, up)


ACTIVATIONS = {"silu": F.silu, "tanh": torch.tanh}
by_lambda = lambda x: torch.sigmoid(x)  # noqa: E731


class Model(MLP):
    """A base whose forward the forms below replace."""

    def __init__(self):
        super().__init__()
        self.gate_fn = sigmoid
        self.silu_fn = by_statements
        self.by_lambda = lambda x: F.silu(x)
        self.partial = functools.partial(F.silu, inplace=False)
        self.acts = nn.ModuleList([nn.Tanh(), nn.SiLU()])
        self.name = "silu"
        self.seen = nn.Sequential(nn.Linear(10, 10), nn.Sigmoid(), nn.Flatten(1))
        self.attention = Attention()
        self.processor = Processor()

    def method_gate(self, x):
        return torch.sigmoid(self.w1(x))

    @staticmethod
    def static_gate(x):
        return torch.sigmoid(x)


class Attention(nn.Module):
    """Returns a gate, which its user multiplies."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 10)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        out = self.fc(x)
        return self.sigmoid(out)


class Processor:
    """An object that is no module."""

    def __init__(self):
        self.act = nn.SiLU()

    def __call__(self, model, x):
        gate, up = model.w1(x), self.project(model, x)
        return self.act(gate) * up

    def project(self, model, x):
        return model.w3(x) * torch.sigmoid(model.w3(x))


def wrapped_attribute(self, x):
    return self.w3(x) * self.gate_fn(self.w1(x))


def wrapped_by_statements(self, x):
    return self.silu_fn(self.w1(x)) * self.w3(x)


def wrapped_global(self, x):
    return sigmoid(self.w1(x)) * self.w3(x)


def wrapped_twice(self, x):
    return hidden(self.w1(x)) * self.w3(x)


def lambda_attribute(self, x):
    return self.by_lambda(self.w1(x)) * self.w3(x)


def lambda_global(self, x):
    return by_lambda(self.w1(x)) * self.w3(x)


def partial_attribute(self, x):
    return self.partial(self.w1(x)) * self.w3(x)


def looked_up(self, x):
    return ACTIVATIONS[self.name](self.w1(x)) * self.w3(x)


def of_a_list(self, x):
    return self.acts[1](self.w1(x)) * self.w3(x) + self.acts[0](self.w1(x)) * self.w3(x)


def local_alias(self, x):
    act = self.act
    return act(self.w1(x)) * self.w3(x)


def local_choice(self, x):
    act = F.silu if self.name == "silu" else torch.tanh
    y = act(self.w1(x))
    return y * self.w3(x)


def made_there(self, x):
    return nn.Sigmoid()(self.w1(x)) * self.w3(x)


def static_method(self, x):
    return self.static_gate(self.w1(x)) * self.w3(x)


def in_branches(self, x):
    if x.dim() == 2:
        gate = torch.sigmoid(self.w1(x))
    elif x.dim() == 3:
        gate = torch.tanh(self.w1(x))
    if self.training:
        return gate * self.w3(x)
    return self.w3(x) * gate


def read_in_a_branch(self, x):
    gate = torch.sigmoid(self.w1(x))
    if x.dim() == 3:
        return gate + 1
    return gate * self.w3(x)


def read_by_the_next_turn(self, x):
    gate, up = self.w1(x), self.w3(x)
    out = up
    for i in range(3):
        if i == 1:
            out += 1
            gate = out.cos()
        elif i == 2:
            gate = out + gate
        out = F.silu(gate)
        y = out * up
    return y


def read_then_multiplied(self, x):
    gate, up = self.w1(x), self.w3(x)
    y = out = up
    for i in range(2):
        if i == 1:
            y = y + out
        if i == 0:
            out = F.silu(gate)
        y = out * y
    return y


def read_by_a_closure(self, x):
    gate = torch.sigmoid(self.w1(x))
    y = gate * self.w3(x)
    return y + (lambda: gate.cos())()


def one_part_read_by_a_closure(self, x):
    a, b = torch.sigmoid(self.w1(x)).chunk(2, -1)
    y = a * self.w3(x)[:, :5]
    return torch.cat([y, (lambda: b.cos())()], -1)


def parts_read_by_the_next_turn(self, x):
    up = out = self.w3(x)[:, :5].contiguous()
    parts = (up, up)
    for i in range(2):
        if i:
            out = out + parts[0].cos()
        parts = torch.sigmoid(self.w1(x)).chunk(2, -1)
        out = (parts[0] * up).cos() + out
    return torch.cat([out, out], -1)


def parts_repeated(self, x):
    n = len(self.acts)
    parts = torch.sigmoid(self.w1(x)).chunk(2, -1)
    parts = parts * n
    return torch.cat(parts[1:3], -1) + self.act(self.w1(x)) * self.w3(x)


def read_by_a_guard(self, x):
    gate = torch.sigmoid(self.w1(x))
    match x.dim():
        case 2 if gate.cos().sum() > 1000:
            return x
    return gate * self.w3(x)


def in_a_tuple(self, x):
    gate, up = torch.sigmoid(self.w1(x)), torch.tanh(self.w3(x))
    return gate * up


def used_by_two_products(self, x):
    gate = torch.sigmoid(self.w1(x))
    return gate * self.w3(x) + (gate * self.w1(x)).square()


def annotated(self, x):
    gate: torch.Tensor = torch.sigmoid(self.w1(x))
    return gate * self.w3(x)


def indexed(self, x):
    gate = torch.sigmoid(self.w1(x).mean(-1))
    return self.w3(x) * gate[:, None]


def viewed_again(self, x):
    gate = torch.sigmoid(self.w1(x).mean(-1))
    gate = gate.reshape(2, 2)
    gate = gate.view(-1).unsqueeze(1)
    return self.w3(x) * gate


def halves(self, x):
    reset, update = torch.sigmoid(self.w1(x)).chunk(2, -1)
    up, other = self.w3(x).chunk(2, -1)
    return torch.cat([reset * up, update * other], -1)


def same_dtype(self, x):
    up = self.w3(x)
    return F.silu(self.w1(x)).to(up.dtype) * up


def sequence_seen_otherwise(self, x):
    return self.seen(self.w1(x)) * self.w3(x)


def gate_of_a_module(self, x):
    up = self.w3(x)
    return self.attention(up) * up


def named_gate_of_a_module(self, x):
    up = self.w3(x)
    gate = self.attention(up)
    return up * gate


def gate_of_a_method(self, x):
    return self.method_gate(x) * self.w3(x)


def gate_of_a_function(self, x):
    return gate_of(self.w1(x), 2.0) * self.w3(x)


def in_a_function(self, x):
    return swish(self.w1(x)) + mixed(self.w3(x))


def in_a_function_with_a_choice(self, x):
    return swish_in_place(self.w1(x)) + swish_in_place(self.w1(x), True)


def repeated(self, x):
    gate = torch.sigmoid(self.w1(x).mean(0, keepdim=True)).repeat(4, 1)
    return self.w3(x) * gate


def through_functions(self, x):
    return reaches(self.w1(x), self.w3(x))


def under_another_name(self, x):
    return act(self.w1(x)) * self.w3(x)


def in_an_object(self, x):
    return self.processor(self, x)


def in_a_method_of_an_object(self, x):
    return self.processor.project(self, x)


def inline_glu(self, x):
    return F.glu(torch.cat([self.w1(x), self.w3(x)], -1), dim=-1) + F.glu(self.w1(x).repeat(1, 2))


def interpolated(self, x):
    z = torch.sigmoid(self.w1(x))
    n, h = self.w3(x), self.w3(-x)
    return (1 - z) * n + z * h


def interpolated_otherwise(self, x):
    n, h = self.w3(x), self.w3(-x)
    z = self.gate_fn(self.w1(x))
    y = z * h + n * (1.0 - z)
    return torch.lerp(y, h, z)


def interpolated_by_methods(self, x):
    n, h = self.w3(x), self.w3(-x)
    z = torch.sigmoid(self.w1(x))
    return n.lerp(h, z) + h.cos().lerp(n, self.w1(-x).sigmoid()) + h.lerp(n, 0.5)


def interpolated_by_calls(self, x):
    z = torch.sigmoid(self.w1(x))
    return z * self.w3(-x) + (1 - z) * self.w3(x)


def rested(self, x):
    z = torch.sigmoid(self.w1(x))
    return (1 - z) * self.w3(x)


def with_residual(self, x):
    h = self.w3(x)
    y = h + torch.sigmoid(self.w1(x)) * self.w3(-x)
    return torch.sigmoid(self.w1(x)) * y + h


def with_a_number(self, x):
    return torch.sigmoid(self.w1(x)) * self.w3(x) + 1


def with_silu(self, x):
    h = self.w3(x)
    return h + F.silu(self.w1(x)) * h


def by_addcmul(self, x):
    h = self.w3(x)
    return torch.addcmul(h, torch.sigmoid(self.w1(x)), self.w3(-x))


def by_addcmul_of_silu(self, x):
    h = self.w3(x)
    return torch.addcmul(h, F.silu(self.w1(x)), self.w3(-x)) + torch.sigmoid(h) * h


FORMS = {
    wrapped_attribute: 1, wrapped_by_statements: 1, wrapped_global: 1, wrapped_twice: 1, lambda_attribute: 1, lambda_global:
    1, partial_attribute: 1, looked_up: 1, of_a_list: 1, local_alias: 1, local_choice: 1, made_there: 1, static_method: 1,
    in_branches: 1, read_by_the_next_turn: 3, read_in_a_branch: 0, read_then_multiplied: 1, read_by_a_closure: 0,
    in_a_tuple: 1, used_by_two_products: 2, annotated: 1, indexed: 1, viewed_again: 1, halves: 2, same_dtype: 1,
    sequence_seen_otherwise: 1, gate_of_a_module: 1, named_gate_of_a_module: 1, gate_of_a_method: 1, gate_of_a_function: 1,
    in_a_function: 2, in_a_function_with_a_choice: 1, repeated: 1, through_functions: 1, under_another_name: 1,
    in_an_object: 2, in_a_method_of_an_object: 1, inline_glu: 2, interpolated: 1, interpolated_otherwise: 2,
    interpolated_by_methods: 2, interpolated_by_calls: 0, rested: 0, with_residual: 2, with_a_number: 1, with_silu: 1,
    by_addcmul: 1, read_by_a_guard: 0, one_part_read_by_a_closure: 0, parts_read_by_the_next_turn: 2, parts_repeated: 1,
    by_addcmul_of_silu: 1,
}  # fmt: skip


def model_of(body):
    torch.manual_seed(0)
    return type("Form", (Model,), {"forward": body})()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("body", FORMS, ids=lambda body: body.__name__)
def test_forms_are_fused(body, training, monkeypatch):
    model = model_of(body).train(training)
    before = run(model)
    with sigtorch.patch(model) as patch:
        assert ("" in patch.swapped) == (FORMS[body] > 0)
        assert not patch.left
        agree(before, run(model), exactly=True)
        calls = spy(monkeypatch)
        agree(before, run(model))
        assert len(calls) == FORMS[body]
        assert "sigmoid" not in calls
    agree(before, run(model))


class Base(MLP):
    def forward(self, x):
        return self.w2(self.gated(x))

    def gated(self, x):
        return self.act(self.w1(x)) * self.w3(x)


class Derived(Base):
    def gated(self, x):
        return super().gated(x) + Base.gated(self, x)


def test_methods_of_a_base_class(monkeypatch):
    model = Derived()
    before = run(model)
    with sigtorch.patch(model) as patch:
        assert not patch.left
        calls = spy(monkeypatch)
        agree(before, run(model))
        agree(before, run(pickle.loads(pickle.dumps(model))))
    assert calls == ["swiglu"] * 4


def test_functions_are_not_changed_for_others(monkeypatch):
    """A function that a patched model calls is as it was for everything else."""
    model, code = model_of(in_a_function), swish.__code__
    with sigtorch.patch(model):
        run(model)
        calls = spy(monkeypatch)
        swish(torch.ones(3))
        assert not calls
        assert swish.__code__ is code
        monkeypatch.setattr(swish, "__code__", (lambda x: x + 1).__code__)
        x = torch.linspace(-2, 2, 24).reshape(4, 6)
        hidden = [f(x) for f in (model.w1, model.w3)]
        torch.testing.assert_close(model(x), hidden[0] + 1 + hidden[1].sigmoid() * hidden[1].cos())
