"""The pytest plugin, in a process of its own: here kernels may be run by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "without_gpu.ptx.plugin", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)


def test_kernels_are_executed():
    """Also where the interpreter was asked for. ``make test-ptx`` does so for any architecture."""
    done = run("--ptx-arch", "90", "-v", "tests/ptx/test_triton.py")
    assert done.returncode == 0, done.stdout
    assert "kernels run as PTX for sm_90, on the CPU" in done.stdout
    assert "skipped" not in done.stdout


def test_architectures():
    assert "--ptx-arch: invalid choice: 70" in run("--ptx-arch", "70", "tests/ptx/test_triton.py").stderr
