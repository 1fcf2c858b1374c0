"""Launching: one place finds how operands lie, remembers it, and starts the compiled kernel.

``kernel[grid](...)`` looks at every argument to find the binary that was compiled for its kind, each time anew. Here all
that depends on the operands' dtypes, shapes, strides and alignment is a ``Plan``, kept under a key of exactly these.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton

from sigtorch.kernels._layout import ONE_A_COLUMN, Layout, Operand, reached

HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
WARPS = 4
# Two 16-byte accesses a thread and tensor: with four, an H200 took up to 4 % longer, for the registers of more threads.
TILE_BYTES = 2 * 16 * 32 * WARPS
# Columns of a tile, of rows up to NARROW_ROWS and of longer ones: few widths, for each is a compilation.
NARROW, WIDE = 16, 128
NARROW_ROWS = 64
# The interpreter has no such option.
OPTIONS: dict[str, Any] = {} if triton.knobs.runtime.interpret else {"enable_fp_fusion": True}
MAX_PLANS = 4096
RUNTIME = triton.knobs.runtime

_plans: dict[tuple[Any, ...], Plan] = {}  # emptied where it is full


class Call(NamedTuple):
    """A kernel, its grid, and its arguments beside the operands."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    partials: int = 0  # of a sum: how many parts of it the kernel writes
    warps: int = WARPS


class Plan:
    """Launches a kernel on operands that lie like those it was made for."""

    def __init__(self, call: Call, columns: int) -> None:
        self.call = call
        self.columns = columns  # which input is None, or -1
        self.direct: tuple[Any, ...] | None = None  # before the first launch; empty where there is no direct one
        self.compiled: Any = None  # kept, for the direct launch knows its function by a number

    def launch(self, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        at = self.columns
        if at >= 0:  # older versions of Triton take no None in a tuple, and compile a 1 as a constant
            inputs = (*inputs[:at], 1, *inputs[at + 1 :])
        direct = self.direct
        try:
            public = not direct or RUNTIME.launch_enter_hook.calls or RUNTIME.launch_exit_hook.calls
        except AttributeError:  # somebody put something else than a chain of hooks there
            public = True
        if public:
            call = self.call
            with torch.cuda.device_of(outputs[0]):
                compiled = call.kernel[call.grid](inputs, outputs, *call.arguments, num_warps=call.warps, **OPTIONS)
                if direct is None:  # asked once, and here, where the operands' device is the current one
                    self.direct, self.compiled = _direct(compiled, call, inputs, outputs), compiled
            return
        launch, x, y, z, between, arguments, device, current_device, current_stream = direct
        if current_device() == device:
            launch(x, y, z, current_stream(device), *between, (inputs, outputs, *arguments))
        else:
            with torch.cuda.device(device):
                launch(x, y, z, current_stream(device), *between, (inputs, outputs, *arguments))


def _direct(
    compiled: Any, call: Call, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...]
) -> tuple[Any, ...]:
    """The arguments of a direct launch, or () where Triton's launcher is not as expected: ``kernel[grid]`` then launches.

    A compiled kernel has a launcher in Python, and that calls one in C. What it calls it with is recorded here, and only the
    stream and the operands differ from one launch to the next.
    """
    seen: list[tuple[Any, ...]] = []
    arguments = (inputs, outputs, *call.arguments)
    try:
        launcher = copy.copy(compiled.run)  # first: interpreted, there is neither a launcher nor a driver
        launch, launcher.launch = launcher.launch, lambda *given: seen.append(given)
        driver = triton.runtime.driver.active
        current_device, current_stream = driver.get_current_device, driver.get_current_stream
        RUNTIME.launch_enter_hook.calls, RUNTIME.launch_exit_hook.calls  # noqa: B018, profilers put theirs here
        stream, no_hooks = object(), (None, None, None)
        launcher(*call.grid, stream, compiled.function, compiled.packed_metadata, *no_hooks, *arguments)
        ((x, y, z, given_stream, *rest),) = seen
        packed = isinstance(rest[-1], tuple)  # from Triton 3.7 on all arguments in one
        at = -1 if packed else -len(arguments)
        between, given = tuple(rest[:at]), rest[-1] if packed else rest[at:]
        as_expected = (x, y, z) == call.grid and given_stream is stream and [*map(id, given)] == [*map(id, arguments)]
        seen.clear()  # the launcher may be kept, and these are somebody's tensors
    except Exception:  # whatever a launcher raises that is not like this one
        return ()
    if not as_expected or any(hasattr(b, "data_ptr") for b in between):  # scratch memory, of that one launch
        return ()
    if not packed:
        launch = functools.partial(_unpacked, launch)
    return launch, *call.grid, between, call.arguments, current_device(), current_device, current_stream


def _unpacked(launch: Callable[..., None], *given: Any) -> None:
    launch(*given[:-1], *given[-1])


def plan(
    make: Callable[..., Call],
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    option: Any = None,
) -> tuple[Plan, tuple[Operand, ...]]:
    """The plan for these operands, and the inputs to launch it with: those given, or copies where no kernel reaches them.

    The key holds all that a plan depends on: what layouts are made of, and what Triton compiles apart. Outputs are fresh,
    and all alike but for their dtypes; halves of one tensor lie where its strides put them.
    """
    last = outputs[-1]
    key: list[Any] = [make, id(fn), option, last.get_device(), last.stride(), last.data_ptr() & 15]
    for t in outputs:
        key.append(t.dtype)
    for t in inputs:
        kind = type(t)
        if kind is float or kind is int or t is None:  # to ask whether it is a Tensor takes ten times as long
            key.append(kind)
        else:
            key += (t.dtype, t.shape, t.stride(), t.data_ptr() & 15)
    found = tuple(key)
    known = _plans.get(found)
    if known is not None:
        return known, inputs
    reachable = inputs if fn is None else reached(inputs, outputs)
    if reachable is not inputs:
        return plan(make, fn, reachable, outputs, option)
    if len(_plans) >= MAX_PLANS:
        _plans.clear()
    columns = inputs.index(None) if None in inputs else -1
    _plans[found] = made = Plan(make(fn, inputs, outputs, option), columns)
    return made, inputs


def exact(inputs: tuple[Operand, ...], like: torch.Tensor) -> tuple[Operand, ...]:
    """Numbers as tensors where all is float64: a number is a float32 to Triton."""
    if like.dtype != torch.float64:
        return inputs
    return tuple(like.new_full((), t) if isinstance(t, float) else t for t in inputs)


def form(at: Layout, inputs: Sequence[Operand], results: Sequence[torch.dtype], ignoring: int = 0) -> tuple[Any, ...]:
    """The form that a kernel is compiled for: each operand's strides and kind, the width of an access, the precision.

    Whether the last bits of a float32 count, for all results of half types round them away; whether it is all float64; and
    which input, where it is the number that comes last, has its elements ignored: 0 for none.
    """
    precise = not HALF_DTYPES.issuperset(results)
    double = any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in inputs)
    return at.sets, at.kinds, at.vector, precise, double, ignoring


def tile_of(at: Layout, size: int) -> tuple[int, int]:
    """Rows and columns of a tile, of so many elements in one row."""
    if at.row_strides is None or (at.cols >= 2 * size and ONE_A_COLUMN not in at.kinds):
        return 1, size
    # Each row has an address of its own, which takes registers.
    if at.cols <= NARROW_ROWS:
        return size // 4 // NARROW, NARROW
    return size // 2 // WIDE, WIDE


def odd(strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Strides as Triton compiles nothing apart for, as it does for 1 and for multiples of 16; kernels halve them again."""
    return None if strides is None else tuple(2 * s + 1 for s in strides)
