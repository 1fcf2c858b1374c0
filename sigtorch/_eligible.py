"""The rule for which tensors a kernel or a CPU pass may run on: plain tensors, in plain eager mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_is_dispatch_key_excluded,
    _dispatch_tls_is_dispatch_key_included,
    _get_dispatch_mode,
    _get_dispatch_stack_at,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
    _TorchDispatchModeKey,
)
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

F = TypeVar("F", bound=Callable[..., Any])

HALF_DTYPES = (torch.float16, torch.bfloat16)

PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)  # a tuple: Dynamo in torch 2.8 looks into no frozenset

# Dispatch modes under which a tensor has no value, or its value would become a constant.
TRACING_MODES = (_TorchDispatchModeKey.FAKE, _TorchDispatchModeKey.PROXY)

# Function modes that do not watch what existing tensors do: a default device is one.
TRANSPARENT_MODES: set[type] = {DeviceContext}

# Dispatch modes that report what would run without them.
REPORTING_MODES: set[type] = set()

# Function modes that send torch.sigmoid here.
DIVERTING_MODES: set[type] = set()


def _plain_keys(device: str) -> tuple[int, int]:
    """Dispatch keys of a dense tensor of the device, made inside and outside of inference mode."""
    inference = DispatchKeySet(getattr(DispatchKey, device)) | DispatchKeySet(getattr(DispatchKey, "Autocast" + device))
    autograd = DispatchKeySet(DispatchKey.ADInplaceOrView) | DispatchKeySet(getattr(DispatchKey, "Autograd" + device))
    return inference.raw_repr(), (inference | autograd).raw_repr()


# Any other key means a bit, a layout or a wrapper that a kernel over plain memory would not see.
_PLAIN_KEYS = frozenset(_plain_keys("CPU") + _plain_keys("CUDA"))
# A backward pass may save these: made in no inference mode.
_SAVEABLE_KEYS = frozenset(_plain_keys(device)[1] for device in ("CPU", "CUDA"))


def plain(*tensors: torch.Tensor) -> bool:
    """Tells whether these are dense CPU or CUDA tensors that nothing but autograd watches."""
    # First, for Dynamo cannot trace the rest.
    return not torch.compiler.is_compiling() and have_plain_keys(tensors) and unwatched()


def have_plain_keys(tensors: Sequence[torch.Tensor]) -> bool:
    """Tells whether these are dense CPU or CUDA tensors, which a backward pass may save if autograd is on."""
    keys = _SAVEABLE_KEYS if torch.is_grad_enabled() else _PLAIN_KEYS
    for t in tensors:  # noqa: SIM110, a generator costs more
        if type(t) not in PLAIN_TYPES or _dispatch_keys(t).raw_repr() not in keys:
            return False
    return True


def unwatched() -> bool:
    """Tells whether no mode, transform, level of forward-mode AD or tracer is active."""
    return not (observed() or transformed())


def observed() -> bool:
    """Tells whether a dispatch mode sees the operators that run, such as a selective checkpoint's or a FLOP counter."""
    # A mode sees nothing where its dispatch is switched off.
    return _len_torch_dispatch_stack() > 0 and not _dispatch_tls_is_dispatch_key_excluded(DispatchKey.Python)


def reporting() -> Any:
    """Returns the mode that reports what runs here, if no other dispatch mode sees that; else None."""
    if _len_torch_dispatch_stack() != 1 or _dispatch_tls_is_dispatch_key_excluded(DispatchKey.Python):
        return None
    mode = _get_dispatch_stack_at(0)
    return mode if type(mode) in REPORTING_MODES else None


def transformed() -> bool:
    """Tells whether a transform, a level of forward-mode AD, a tracer or a function mode is active.

    ``make_fx`` enters a function mode; other tracers wrap their tensors, which are then not plain.
    """
    return (
        peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _get_tracing_state() is not None
        or (_len_torch_function_stack() > 0 and _function_modes_watch())
    )


def _function_modes_watch() -> bool:
    return any(type(mode) not in TRANSPARENT_MODES for mode in torch.overrides._get_current_function_mode_stack())


def constant_in_graphs(function: F) -> F:
    """Decorates a function that Dynamo calls while it traces: its answer is a constant of the graph.

    As ``torch.compiler.assume_constant_result`` does, which imports Dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def exported_or_transformed() -> bool:
    """Tells whether code that Dynamo traces is exported, or traced within a transform of torch.func."""
    return torch.compiler._is_exporting_flag or peek_interpreter_stack() is not None


def readable(t: torch.Tensor) -> bool:
    """Tells whether a tensor's value can be read: dense, and not transformed, traced or differentiated forward.

    Observing modes, such as a FLOP counter, do not count: they must not change what a loss saves.
    """
    return (
        not torch.compiler.is_compiling()
        and type(t) in PLAIN_TYPES
        and _dispatch_keys(t).raw_repr() in _PLAIN_KEYS
        and _get_tracing_state() is None
        and not any(map(_get_dispatch_mode, TRACING_MODES))
        and not _dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)  # active while one more tracer works
        and (forward_ad._current_level < 0 or forward_ad.unpack_dual(t).tangent is None)
    )


def on_cpu(*tensors: Any) -> bool:
    """Tells whether these are CPU tensors of plain types in eager code, under any mode, or in compiled code."""
    if torch.compiler.is_compiling() and exported_or_transformed():
        return False
    for t in tensors:  # noqa: SIM110, a generator costs more
        if type(t) not in PLAIN_TYPES or not t.is_cpu:
            return False
    return True


def autocasts(device: str) -> bool:
    """Tells whether autocast is on for a type of device; it cannot be asked for one that it does not know, such as meta."""
    return knows_autocast(device) and torch.is_autocast_enabled(device)


def knows_autocast(device: str) -> bool:
    """Tells whether autocast knows a type of device. Dynamo in torch 2.8 cannot trace the question, needless for these two."""
    return device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)


def aten_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Computes torch.sigmoid, never diverted here: the caller of an operation of ours has chosen what it saves."""
    if type(x) in PLAIN_TYPES and (torch.compiler.is_compiling() or (_len_torch_function_stack() and _is_diverted())):
        return torch.ops.aten.sigmoid.default(x)
    return torch.sigmoid(x)


def _is_diverted() -> bool:
    return any(type(mode) in DIVERTING_MODES for mode in torch.overrides._get_current_function_mode_stack())
