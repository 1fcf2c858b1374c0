"""``python -m sigtorch`` and its ``selftest``; ``report`` has its tests beside the plug-in's."""

import inspect

import pytest
import torch
from support.device import DEVICE

import sigtorch
from sigtorch import _backend
from sigtorch.__main__ import main
from sigtorch.commands import selftest


def test_versions_and_what_runs_where(capsys, monkeypatch):
    monkeypatch.setenv("SIGTORCH_BACKEND", "auto")
    main([])
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["sigtorch"] == sigtorch.__version__
    assert rows["torch"].startswith(torch.__version__)
    assert {"triton", "python", "driver", "cpu"} <= rows.keys()
    assert rows["SIGTORCH_BACKEND"] == "auto"
    if DEVICE == "cpu":
        assert rows["cpu"].endswith("PyTorch's operators (kernels run there only where they are forced)")


def test_an_obstacle_is_told(capsys, monkeypatch):
    obstacle = RuntimeError("no chip of ours")
    monkeypatch.setattr(_backend, "obstacle", lambda index: obstacle)
    main([])
    assert "PyTorch's operators (no chip of ours)" in capsys.readouterr().out


def test_selftest_has_each_operation():
    """By the code of its tables, which calls each."""
    called = "".join(map(inspect.getsource, (selftest._gates, selftest._attention, selftest._losses)))
    functions = [name for name in sigtorch.__all__ if inspect.isfunction(getattr(sigtorch, name))]
    others = {"backend_of", "patch", "patched_functions", "use_backend"}
    assert [name for name in functions if name not in others and f"sigtorch.{name}" not in called] == []


def test_selftest_finds_what_is_wrong(capsys, monkeypatch):
    main(["selftest", "--device", DEVICE])
    assert "all right" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(sigtorch, "glu", lambda x: 1.001 * torch.nn.functional.glu(x))
    with pytest.raises(SystemExit, match="1"):
        main(["selftest", "--device", DEVICE])
    said = capsys.readouterr().out
    assert "WRONG" in next(line for line in said.splitlines() if line.startswith("glu"))
    assert said.splitlines()[-1].split(":")[0].endswith(" WRONG")


def test_selftest_refuses_a_device_in_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["selftest", "--device", "cuda:99"])
    assert "--device: cannot use 'cuda:99'" in capsys.readouterr().err.splitlines()[-1]
