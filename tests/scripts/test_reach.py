"""Counting what a patch reaches: each kind of site, on models made for it."""

import csv

import pytest
import reach
import torch
from _models import LIBRARIES, Example
from torch import nn


class Sites(nn.Module):
    """Three products: fused, in place, and of a shape that no kernel takes; then what is none."""

    def forward(self, x):
        a = x * torch.sigmoid(x + 1)
        b = x.clone()
        b *= torch.nn.functional.silu(x).double().float()
        c = x * torch.sigmoid(x.sum(0, keepdim=True))
        s = torch.sigmoid(x)
        return {"out": a + b + c + s * x + s, "more": torch.sigmoid(x) * 2}


def example():
    return Example(Sites, lambda: {"x": torch.linspace(-1, 1, 24).view(2, 3, 4)})


def test_each_kind_of_site():
    row = reach.row("sites", example())
    first = Sites.forward.__code__.co_firstlineno
    assert row["sites"] == 3
    assert row["fused"] == 1
    assert row["output"] == "same"
    reasons = {3: "it changes a tensor in place", 4: "no kernel takes its shapes"}
    assert row["left"] == "; ".join(f"1 at test_reach.py:{first + n}, {why}" for n, why in reasons.items())


def test_a_table_a_library(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(LIBRARIES, "timm", lambda: {"one": example(), "two": example()})
    monkeypatch.setattr("sys.argv", ["reach.py", "--libraries", "timm", "--out", str(tmp_path)])
    reach.main()
    assert "timm: 2 of 6 sites (33%)" in capsys.readouterr().out
    with (tmp_path / "reach.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["library"], r["model"], r["sites"], r["fused"]) for r in rows] == [
        ("timm", name, "3", "1") for name in ("one", "two")
    ]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_models_are_there(library):
    """The smallest of each library, whole: all of its sites are fused."""
    pytest.importorskip(library)
    name = {"timm": "tinynet_e", "torchvision": "efficientnet_b0", "transformers": "Afmoe"}[library]
    row = reach.row(name, LIBRARIES[library]()[name])
    assert row["sites"] == row["fused"] > 0
    assert row["output"] == "same"
