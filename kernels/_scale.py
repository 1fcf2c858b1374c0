"""The kernel that multiplies a tensor in place by a scalar on the device, which the host does not wait for."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sigtorch.kernels._layout import TILE_BYTES
from sigtorch.kernels._math import rounded
from sigtorch.kernels._plan import Call, plan

MAX_PROGRAMS = 4096  # few, for those that find nothing to do; they fill a large GPU


@triton.jit(do_not_specialize=["size"])
def _scale_kernel(inputs, outputs, size, DIVIDED: tl.constexpr, BLOCK: tl.constexpr):
    """Multiplies by the first input, and if DIVIDED divides by the second, both 0-d; exits if that changes nothing."""
    factor_ptr, divisor_ptr = inputs
    ptr = outputs[0]
    WIDE: tl.constexpr = tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32
    factor = tl.load(factor_ptr).to(WIDE)
    if DIVIDED:
        factor /= tl.load(divisor_ptr).to(WIDE)
    if factor != 1.0:
        offsets = tl.arange(0, BLOCK)
        start = tl.program_id(0).to(tl.int64) * BLOCK
        while start < size:
            if start + BLOCK <= size:
                _scale(ptr + start + offsets, factor, None)
            else:  # masked accesses are narrower
                _scale(ptr + start + offsets, factor, offsets < size - start)
            start += tl.num_programs(0).to(tl.int64) * BLOCK


@triton.jit
def _scale(ptr, factor, mask):
    scaled = tl.load(ptr, mask=mask).to(factor.dtype) * factor
    tl.store(ptr, rounded(scaled, ptr.dtype.element_ty), mask=mask)


def launch_scale(tensor: torch.Tensor, factor: torch.Tensor, divisor: torch.Tensor | None) -> None:
    """Multiplies a dense tensor by a 0-d factor, and divides it by a 0-d divisor, in place and rounded once."""
    if tensor.numel():
        ready, inputs = plan(
            _scale_call, None, (factor, 1 if divisor is None else divisor), (tensor,), (tensor.numel(),)
        )
        ready.launch(inputs, (tensor,))


def _scale_call(_: None, inputs: tuple[Any, ...], outputs: tuple[torch.Tensor, ...], size: int) -> Call:
    block = TILE_BYTES // outputs[0].element_size()
    programs = min(triton.cdiv(size, block), MAX_PROGRAMS)
    _, divisor = inputs
    return Call(_scale_kernel, (programs, 1, 1), (size, isinstance(divisor, torch.Tensor), block))
