"""The table of a patch: its rows, and that every encoding prints it."""

import io

import pytest
import torch
import torch.nn.functional as F
from support.patching import MLP, Own, Silu
from torch import nn

import sigtorch


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Sigmoid()
        self.silu = Silu()
        self.scale = nn.Parameter(torch.ones(2, 2))

    def forward(self, x, g):
        x = torch.sigmoid(g + 1) * x
        x *= g.sigmoid()
        x = x + self.act(g) * x
        x = 2 * torch.sigmoid(x) + x * x.sigmoid()
        return self.silu(g) * x


def test_the_rows_of_the_table():
    model = nn.ModuleDict({"a": nn.ModuleList([Inline(), Inline()]), "b": nn.ModuleList([MLP()]), "c": Own()})
    first = Inline.forward.__code__.co_firstlineno
    lines = [" ".join(line.split()) for line in str(sigtorch.patch(model)).splitlines()]
    gates = [f"sigtorch.sigmoid_gate at test_table.py:{first + n}" for n in (1, 3, 4)]
    mlp = MLP.forward.__code__.co_firstlineno + 1
    assert lines == [
        "sigtorch.patch: 5 swapped, 1 left",
        f"swapped 2 x a.* Inline {'; '.join(gates)}; sigtorch.swiglu at test_table.py:{first + 5}, fuses if shapes allow",
        "swapped 2 x a.*.act Sigmoid sigtorch.nn.Sigmoid",
        f"swapped 1 x b.0 MLP sigtorch.swiglu at patching.py:{mlp}, fuses if shapes allow",
        "left 1 x c Own its forward is not PyTorch's",
    ]
    assert str(sigtorch.patch(nn.Linear(2, 2))) == "sigtorch.patch: 0 swapped, 0 left"
    assert repr(sigtorch.patch(nn.Sigmoid())) == "<sigtorch.patch: 1 swapped, 0 left>"


class Greek(nn.Module):
    """Has letters that few encodings have."""

    def forward(self, x, γ):
        x *= torch.sigmoid(γ)
        return F.silu(γ) * x


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_table_prints_wherever_stdout_goes(encoding, monkeypatch):
    model = nn.ModuleDict({"σ": nn.Sigmoid(), "b": MLP(), "c": Greek()})
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    print(sigtorch.patch(model))
    out.flush()
    printed = out.buffer.getvalue().decode(encoding)
    assert [line.split()[:3] for line in printed.splitlines()[1:4]] == [["swapped", "1", "x"]] * 3
    assert ("σ" if encoding == "utf-8" else "\\u03c3") in printed
