"""A probe of whether Triton works on a device, before the first kernel is compiled for it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _probe_kernel(ptr):
    tl.store(ptr, 0.0)


def probe(index: int) -> None:
    """Compiles and loads a small kernel on a CUDA device; raises whatever prevents that."""
    if triton.knobs.runtime.interpret:  # nothing is compiled
        return
    with torch.cuda.device(index):
        _probe_kernel.warmup(torch.float32, grid=(1,), enable_fp_fusion=True).run  # noqa: B018, loads the binary
