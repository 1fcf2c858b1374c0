"""Shared by the tests of the plug-in: running a model, comparing runs, and seeing which of our functions ran."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from sigtorch import _eligible
from sigtorch.ops import gates, sigmoid
from sigtorch.plugin import activated, products
from sigtorch.plugin.recognise import SIGMOID


class MLP(nn.Module):
    """Gated, of no one's names, and never in a table of names."""

    def __init__(self, act=None, bias=True):
        super().__init__()
        self.w1 = nn.Linear(6, 10, bias=bias)
        self.w2 = nn.Linear(10, 6, bias=bias)
        self.w3 = nn.Linear(6, 10, bias=bias)
        self.act = nn.SiLU() if act is None else act

    def forward(self, hidden):
        return self.w2(self.act(self.w1(hidden)) * self.w3(hidden))


def forward_as(body, act=None):
    """An MLP with this forward."""
    return type("Other", (MLP,), {"forward": body})(act)


def scaled(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) * 2


def the_other_way_round(self, x):
    return self.w2(self.w3(x) * self.act(self.w1(x)))


class Silu(nn.Module):
    """An activation of a library's own, as transformers has."""

    def forward(self, input):
        return F.silu(input)


class Own(nn.Sigmoid):
    """A subclass that computes something else."""

    def forward(self, input):
        return super().forward(input) * 2


class View(nn.Module):
    """Its gate is seen in another shape."""

    def forward(self, x, g):
        return x * torch.sigmoid(g).view(-1)


class Switched(nn.Module):
    """Computes its gate without a graph, and goes on with one."""

    def forward(self, x, g):
        torch.set_grad_enabled(False)
        gate = torch.sigmoid(g)
        torch.set_grad_enabled(True)
        return x * gate


class Backwards(nn.Sequential):
    """Its modules run in an order of its own."""

    def __iter__(self):
        return reversed([*super().__iter__()])


def run(model, x=None):
    """Output and gradients."""
    x = torch.linspace(-2, 2, 24).reshape(4, 6) if x is None else x
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def agree(before, after, exactly=False):
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if exactly else {}))


GATES = ((sigmoid, "sigmoid"), *((gates, name) for name in ("glu", "swiglu", "sigmoid_gate", "sigmoid_lerp")))


def by_public_functions(kind, x, gate, residual=None):
    """A fused product, by PyTorch's operators where no kernel runs."""
    return gates.sigmoid_gate(x, gate, residual) if kind == SIGMOID else gates.swiglu(gate, x)


class PublicSwiGLU:
    """Stands in for the Functions of a clamped SwiGLU, by PyTorch's operators where no kernel runs."""

    @staticmethod
    def apply(*given):
        *tensors, alpha, limit, offset, _ = given
        interleaved = tensors.pop() if isinstance(tensors[-1], bool) else False
        return gates.swiglu(*tensors, alpha=alpha, limit=limit, offset=offset, interleaved=interleaved)


def spy(monkeypatch, functions=GATES):
    """A list to which every call of these functions adds its name; a patched model's products go to them, as on a GPU."""
    calls = []

    def seen(name, function, *args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    for module, name in functions:
        monkeypatch.setattr(module, name, functools.partial(seen, name, getattr(module, name)))
    monkeypatch.setattr(activated, "may_fuse", lambda gate: type(gate) in _eligible.PLAIN_TYPES)
    monkeypatch.setattr(activated, "runs_kernel", lambda *tensors: True)
    monkeypatch.setattr(products, "fused_product", by_public_functions)
    for name in ("SwiGLUVariantFunction", "SwiGLUPackedVariantFunction"):
        monkeypatch.setattr(gates, name, PublicSwiGLU)
    monkeypatch.setattr(products, "fused_lerp", lambda *tensors: gates.sigmoid_lerp(*tensors))
    return calls
