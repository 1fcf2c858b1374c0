"""The recipes of docs/plugin.md, run: other people's training loops over patched models."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from patching import MLP, spy
from torch import nn

import sigtorch


@pytest.fixture
def calls(monkeypatch):
    return spy(monkeypatch)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.head = MLP(), nn.Linear(6, 3)

    def forward(self, x, labels=None):
        logits = self.head(self.mlp(x))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if labels is not None else logits


def data():
    torch.manual_seed(0)
    return [{"x": torch.randn(6), "labels": torch.tensor(i % 3)} for i in range(8)]


def changed(model, before):
    return [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]


def test_hugging_face_trainer(tmp_path, calls):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    sigtorch.patch(model)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the loader's pinned memory, without a GPU
        transformers.Trainer(model, arguments, train_dataset=data()).train()
    assert calls == ["swiglu"] * 2
    assert len(changed(model, before)) == len(before)


def test_accelerate(calls):
    accelerate = pytest.importorskip("accelerate")
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    sigtorch.patch(model)
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(data(), batch_size=4)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        accelerator.backward(prepared(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    assert calls == ["swiglu"] * 2
    assert len(changed(accelerator.unwrap_model(prepared), before)) == len(before)


def test_lightning(tmp_path, calls):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Classifier()
            sigtorch.patch(self.model)

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    before = copy.deepcopy(module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few workers and a short epoch
        trainer = lightning.Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data(), batch_size=4))
    assert calls == ["swiglu"] * 2
    assert len(changed(module, before)) == len(before)


def test_timms_training(calls):
    """A model, its loss, optimizer and averaged weights, as timm's train.py puts them together."""
    timm = pytest.importorskip("timm")
    from timm.loss import BinaryCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    model = timm.create_model("resnet10t", num_classes=3, block_args={"attn_layer": "se"})
    patch = sigtorch.patch(model)
    average = ModelEmaV3(model, decay=0.5)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1)
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    with sigtorch.patched_functions():
        loss = BinaryCrossEntropy()(model(x), labels)
    loss.backward()
    optimizer.step()
    average.update(model)
    assert len(patch.swapped) == calls.count("sigmoid_gate") == 4
    assert len(average.module(x)) == 2


def test_torchvisions_detectors(calls):
    """Their focal loss is diverted while they train."""
    pytest.importorskip("torchvision")
    from torchvision.models.detection import retinanet_resnet50_fpn

    from sigtorch.ops.losses import functions

    seen = []
    focal = functions.sigmoid_focal_loss
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=64).train()
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}]
    images = [torch.rand(3, 64, 64)]
    torch.manual_seed(0)
    expected = model(images, targets)
    with pytest.MonkeyPatch.context() as spied, sigtorch.patched_functions():
        spied.setattr(functions, "sigmoid_focal_loss", lambda *a: seen.append("focal") or focal(*a))
        found = model(images, targets)
    assert seen
    torch.testing.assert_close(found, expected)
    found["classification"].backward()
