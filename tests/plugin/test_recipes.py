"""Runs the recipes of docs/plugin.md, unchanged, on small models and data."""

import functools
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.patching import MLP, spy
from torch import nn

import sigtorch
from sigtorch.ops import losses

PAGE = Path(__file__).parents[2] / "docs" / "plugin.md"
BLOCKS = dict(re.findall(r"```python\n# (.*?)\n(.*?)```", PAGE.read_text(), re.DOTALL))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.head = MLP(), nn.Linear(6, 3)

    def forward(self, x, labels):
        logits = self.head(self.mlp(x))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def cook(name, monkeypatch, tmp_path, **given):
    """Runs a recipe in an empty folder and without a GPU; returns the sigtorch functions that it called, and its variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls = spy(monkeypatch)
    for loss in ("binary_cross_entropy_with_logits", "sigmoid_focal_loss"):
        ours = getattr(losses, loss)
        monkeypatch.setattr(losses, loss, lambda *a, ours=ours, loss=loss, **k: calls.append(loss) or ours(*a, **k))
    scope = {"torch": torch, "sigtorch": sigtorch, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of short epochs, few workers, pinned memory
        exec(BLOCKS[name], scope)
    return calls, scope


def test_every_recipe_is_run():
    assert list(BLOCKS) == [
        "transformers' focal loss", "Hugging Face Trainer", "accelerate", "Lightning", "timm", "torchvision's detectors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "needs"),
    [("Hugging Face Trainer", "transformers"), ("accelerate", "accelerate"), ("Lightning", "lightning")],
)
def test_training_loops(name, needs, monkeypatch, tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip(needs)
    torch.manual_seed(0)
    model = Classifier()
    before = {n: p.clone() for n, p in model.named_parameters()}
    dataset = [{"x": torch.randn(6), "labels": torch.tensor(i % 3)} for i in range(16)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    calls, _ = cook(name, monkeypatch, tmp_path, model=model, dataset=dataset, loader=loader)
    assert calls == ["swiglu"] * 2
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_timm(monkeypatch, tmp_path):
    pytest.importorskip("timm")
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))]
    calls, scope = cook("timm", monkeypatch, tmp_path, batches=batches)
    assert calls == ["sigmoid_gate"] * 8 + ["binary_cross_entropy_with_logits"]
    assert scope["average"].module(batches[0][0]).shape == (2, 10)


def test_torchvisions_detectors(monkeypatch, tmp_path):
    detection = pytest.importorskip("torchvision.models.detection")
    small = functools.partial(detection.retinanet_resnet50_fpn, min_size=64, max_size=64)  # else it enlarges pictures
    monkeypatch.setattr(detection, "retinanet_resnet50_fpn", small)
    boxes = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}]
    calls, scope = cook("torchvision's detectors", monkeypatch, tmp_path, pictures=[torch.rand(3, 64, 64)], boxes=boxes)
    assert calls.count("sigmoid_focal_loss") == 1
    expected = scope["detector"]([torch.rand(3, 64, 64)], boxes)
    assert expected.keys() == scope["losses"].keys()


def test_transformers_focal_loss(monkeypatch, tmp_path):
    detection = pytest.importorskip("transformers.loss.loss_for_object_detection")
    x, t = torch.randn(2, 5, 3), torch.rand(2, 5, 3).round()
    original = detection.sigmoid_focal_loss
    monkeypatch.setattr(detection, "sigmoid_focal_loss", original)  # put back afterwards
    expected = [original(x, t, 3), original(x, t, torch.tensor(4.0), alpha=0.6, gamma=1)]
    cook("transformers' focal loss", monkeypatch, tmp_path)
    ours = detection.sigmoid_focal_loss
    assert ours is not original
    torch.testing.assert_close([ours(x, t, 3), ours(x, t, torch.tensor(4.0), alpha=0.6, gamma=1)], expected)
