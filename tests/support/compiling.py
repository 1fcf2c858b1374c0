"""Kernels compiled and not run, beside a test run that interprets them."""

import json
import os
import subprocess
import sys

import pytest
import torch
import triton

import sigtorch

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
STACK = 32 if TRITON == (3, 7) else (8 if TRITON < (3, 7) else 0)  # bytes in one kernel of older compilers


def architectures(by_run):
    """Parametrizes ``arch``, by the architecture of the PTX run that compiles for it; other runs compile nothing."""
    marks = {run: [pytest.mark.kernels, pytest.mark.ptx_run(run)] for run in by_run}
    return pytest.mark.parametrize("arch", [pytest.param(arch, marks=marks[run]) for run, arch in by_run.items()])


def printed(script, *arguments):
    """The JSON that a script prints, in a process whose Triton compiles."""
    chosen = ("TRITON_INTERPRET", "DISABLE_PTXAS_OPT")  # by a run that interprets, and by a PTX run
    env = {k: v for k, v in os.environ.items() if k not in chosen}
    env["PYTHONPATH"] = os.pathsep.join(["tests", "scripts", *filter(None, [env.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compiled_for(arch, function, inputs):
    """The launches of a call, forward and backward, compiled for an architecture: for a script as above."""
    from without_gpu.machine_code import compiled

    with sigtorch.use_backend("triton"), compiled(arch) as launches:
        out = function(*inputs)
        forward = len(launches)
        torch.autograd.grad(out, [t for t in inputs if t.requires_grad], torch.ones_like(out))
    return launches[:forward], launches[forward:]
