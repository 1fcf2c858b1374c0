"""``python -m sigtorch report``: what it prints, and one line for each mistake."""

import subprocess
import sys
import textwrap

import pytest

from sigtorch.__main__ import main

FACTORIES = textwrap.dedent("""
    import torch
    from torch import nn


    class Model(nn.Module):
        def forward(self, x, scale=1):
            return x * torch.sigmoid(x) * scale


    def by_position():
        return Model(), (torch.ones(2, 3),)


    def by_keyword():
        return Model(), [], {"x": torch.ones(2, 3), "scale": 2}


    def model_alone():
        return Model()


    def of_a_tensor():
        return Model(), torch.ones(2, 3)


    def broken():
        raise ValueError("no\\nmodel")


    def wrong_arguments():
        return Model(), (torch.ones(2, 3), "x")


    number = 3
""")
MISTAKES = {
    "factories": "expected module:function, got 'factories'",
    ":by_position": "expected module:function, got ':by_position'",
    "no_such_module:make": "importing no_such_module raised ModuleNotFoundError: No module named 'no_such_module'",
    "factories:missing": "factories has no 'missing'",
    "factories:number": "factories:number is no function, but int",
    "factories:model_alone": "factories:model_alone() must return (model, args) or (model, args, kwargs), got Model",
    "factories:of_a_tensor": "args must be a tuple and kwargs a dictionary, got Tensor and dict",
    "factories:broken": "factories:broken() raised ValueError: no model (factories.py:",
    "factories:wrong_arguments": "the model raised TypeError: ",
}


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("factories", None)


@pytest.mark.parametrize("name", ["by_position", "by_keyword"])
def test_a_report_from_a_shell(name, factories, capsys):
    main(["report", f"factories:{name}"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        "fused 1 x sigmoid_gate factories.py:8 x (2, 3), gate (2, 3), float32", "fused 1 of 1 products"
    ]  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, factories, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", name])
    assert ended.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: python -m sigtorch report [-h] module:factory"
    assert MISTAKES[name] in error


def test_as_a_process(factories):
    command = [sys.executable, "-m", "sigtorch", "report", "factories:by_position"]
    done = subprocess.run(command, cwd=factories, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fused 1 of 1 products\n")
