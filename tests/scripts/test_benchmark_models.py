"""The benchmark of whole models: what it writes, and one line for what it refuses."""

import importlib.util
import json

import benchmark_models
import pytest
import torch
from support.scripting import assert_picture

import sigtorch

SMALL = ["--layers", "1", "--dim", "64", "--batch", "1", "--context", "16", "--rounds", "1", "--device", "cpu"]


@pytest.mark.parametrize(("name", "package"), [("llama", "transformers"), ("vit", "timm")])
def test_each_model_has_products_that_a_patch_fuses(name, package):
    pytest.importorskip(package)
    model, loss = benchmark_models.MODELS[name](benchmark_models.parse(["--models", name, *SMALL]))
    with sigtorch.patch(model) as patch:
        assert patch.swapped
        assert loss(model).isfinite()


def test_it_measures_and_draws(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    arguments = ["--models", "llama", "--ways", "eager", "patched", *SMALL, "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["benchmark_models.py", *arguments])
    benchmark_models.main()
    records = json.loads((tmp_path / "out" / "models.json").read_text())["records"]
    found = {(r["implementation"], r["metric"]) for r in records}
    assert found == {
        (w, m) for w in ("eager", "patched") for m in ("tokens a second", "spread", "peak memory", "speed")
    }
    assert all(r["value"] > 0 for r in records if r["metric"] != "spread")
    assert_picture(tmp_path / "out" / "models.png")
    assert "models.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--dim", "100"], "--dim: wants a multiple of 64, not 100"),
        (["--ways", "fast"], "argument --ways: invalid choice: 'fast'"),
        (["--models", "llama"], "--models llama needs transformers"),
    ],
)
def test_it_refuses_nonsense(arguments, reason, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        benchmark_models.parse(arguments)
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_a_step_trains():
    model = torch.nn.Linear(4, 1)
    before = model.weight.detach().clone()
    benchmark_models.step_of(model, lambda m: m(torch.ones(2, 4)).mean(), torch.bfloat16, "cpu")()
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None
