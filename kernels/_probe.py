"""Whether Triton works on a device: asked once, before the first kernel of an operation is compiled for it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _probe_kernel(ptr):
    tl.store(ptr, 0.0)


def probe(index: int) -> None:
    """Raises where a small kernel does not compile and load on a CUDA device."""
    if triton.knobs.runtime.interpret:  # which compiles none
        return
    with torch.cuda.device(index):
        _probe_kernel.warmup(torch.float32, grid=(1,), enable_fp_fusion=True).run  # noqa: B018, whose look-up loads the binary
