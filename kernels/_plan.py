"""Plans: all that a launch needs beside its operands, made once for operands that are alike.

``kernel[grid](...)`` looks at every argument of every launch. Here all that depends on the operands' dtypes, shapes, strides
and alignment is a ``Plan``, kept under a key of exactly these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from sigtorch.kernels._direct import direct_launch
from sigtorch.kernels._layout import INDEX, WARPS, Operand, Unreachable, index_input, with_copies

# The interpreter has no such option.
OPTIONS: dict[str, Any] = {} if triton.knobs.runtime.interpret else {"enable_fp_fusion": True}
MAX_PLANS = 4096

_plans: dict[tuple[Any, ...], Plan] = {}  # emptied when full


class Call(NamedTuple):
    """A kernel, its grid, and its arguments behind inputs and outputs."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    partials: int = 0  # of a sum: how many parts of it the kernel writes
    strides: tuple[int, ...] = ()  # of each part, if it is a tensor
    warps: int = WARPS
    options: tuple[tuple[str, Any], ...] = ()  # others of the compiler


class Plan:
    """Launches a kernel on operands like those it was made for."""

    def __init__(self, call: Call, index_input: int) -> None:
        self.call = call
        self.index_input = index_input  # the input that is INDEX, or -1
        self.compiled: Any = None  # kept: a direct launch knows the compiled function by its address only

    def launch(self, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        """Launches for the first time, and decides how all later launches are done."""
        call = self.call
        with torch.cuda.device_of(outputs[0]):
            self.compiled = self.launch_publicly(inputs, outputs)
            arguments = (inputs, outputs, *call.arguments)
            direct = direct_launch(self.compiled, call.grid, arguments, self.launch_publicly)
        self.launch = direct or self.launch_publicly  # in place of this method

    def launch_publicly(self, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...]) -> Any:
        """Launches by Triton's public interface; returns the compiled kernel."""
        call = self.call
        with torch.cuda.device_of(outputs[0]):
            return call.kernel[call.grid](
                inputs, outputs, *call.arguments, num_warps=call.warps, **OPTIONS, **dict(call.options)
            )


def plan(
    make: Callable[..., Call],
    fn: Any,
    inputs: tuple[Operand, ...],
    outputs: tuple[torch.Tensor, ...],
    settings: tuple[Any, ...] = (),
) -> tuple[Plan, tuple[Operand, ...]]:
    """Returns the plan for these operands, and the inputs to launch it on: copies of those that no layout reaches.

    A plan that is not kept yet launches the call ``make(fn, inputs, outputs, *settings)``. The key holds all that this
    depends on, and all that Triton specialises on. Outputs are fresh, and alike but for their dtypes, so the last one's
    strides stand for all.
    """
    last = outputs[-1]
    parts: list[Any] = [make, id(fn), settings, last.get_device(), last.stride(), last.data_ptr() & 15]
    for t in outputs:
        parts.append(t.dtype)
    for t in inputs:
        kind = type(t)
        if kind is float or kind is int or t is INDEX:  # isinstance(t, torch.Tensor) takes ten times as long
            parts.append(kind)
        else:
            parts += (t.dtype, t.shape, t.stride(), t.data_ptr() & 15)
    key = tuple(parts)
    known = _plans.get(key)
    if known is None:
        try:
            call = make(fn, inputs, outputs, *settings)
        except Unreachable:
            call = None
        if call is None:
            return plan(make, fn, with_copies(inputs, outputs), outputs, settings)
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[key] = known = Plan(call, index_input(inputs))
    at = known.index_input
    if at >= 0:  # kernels do not read it: Triton compiles a 1 as a constant
        inputs = (*inputs[:at], 1, *inputs[at + 1 :])
    return known, inputs
