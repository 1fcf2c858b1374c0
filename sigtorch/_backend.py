"""The one place that decides what runs a tensor: the fused kernels, a CPU pass, or the formula in PyTorch's operators."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar, Token
from typing import Any, TypeVar

import torch
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_is_dispatch_key_included,
    _get_dispatch_mode,
    _get_obj_in_tls,
    _get_tracing_state,
    _is_key_in_tls,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
    _TorchDispatchModeKey,
)
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from sigtorch import _checks
from sigtorch._once import once

HALF_DTYPES = (torch.float16, torch.bfloat16)
KERNEL_DTYPES = frozenset(_checks.FLOATS)

PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)  # a tuple: Dynamo in torch 2.8 looks into no frozenset

CAPABILITY = (8, 0)  # Triton's own floor

# Dispatch modes under which a value is none, or would be taken for a constant.
TRACING_MODES = (_TorchDispatchModeKey.FAKE, _TorchDispatchModeKey.PROXY)

# Function modes that leave what exists alone, and so do not watch it: a default device is one.
TRANSPARENT_MODES: set[type] = {DeviceContext}

# Function modes that send torch.sigmoid here.
DIVERTING_MODES: set[type] = set()

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_innermost: ContextVar[_Block | None] = ContextVar("sigtorch_backend", default=None)


def _ordinary(device: str) -> tuple[int, int]:
    """Dispatch keys of a dense tensor of the device, made inside and outside of inference mode."""
    inference = DispatchKeySet(getattr(DispatchKey, device)) | DispatchKeySet(getattr(DispatchKey, "Autocast" + device))
    autograd = DispatchKeySet(DispatchKey.ADInplaceOrView) | DispatchKeySet(getattr(DispatchKey, "Autograd" + device))
    return inference.raw_repr(), (inference | autograd).raw_repr()


# Any other key means a bit, a layout or a wrapper that a kernel over plain memory would not see.
_ORDINARY = frozenset(_ordinary("CPU") + _ordinary("CUDA"))
# What a backward pass may save: made in no inference mode.
_SAVEABLE = frozenset(_ordinary(device)[1] for device in ("CPU", "CUDA"))


def plain(*tensors: torch.Tensor) -> bool:
    """Whether these are dense CPU or CUDA tensors that nothing but autograd watches."""
    # First: Dynamo traces what follows, and refuses a ContextVar under fullgraph.
    return not torch.compiler.is_compiling() and _ordinary_tensors(tensors) and unwatched()


def _ordinary_tensors(tensors: Sequence[torch.Tensor]) -> bool:
    ordinary = _SAVEABLE if torch.is_grad_enabled() else _ORDINARY
    for t in tensors:  # noqa: SIM110, a generator costs more
        if type(t) not in PLAIN_TYPES or _dispatch_keys(t).raw_repr() not in ordinary:
            return False
    return True


def unwatched() -> bool:
    """Whether no mode, transform, level of forward-mode AD or tracer is at work."""
    return not (
        _len_torch_dispatch_stack()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _get_tracing_state() is not None
        or (_len_torch_function_stack() and _function_modes_watch())
    )


def _function_modes_watch() -> bool:
    return any(type(mode) not in TRANSPARENT_MODES for mode in torch.overrides._get_current_function_mode_stack())


def readable(t: torch.Tensor) -> bool:
    """Whether the value of a tensor can be looked at: a dense one's that nothing transforms, traces or differentiates forward.

    Who merely watches, such as a counter of operations, is in nobody's way: that must not change what a loss saves.
    """
    return (
        not torch.compiler.is_compiling()
        and type(t) in PLAIN_TYPES
        and _dispatch_keys(t).raw_repr() in _ORDINARY
        and _get_tracing_state() is None
        and not any(map(_get_dispatch_mode, TRACING_MODES))
        and not _dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)  # of one more that traces
        and (forward_ad._current_level < 0 or forward_ad.unpack_dual(t).tangent is None)
    )


def aten_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """torch.sigmoid, in a way that is not diverted: who asked for an operation of ours has said what it saves."""
    if type(x) in PLAIN_TYPES and (torch.compiler.is_compiling() or (_len_torch_function_stack() and _diverted())):
        return torch.ops.aten.sigmoid.default(x)
    return torch.sigmoid(x)


def _diverted() -> bool:
    return any(type(mode) in DIVERTING_MODES for mode in torch.overrides._get_current_function_mode_stack())


def select(*tensors: torch.Tensor, beside: Sequence[torch.Tensor] = (), cpu_pass: bool = False) -> str:
    """Choose what runs an op on these: "triton", "cpu" (only where the op has a CPU pass) or "formula".

    Tensors beside them, such as class indices, may be of any dtype.
    """
    if torch.compiler.is_compiling():  # before a ContextVar is read, which Dynamo refuses under fullgraph
        return "formula"
    choice = chosen()
    if choice == "aten" or (choice == "auto" and not cpu_pass and getattr(tensors[0], "is_cuda", False) is not True):
        return "formula"  # whatever watches
    if not _ordinary_tensors((*tensors, *beside) if beside else tensors) or not unwatched():
        return "formula"
    device = tensors[0].get_device()
    for t in beside:
        if t.get_device() != device:
            return "formula"
    kinds: list[Any] = [choice, device]
    for t in tensors:
        if t.get_device() != device:
            return "formula"
        kinds.append(t.dtype)
    return _runs(*kinds)


@once
def _runs(choice: str, index: int, *dtypes: torch.dtype) -> str:
    """Choose by dtypes and device, a CUDA device or, by the index -1, the CPU."""
    if 0 < dtypes.count(torch.float64) < len(dtypes):
        return "formula"  # a kernel computes in float64 or in float32
    if choice == "triton":
        _require_kernels(index, dtypes)
        return "triton"
    if index < 0:
        return "cpu"
    return "triton" if KERNEL_DTYPES.issuperset(dtypes) and _runs_on(index) else "formula"


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device; of one that it does not know, as meta, it cannot be asked."""
    return knows_autocast(device) and torch.is_autocast_enabled(device)


def knows_autocast(device: str) -> bool:
    """Whether autocast knows a type of device; Dynamo in torch 2.8 cannot trace the question, which these two do not need."""
    return device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)


def on_cpu(*tensors: Any) -> bool:
    """Whether these are plain CPU tensors that eager code is given, whoever watches."""
    if torch.compiler.is_compiling():
        return False
    for t in tensors:  # noqa: SIM110, a generator costs more
        if type(t) not in PLAIN_TYPES or not t.is_cpu:
            return False
    return True


def kernels_chosen() -> bool:
    """Whether the kernels were chosen, for tensors of any device."""
    return chosen() == "triton"


def chosen() -> str:
    """The choice that holds here."""
    return _named_by(_innermost.get()) or _callers() or _named()


def _named_by(block: _Block | None) -> str | None:
    """The choice of a block, or of the innermost one around it that has not been left."""
    if block is not None and not block.holds:
        block = _live(block)
    return None if block is None else block.name


def _live(block: _Block | None) -> _Block | None:
    while block is not None and not block.holds:
        block = block.outer
    return block


def _callers() -> str | None:
    """The choice of the thread that called backward, where PyTorch does it in threads of its own, as for a GPU.

    Newer releases hand them the caller's context under this name; 2.11 does not.
    """
    context = _get_obj_in_tls("context") if _is_key_in_tls("context") else None
    return _named_by(context.get(_innermost)) if isinstance(context, Context) else None


class Block(AbstractContextManager[None]):
    """A block of a ``with`` statement, entered once, that also decorates functions: each call enters one of its own."""

    where: str

    def anew(self) -> AbstractContextManager[None]:
        """Another block, not entered yet."""
        raise NotImplementedError

    def __call__(self, function: Decorated) -> Decorated:
        _checks.decorated(self.where, function)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self.anew():
                return function(*args, **kwargs)

        return called  # type: ignore[return-value]


class _Block(Block):
    """A block in which a choice holds.

    Leaving it restores the variable, so that tasks started inside keep the choice. That cannot be where a generator is closed
    in another context, or blocks are left out of order: there the block holds no longer, and is passed over.
    """

    where = "use_backend()"

    def __init__(self, name: str) -> None:
        self.name = name
        self.holds = True
        self.outer: _Block | None = None
        self.token: Token[_Block | None] | None = None

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():  # which runs PyTorch's in any case
            return
        if self.token is not None:
            raise _checks.entered_twice(self.where)
        self.outer = _live(_innermost.get())
        self.token = _innermost.set(self)

    def __exit__(self, *exception: object) -> None:
        if self.token is None or torch.compiler.is_compiling():
            return
        if _innermost.get() is self:
            try:
                _innermost.reset(self.token)
                return
            except ValueError:  # of another context
                pass
        self.holds = False

    def anew(self) -> _Block:
        return _Block(self.name)


def use_backend(name: str) -> _Block:
    """Choose what runs sigtorch's operations inside the ``with`` block, or the decorated function.

    Holds for the current thread and asyncio task, and for tasks started inside. A backward pass runs what its forward chose,
    on whatever thread. What a checkpoint recomputes for a GPU runs what holds where backward is called; with a PyTorch before
    2.14, what the environment variable says. A block in a generator holds for its caller too, until the block is left.
    The environment variable ``SIGTORCH_BACKEND``, read once, by the first operation, sets the choice everywhere else.

    Args:
        name: ``"auto"``, the fused kernels for CUDA tensors they take, and PyTorch's operators for all else;
            ``"triton"``, the kernels for every shape and gradient they fuse, and an error for a dtype or device that they
            don't take (CPU tensors are taken where Triton reaches them, as its interpreter does); ``"aten"``, PyTorch's
            operators for everything. Compiled, traced or transformed code and tensor subclasses always run PyTorch's.

    Returns:
        A context manager and decorator.

    Raises:
        ValueError: for any other name, at once.
        TypeError: where it decorates a coroutine function or a generator function, whose body runs after the call.

    Example:
        >>> with sigtorch.use_backend("aten"):
        ...     y = sigtorch.sigmoid(x)
    """
    return _Block(_checks.backend(name, "use_backend()"))


def backend_of(tensor: torch.Tensor, *tensors: torch.Tensor) -> str:
    """Tell what would run an operation on these tensors here and now, if it fuses their shapes.

    Args:
        tensor: of any kind.
        tensors: what else the operation is given.

    Returns:
        ``"triton"`` for the fused kernels, ``"aten"`` for PyTorch's operators.

    Raises:
        TypeError, ValueError, RuntimeError: where ``"triton"`` is forced and cannot be.
    """
    return "triton" if select(tensor, *tensors) == "triton" else "aten"


@once
def _named() -> str:
    named = os.environ.get("SIGTORCH_BACKEND")
    return _checks.backend(named, "the variable SIGTORCH_BACKEND") if named else "auto"


@once
def _triton_missing() -> str | None:
    """Why Triton, or what kernels take of it, cannot be imported, in a line."""
    try:
        import triton  # noqa: F401

        importlib.import_module("sigtorch.kernels._plan")
    except Exception as error:  # a broken one raises anything, one that is too old lacks an attribute
        return _checks.in_a_line(error)
    return None


@once
def _runs_on(index: int) -> bool:
    """Whether kernels run on a CUDA device; where Triton is there but fails, a warning says so once."""
    installed = importlib.util.find_spec("triton") is not None
    if torch.version.hip is not None or not installed or torch.cuda.get_device_capability(index) < CAPABILITY:
        return False
    failure = _triton_missing() or _probe(index)
    if failure is not None:
        warnings.warn(_checks.triton_fails(index, failure), RuntimeWarning, stacklevel=2)
    return failure is None


def _probe(index: int) -> str | None:
    """Why no kernel compiles and loads on a CUDA device, in a line; None where one does."""
    try:
        importlib.import_module("sigtorch.kernels._probe").probe(index)
    except Exception as error:  # no compiler, no headers, no driver, no assembler for the chip: each raises its own
        return _checks.in_a_line(error)
    return None


def _require_kernels(index: int, dtypes: Sequence[torch.dtype]) -> None:
    error = _obstacle(index)
    if error is not None:
        raise type(error)(*error.args)  # a new one, for a raised error holds the frames that it passed
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            raise _checks.triton_dtype(dtype, KERNEL_DTYPES)


@once
def _obstacle(index: int) -> Exception | None:
    """The error where "triton" is forced and cannot run on a device."""
    missing = _triton_missing()
    if missing is not None:
        return _checks.triton_missing(missing)
    device = torch.device("cuda", index) if index >= 0 else torch.device("cpu")
    if _interprets_or_stands_in(device.type):
        return None
    if index < 0:
        return _checks.triton_device(device)
    if torch.version.hip is not None:
        return _checks.triton_on_rocm()
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return _checks.triton_capability(device, capability, CAPABILITY)
    failure = _probe(index)
    return RuntimeError(_checks.triton_fails(index, failure, forced=True)) if failure is not None else None


def _interprets_or_stands_in(kind: str) -> bool:
    """Whether Triton's interpreter is on, or its driver is one that takes tensors of another kind of device."""
    import triton

    if triton.knobs.runtime.interpret:
        return True
    try:
        return kind != "cuda" and bool(triton.runtime.driver.active.get_active_torch_device().type == kind)
    except Exception:  # no driver, or none that can be built: of whatever kind
        return False
