"""Direct launches: all that knows Triton's private launcher. Without this file, every launch would be a public one.

``kernel[grid](...)`` finds the compiled kernel anew at each launch, and calls its launcher in Python, which calls one in C.
A direct launch calls the one in C with the arguments that the one in Python was seen to give it: from one launch to the
next, only the stream and the operands differ.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import triton

RUNTIME = triton.knobs.runtime


def direct_launch(
    compiled: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], launch_publicly: Callable[..., Any]
) -> Callable[..., None] | None:
    """Returns a function that launches a compiled kernel on other inputs and outputs, on the current device.

    It returns None if this Triton's launcher is unknown. Arguments are those of a launch, inputs and outputs first.
    """
    try:
        launch, between = _seen(compiled, grid, arguments)
        driver = triton.runtime.driver.active
        current_device, current_stream = driver.get_current_device, driver.get_current_stream
        device = current_device()
        RUNTIME.launch_enter_hook.calls, RUNTIME.launch_exit_hook.calls  # noqa: B018, a chain of hooks has these
    except Exception:  # an unknown launcher raises anything; interpreted, there is none
        return None
    (x, y, z), constants = grid, arguments[2:]

    def launch_directly(inputs: tuple[Any, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        try:
            has_hooks = RUNTIME.launch_enter_hook.calls or RUNTIME.launch_exit_hook.calls
        except AttributeError:  # replaced by something else than a chain of hooks
            has_hooks = True
        if has_hooks:  # a profiler's, which only a public launch calls
            launch_publicly(inputs, outputs)
        elif current_device() == device:
            launch(x, y, z, current_stream(device), *between, (inputs, outputs, *constants))
        else:
            with torch.cuda.device(device):
                launch(x, y, z, current_stream(device), *between, (inputs, outputs, *constants))

    return launch_directly


def _seen(
    compiled: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the launcher in C, and what it is given between the stream and the tuple of arguments.

    Calls a copy of the launcher in Python, with a function that records in place of the launcher in C.

    Raises:
        ValueError: if it is given anything unexpected.
    """
    launcher, calls = copy.copy(compiled.run), []
    launch, launcher.launch = launcher.launch, lambda *given: calls.append(given)
    stream, no_hooks = object(), (None, None, None)
    launcher(*grid, stream, compiled.function, compiled.packed_metadata, *no_hooks, *arguments)
    ((x, y, z, given_stream, *rest),) = calls
    calls.clear()  # the copy may be kept, and must not keep tensors
    packed = isinstance(rest[-1], tuple)  # from Triton 3.7 on all arguments in one
    start = -1 if packed else -len(arguments)
    between, given = tuple(rest[:start]), rest[-1] if packed else rest[start:]
    if (x, y, z) != grid or given_stream is not stream or [*map(id, given)] != [*map(id, arguments)]:
        raise ValueError("unknown order of arguments")
    if any(hasattr(b, "data_ptr") for b in between):
        raise ValueError("scratch memory of one launch")
    return (launch if packed else functools.partial(_unpacked, launch)), between


def _unpacked(launch: Callable[..., None], *given: Any) -> None:
    launch(*given[:-1], *given[-1])
