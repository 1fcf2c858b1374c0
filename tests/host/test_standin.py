"""The stand-in for the CUDA driver counts launches, of kernels compiled for the architecture that was asked for."""

import os
import shutil
import subprocess
import sys

import pytest
from support.device import DEVICE
from without_gpu import standin

SCRIPT = """
import sys, warnings
import torch, sigtorch
from without_gpu import standin

warnings.filterwarnings("ignore", "CUDA initialization")  # PyTorch sees the stand-in, too
standin.install(int(sys.argv[1]))
x = torch.randn(64, requires_grad=True)
before = standin.launches()
with sigtorch.use_backend("triton"):
    out = sigtorch.sigmoid(x)
    forward = standin.launches()
    out.backward(torch.ones_like(out))
print(before, forward, standin.launches())
"""


def run(arch, **variables):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(["scripts", "."])} | variables
    return subprocess.run([sys.executable, "-c", SCRIPT, str(arch)], env=env, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.skipif(DEVICE == "cuda", reason="nothing stands in for a driver that is there")
def test_launches_are_counted(tmp_path):
    done = run(
        80, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)
    )  # not the architecture of an install by default
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1", "2"]
    compiled = [path.read_text() for path in tmp_path.glob("*/*.ptx")]
    assert len(compiled) == 2
    assert all(".target sm_80" in ptx for ptx in compiled)


def test_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set: the interpreter launches nothing"):
        standin.install(90)


@pytest.mark.gpu
def test_a_driver_that_is_there_is_not_replaced():
    assert "RuntimeError: there is a GPU" in run(90, TRITON_INTERPRET="0").stderr
