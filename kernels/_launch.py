"""Launching: one place finds how operands lie, remembers it, and starts the compiled kernel.

``kernel[grid](...)`` looks at every argument to find the binary that was compiled for its kind, each time anew. Here all
that depends on the operands' dtypes, shapes, strides and alignment is a ``Plan``, kept under a key of exactly these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton

from sigtorch.kernels._layout import Layout, Operand, reached

HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
WARPS = 4
# Four 16-byte accesses a thread and tensor: two in flight fill a B200's memory, four halve what addresses cost.
TILE_BYTES = 4 * 16 * 32 * WARPS
# The part of a tile for what computes so much of an element that a whole one would not fit a chip's registers.
HALF_A_TILE = 2
# Columns of a tile, of rows up to NARROW_ROWS and of longer ones: few widths, for each is a compilation.
NARROW, WIDE = 16, 128
NARROW_ROWS = 64
OPTIONS: dict[str, Any] = {"num_warps": WARPS}
if not triton.knobs.runtime.interpret:  # the interpreter has no such option
    OPTIONS["enable_fp_fusion"] = True
MAX_PLANS = 4096
RUNTIME = triton.knobs.runtime
# How Triton calls a compiled kernel since 3.7: a grid of three, these, then the kernel's arguments.
LAUNCHER = ["stream", "function", "kernel_metadata", "launch_metadata", "launch_enter_hook", "launch_exit_hook"]

_plans: dict[tuple[Any, ...], Plan] = {}  # emptied where it is full


class Call(NamedTuple):
    """What a kernel is launched with beside its operands."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    partials: int = 0  # of a sum: how many parts of it the kernel writes


class Plan:
    """Launches a kernel on operands that lie like those it was made for."""

    def __init__(self, call: Call, columns: bool) -> None:
        self.call = call
        self.columns = columns
        self.direct: tuple[Any, ...] | None = None

    def launch(self, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        if self.columns:  # older versions of Triton take no None in a tuple, and compile a 1 as a constant
            inputs = tuple(1 if t is None else t for t in inputs)
        direct = self.direct
        if direct is None or RUNTIME.launch_enter_hook.calls or RUNTIME.launch_exit_hook.calls:
            call = self.call
            with torch.cuda.device_of(outputs[0]):
                compiled = call.kernel[call.grid](inputs, outputs, *call.arguments, **OPTIONS)
                self.direct = _direct(compiled, call)
            return
        run, x, y, z, function, metadata, arguments, device, current_device, current_stream = direct
        if current_device() == device:
            run(x, y, z, current_stream(device), function, metadata, None, None, None, inputs, outputs, *arguments)
        else:
            with torch.cuda.device(device):
                run(x, y, z, current_stream(device), function, metadata, None, None, None, inputs, outputs, *arguments)


def _direct(compiled: Any, call: Call) -> tuple[Any, ...] | None:
    """What launches a compiled kernel; None where Triton is not as expected: then ``kernel[grid]`` always launches."""
    try:
        run, driver = compiled.run, triton.runtime.driver.active
        if [*inspect.signature(run).parameters][3:-1] != LAUNCHER:
            return None
        RUNTIME.launch_enter_hook.calls, RUNTIME.launch_exit_hook.calls  # noqa: B018, profilers put theirs here
        current_device, current_stream = driver.get_current_device, driver.get_current_stream
        function, metadata = compiled.function, compiled.packed_metadata
        return (run, *call.grid, function, metadata, call.arguments, current_device(), current_device, current_stream)
    except (AttributeError, TypeError, ValueError):
        return None


def plan(
    make: Callable[..., Call],
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    option: Any = None,
) -> tuple[Plan, tuple[Operand, ...]]:
    """The plan for these operands, and the inputs to launch it with: those given, or copies where no kernel reaches them.

    The key holds all that a plan depends on: what layouts are made of, and what Triton compiles apart.
    """
    key: list[Any] = [make, id(fn), option, outputs[0].get_device()]
    for t in inputs + outputs:
        if isinstance(t, torch.Tensor):
            key += (t.dtype, t.shape, t.stride(), t.data_ptr() & 15)
        else:
            key.append(type(t))
    found = tuple(key)
    known = _plans.get(found)
    if known is not None:
        return known, inputs
    reachable = inputs if fn is None else reached(inputs, outputs)
    if reachable is not inputs:
        return plan(make, fn, reachable, outputs, option)
    if len(_plans) >= MAX_PLANS:
        _plans.clear()
    _plans[found] = made = Plan(make(fn, inputs, outputs, option), None in inputs)
    return made, inputs


def exact(inputs: tuple[Operand, ...], like: torch.Tensor) -> tuple[Operand, ...]:
    """Numbers as tensors where all is float64: a number is a float32 to Triton."""
    if like.dtype != torch.float64:
        return inputs
    return tuple(like.new_full((), t) if isinstance(t, float) else t for t in inputs)


def form(at: Layout, inputs: Sequence[Operand], results: Sequence[torch.dtype]) -> tuple[Any, ...]:
    """What a kernel is compiled for: each operand's strides and kind, the width of an access, and the precision.

    Whether the last bits of a float32 count, for all results of half types round them away; and whether it is all float64.
    """
    precise = not HALF_DTYPES.issuperset(results)
    double = any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in inputs)
    return at.sets, at.kinds, at.vector, precise, double


def tile_of(at: Layout, like: torch.Tensor, part: int = 1) -> tuple[int, int]:
    """Rows and columns of a tile, or of that part of one."""
    size = TILE_BYTES // like.element_size() // part
    if at.row_strides is None or at.cols >= size:
        return 1, size
    size //= 2  # each row has an address of its own, which takes registers
    columns = NARROW if at.cols <= NARROW_ROWS else WIDE
    return size // columns, columns


def odd(strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Strides as Triton compiles nothing apart for, as it does for 1 and for multiples of 16; kernels halve them again."""
    return None if strides is None else tuple(2 * s + 1 for s in strides)
