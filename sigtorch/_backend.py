"""The one place that decides what runs a tensor: the fused kernels, a CPU pass, or the formula in PyTorch's operators."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch._C import DispatchKey, DispatchKeySet, _dispatch_keys
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from sigtorch import _checks

KERNEL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

# Function modes that leave what exists alone, and so do not watch it: a default device is one.
TRANSPARENT_MODES: set[type] = {DeviceContext}

_forced: ContextVar[str | None] = ContextVar("sigtorch_backend", default=None)


def _ordinary(device: str) -> tuple[int, int]:
    """Dispatch keys of a dense tensor of the device, made inside and outside of inference mode."""
    inference = DispatchKeySet(getattr(DispatchKey, device)) | DispatchKeySet(getattr(DispatchKey, "Autocast" + device))
    autograd = DispatchKeySet(DispatchKey.ADInplaceOrView) | DispatchKeySet(getattr(DispatchKey, "Autograd" + device))
    return inference.raw_repr(), (inference | autograd).raw_repr()


# Any other key means a bit, a layout or a wrapper that a kernel over plain memory would not see.
_ORDINARY = frozenset(_ordinary("CPU") + _ordinary("CUDA"))
_SAVEABLE = frozenset(
    _ordinary(device)[1] for device in ("CPU", "CUDA")
)  # for a backward pass: made in no inference mode


def plain(*tensors: torch.Tensor) -> bool:
    """Whether these are dense CPU or CUDA tensors that nothing but autograd watches."""
    if torch.compiler.is_compiling():  # first: Dynamo traces what follows, and refuses a ContextVar under fullgraph
        return False
    ordinary = _SAVEABLE if torch.is_grad_enabled() else _ORDINARY
    for t in tensors:
        if type(t) is not torch.Tensor and type(t) is not torch.nn.Parameter:
            return False
        if _dispatch_keys(t).raw_repr() not in ordinary:
            return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or (torch._C._len_torch_function_stack() and _function_modes_watch())
    )


def _function_modes_watch() -> bool:
    return any(type(mode) not in TRANSPARENT_MODES for mode in torch.overrides._get_current_function_mode_stack())


def select(*tensors: torch.Tensor, cpu_pass: bool = False) -> str:
    """What runs an op on these: "triton", "cpu" (only where the op has a CPU pass) or "formula"."""
    return select_plain(*tensors, cpu_pass=cpu_pass) if plain(*tensors) else "formula"


def select_plain(*tensors: torch.Tensor, cpu_pass: bool = False) -> str:
    """The same for tensors known to be plain."""
    choice = _choice()
    if choice == "aten":
        return "formula"
    if len(tensors) > 1 and not _alike(tensors):
        return "formula"
    if choice == "triton":
        _require_kernels(tensors)
        return "triton"
    if not tensors[0].is_cuda:
        return "cpu" if cpu_pass else "formula"
    if all(t.dtype in KERNEL_DTYPES for t in tensors) and _kernels_compile_for(tensors[0].get_device()):
        return "triton"
    return "formula"


def _alike(tensors: tuple[torch.Tensor, ...]) -> bool:
    """On one device, and all of them float64 or none: a kernel computes in one or the other."""
    device, double = tensors[0].device, tensors[0].dtype == torch.float64
    return all(t.device == device and (t.dtype == torch.float64) == double for t in tensors)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose what runs sigtorch's operations inside the ``with`` block, or the decorated function.

    Holds for the current thread and asyncio task. A backward pass runs what its forward chose, on whatever thread.
    The environment variable ``SIGTORCH_BACKEND``, read once, by the first operation, sets the choice everywhere else.

    Args:
        name: ``"auto"``, the fused kernels for CUDA tensors they take, and PyTorch's operators for all else;
            ``"triton"``, the kernels for every shape and gradient they fuse, and an error for a dtype or device that they
            don't take (CPU tensors are taken where Triton reaches them, as its interpreter does); ``"aten"``, PyTorch's
            operators for everything. Compiled, traced or transformed code and tensor subclasses always run PyTorch's.

    Raises:
        ValueError: for any other name.
    """
    name = _checks.backend(name, "use_backend()")
    if torch.compiler.is_compiling():  # which runs PyTorch's in any case
        yield
        return
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


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


def _choice() -> str:
    return _forced.get() or _named()


@functools.cache
def _named() -> str:
    named = os.environ.get("SIGTORCH_BACKEND")
    return _checks.backend(named, "the variable SIGTORCH_BACKEND") if named else "auto"


@functools.cache
def _triton_missing() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def _kernels_compile_for(index: int) -> bool:
    """Triton's own floor is compute capability 8.0; ROCm builds call their devices CUDA too."""
    return torch.version.hip is None and _triton_missing() is None and torch.cuda.get_device_capability(index) >= (8, 0)


def _require_kernels(tensors: tuple[torch.Tensor, ...]) -> None:
    missing = _triton_missing()
    if missing is not None:
        raise _checks.triton_missing(missing)
    for t in tensors:
        if t.dtype not in KERNEL_DTYPES:
            raise _checks.triton_dtype(t.dtype, KERNEL_DTYPES)
        if not _reaches(t.device):
            raise _checks.triton_device(t.device)


def _reaches(device: torch.device) -> bool:
    import triton

    if triton.knobs.runtime.interpret:
        return True
    try:
        return bool(triton.runtime.driver.active.get_active_torch_device().type == device.type)
    except RuntimeError:  # no driver at all
        return False
