"""Whether Triton works on a device: asked once, before the first kernel of an operation is compiled for it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _probe_kernel(ptr):
    tl.store(ptr, 0.0)


def failure(index: int) -> Exception | None:
    """Why a small kernel does not compile and load on a CUDA device; None where it does."""
    if triton.knobs.runtime.interpret:  # which compiles none
        return None
    try:
        with torch.cuda.device(index):
            _probe_kernel.warmup(torch.float32, grid=(1,), enable_fp_fusion=True).run  # noqa: B018, whose look-up loads the binary
    except Exception as error:  # no compiler, no headers, no driver, no assembler for the chip: each raises its own
        return error
    return None
