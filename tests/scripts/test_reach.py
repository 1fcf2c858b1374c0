"""Counting what a patch reaches: each kind of site, on models made for it."""

import csv

import pytest
import reach
import torch
from _models import LIBRARIES, Example
from torch import nn

import sigtorch

SMALL = {
    "diffusers": "Sana",
    "efficientnet_pytorch": "efficientnet-b0 for export",
    "geffnet": "mnasnet_a1",
    "monai": "BasicUNet swish",
    "open_clip": "ViT-quickgelu",
    "pytorch_forecasting": "TemporalFusionTransformer",
    "segmentation_models_pytorch": "PAN",
    "speechbrain": "ResNet",
    "timm": "tinynet_e",
    "torch_geometric": "ResGatedGraphConv",
    "torchaudio": "ConvTasNet",
    "torchvision": "efficientnet_b0",
    "transformers": "Afmoe",
    "ultralytics": "yolov3-tiny",
    "vit_pytorch": "normalized_vit.nViT",
    "x_transformers": "swiglu",
}


class Sites(nn.Module):
    """Three products: fused, in place, and of dtypes that no kernel takes; then what is none."""

    def forward(self, x):
        a = x * torch.sigmoid(x + 1)
        b = x.clone()
        b *= torch.nn.functional.silu(x).double().float()
        c = x.double() * torch.sigmoid(x + 2)
        s = torch.sigmoid(x)
        return {"out": a + b + c + s * x + s, "more": torch.sigmoid(x) * 2}


def example():
    return Example(Sites, lambda: {"x": torch.linspace(-1, 1, 24).view(2, 3, 4)})


def test_each_kind_of_site():
    row = reach.row("sites", example())
    first = Sites.forward.__code__.co_firstlineno
    assert row["sites"] == 3
    assert row["fused"] == 1
    assert row["output"] == row["training"] == "same"
    reasons = {3: "it changes a tensor in place", 4: "no kernel takes its dtypes"}
    assert row["left"] == "; ".join(f"1 at test_reach.py:{first + n}, {why}" for n, why in reasons.items())


class Sparse(nn.Module):
    """A product whose result is multiplied by a matrix that has no storage."""

    def forward(self, x):
        return torch.eye(3).to_sparse() @ (x * torch.sigmoid(x))


def test_sparse_tensors():
    row = reach.row("sparse", Example(Sparse, lambda: {"x": torch.linspace(-1, 1, 12).view(3, 4)}))
    assert row["sites"] == row["fused"] == 1
    assert row["output"] == "same"


class Gate(nn.Module):
    """A product that trains."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 4)

    def forward(self, x):
        return x * torch.sigmoid(self.gate(x))


def test_a_changed_gradient_is_told(monkeypatch):
    example = Example(Gate, lambda: {"x": torch.ones(3, 4)})
    assert reach.row("gate", example)["training"] == "same"
    patch = sigtorch.patch

    def wrong(model):
        model.gate.weight.register_hook(lambda grad: 2 * grad)
        return patch(model)

    monkeypatch.setattr(sigtorch, "patch", wrong)
    assert reach.row("gate", example)["training"] == "OTHER"


def test_a_model_that_cannot_train_on_its_example():
    example = Example(lambda: nn.BatchNorm1d(3), lambda: {"input": torch.ones(1, 3)})
    assert reach.row("norm", example)["training"] == "cannot"


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


@pytest.mark.filterwarnings("ignore")  # of other libraries' own code
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_models_are_there(library):
    """A small one of each library, whole where there is one: all of its sites are fused."""
    pytest.importorskip(library)
    row = reach.row(SMALL[library], LIBRARIES[library]()[SMALL[library]])
    assert row["output"] == "same"
    assert row["training"] != "OTHER"
    assert row["sites"] > 0 or library == "ultralytics"  # whose models have none
    assert row["sites"] == row["fused"]


def test_libraries_that_are_not_installed(monkeypatch, tmp_path, capsys):
    extras = {"models": {"torch": lambda: {"one": example()}}, "reach": {"no_such": dict, "no_other": dict}}
    monkeypatch.setattr(reach, "EXTRAS", extras)
    monkeypatch.setattr(reach, "LIBRARIES", {**extras["models"], **extras["reach"]})
    missing = "not installed: no_other, no_such; the extra sigtorch[reach] brings them"

    monkeypatch.setattr("sys.argv", ["reach.py", "--libraries", "torch", "no_such", "no_other"])
    with pytest.raises(SystemExit, match="2"):
        reach.main()
    assert f"argument --libraries: {missing}" in capsys.readouterr().err

    monkeypatch.setattr("sys.argv", ["reach.py", "--out", str(tmp_path)])
    reach.main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"{missing}\n")
    assert "torch: 1 of 3 sites (33%)" in printed
