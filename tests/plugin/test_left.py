"""Products that a patch leaves, with a row each, and what is no product."""

import math

import torch
import torch.nn.functional as F
from support.patching import Silu, forward_as
from torch import nn

import sigtorch


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
    assert patch.swapped == {"": f"sigtorch.sigmoid_gate at test_left.py:{line}, fuses if shapes allow"}
    assert not patch.left


def test_no_source():
    made = {"torch": torch}
    exec("def forward(self, x): return torch.sigmoid(x) * x\ndef summed(self, x): return torch.sigmoid(x) + x", made)
    assert sigtorch.patch(forward_as(made["forward"])).left == {"": "<string>:1: its source cannot be read"}
    assert not sigtorch.patch(forward_as(made["summed"])).left


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
