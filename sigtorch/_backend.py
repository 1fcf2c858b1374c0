"""The choice of what runs a tensor: the fused kernels, a CPU pass, an operator for either, or the formula."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar, Token
from typing import Any, Literal, TypeVar

import torch
from torch._C import _get_obj_in_tls, _is_key_in_tls

from sigtorch import _checks
from sigtorch._checks import Backend
from sigtorch._eligible import (
    PLAIN_TYPES,
    constant_in_graphs,
    exported_or_transformed,
    have_plain_keys,
    observed,
    reporting,
    transformed,
)
from sigtorch._once import once

KERNEL_DTYPES = frozenset(_checks.FLOATS)
CAPABILITY = (8, 0)  # Triton's own minimum

# What runs an operation: "triton" its kernels, "cpu" a pass over CPU tensors, "aten" its formula in PyTorch's operators.
# Under a dispatch mode "operator" stands for the first two: the autograd Function calls them by an operator of torch.library.
# "compiled" is for code that Dynamo traces, which calls that operator itself.
Runner = Literal["triton", "cpu", "aten", "operator", "compiled"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_innermost: ContextVar[_Block | None] = ContextVar("sigtorch_backend", default=None)


def select(
    *tensors: torch.Tensor, beside: Sequence[torch.Tensor] = (), cpu_pass: bool = False, opaque: bool = False
) -> Runner:
    """Chooses what runs an operation on these tensors; during a report, for CPU tensors what would run them on CUDA.

    Args:
        tensors: dense tensors of one device.
        beside: tensors of the same device and any dtype, such as class indices.
        cpu_pass: whether the operation has a pass over CPU tensors; "cpu" is chosen for no other.
        opaque: whether compiled code takes the operator; "compiled" is chosen for no other, since a compiler fuses a formula.
    """
    if torch.compiler.is_compiling():  # before a ContextVar is read, which Dynamo refuses under fullgraph
        return _select_compiled((*tensors, *beside), [t.dtype for t in tensors], cpu_pass) if opaque else "aten"
    choice = chosen()
    on_cuda = getattr(tensors[0], "is_cuda", False) is True
    if choice == "aten" or (choice == "auto" and not cpu_pass and not on_cuda and reporting() is None):
        return "aten"  # under any mode
    if not have_plain_keys((*tensors, *beside) if beside else tensors) or transformed():
        return "aten"
    device = tensors[0].get_device()
    for t in beside:
        if t.get_device() != device:
            return "aten"
    kinds: list[Any] = [choice, device]
    for t in tensors:
        if t.get_device() != device:
            return "aten"
        kinds.append(t.dtype)
    if choice == "auto" and device < 0 and not cpu_pass:  # a report asks
        return "operator" if kernels_take([t.dtype for t in tensors]) else "aten"
    runner = _select_cached(*kinds)
    return "operator" if observed() and runner != "aten" else runner


def _select_compiled(tensors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], cpu_pass: bool) -> Runner:
    """Chooses for code that Dynamo traces, by SIGTORCH_BACKEND alone; exported and transformed code gets the formula."""
    if exported_or_transformed():
        return "aten"
    device = tensors[0].get_device()
    for t in tensors:
        if type(t) not in PLAIN_TYPES or t.layout != torch.strided or t.get_device() != device:
            return "aten"
    return _select_constant(device, cpu_pass, *dtypes)


@constant_in_graphs
def _select_constant(index: int, cpu_pass: bool, *dtypes: torch.dtype) -> Runner:
    choice = _named_by_variable()
    if choice == "aten" or (choice == "auto" and index < 0 and not cpu_pass):
        return "aten"
    return "aten" if _select_cached(choice, index, *dtypes) == "aten" else "compiled"


@once
def _select_cached(choice: Backend, index: int, *dtypes: torch.dtype) -> Runner:
    """Chooses by dtypes and device: a CUDA device, or the CPU for the index -1."""
    if _are_mixed(dtypes):
        return "aten"
    if choice == "triton":
        _require_kernels(index, dtypes)
        return "triton"
    if index < 0:
        return "cpu"
    return "triton" if kernels_take(dtypes) and _triton_works_on(index) else "aten"


def kernels_take(dtypes: Sequence[torch.dtype]) -> bool:
    """Tells whether a kernel computes with tensors of these dtypes."""
    return KERNEL_DTYPES.issuperset(dtypes) and not _are_mixed(dtypes)


def _are_mixed(dtypes: Sequence[torch.dtype]) -> bool:
    """Tells whether some but not all are float64: a kernel computes in float64 or in float32."""
    return 0 < dtypes.count(torch.float64) < len(dtypes)


def kernels_chosen() -> bool:
    """Tells whether the kernels were chosen for tensors of any device, in compiled code by SIGTORCH_BACKEND alone.

    During a report they are, for CPU tensors as for those of a CUDA device.
    """
    if torch.compiler.is_compiling():
        return _compiled_choice() == "triton"
    choice = chosen()
    return choice == "triton" or (choice == "auto" and reporting() is not None)


def kernels_run_on(t: torch.Tensor) -> bool:
    """Tells in eager code whether kernels run on a tensor's device, for dtypes that they take; during a report, on CUDA."""
    choice = chosen()
    if (choice == "auto" and not t.is_cuda) or observed():
        return choice != "aten" and reporting() is not None
    return choice == "triton" or (choice == "auto" and _triton_works_on(t.get_device()))


@constant_in_graphs
def _compiled_choice() -> Backend:
    return _named_by_variable()


def chosen() -> Backend:
    """Returns the backend in force."""
    block = _innermost.get()
    if block is None and not _is_key_in_tls("context"):  # the usual case
        return _named_by_variable()
    return _named_by(block) or _named_by_caller() or _named_by_variable()


def _named_by(block: _Block | None) -> Backend | None:
    """The choice of a block, or of the innermost one around it that has not been left."""
    if block is not None and not block.holds:
        block = _live(block)
    return None if block is None else block.name


def _live(block: _Block | None) -> _Block | None:
    while block is not None and not block.holds:
        block = block.outer
    return block


def _named_by_caller() -> Backend | None:
    """The choice of the thread that called backward: PyTorch runs it in threads of its own, for a GPU.

    Newer releases hand these the caller's context under this name; 2.11 does not.
    """
    context = _get_obj_in_tls("context") if _is_key_in_tls("context") else None
    return _named_by(context.get(_innermost)) if isinstance(context, Context) else None


class Block(AbstractContextManager[None]):
    """A block of a ``with`` statement, entered once, that also decorates functions: each call enters one of its own."""

    where: str

    def anew(self) -> AbstractContextManager[None]:
        """Returns another block, not entered yet."""
        raise NotImplementedError

    def __call__(self, function: Decorated) -> Decorated:
        _checks.check_decorated(self.where, function)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self.anew():
                return function(*args, **kwargs)

        return called  # type: ignore[return-value]


class _Block(Block):
    """A block in which a choice holds.

    Leaving it restores the variable, so that tasks started inside keep the choice. The variable cannot be restored if a
    generator is closed in another context, or if blocks are left out of order: the block is then marked, and passed over.
    """

    where = "use_backend()"

    def __init__(self, name: Backend) -> None:
        self.name = name
        self.holds = True
        self.outer: _Block | None = None
        self.token: Token[_Block | None] | None = None

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():  # compiled code obeys SIGTORCH_BACKEND alone
            return
        if self.token is not None:
            raise _checks.error_entered_twice(self.where)
        self.outer = _live(_innermost.get())
        self.token = _innermost.set(self)

    def __exit__(self, *exception: object) -> None:
        if self.token is None or torch.compiler.is_compiling():
            return
        if _innermost.get() is self:
            try:
                _innermost.reset(self.token)
                return
            except ValueError:  # made in another context
                pass
        self.holds = False

    def anew(self) -> _Block:
        return _Block(self.name)


def use_backend(name: Backend) -> _Block:
    """Chooses what runs sigtorch's operations inside the ``with`` block, or the decorated function.

    The choice holds for the current thread and asyncio task, and for tasks started inside. A backward pass runs what its
    forward chose, on any thread. A checkpoint's recompute uses the backend active when backward is called; for a GPU with
    a PyTorch before 2.14, what the environment variable says. A block in a generator holds for its caller too, until the
    block is left. The environment variable ``SIGTORCH_BACKEND``, read once, by the first operation, sets the choice
    everywhere else.

    Args:
        name: ``"auto"``: the fused kernels for CUDA tensors that they support, PyTorch's operators for all others.
            ``"triton"``: the kernels for every shape and gradient that they fuse, and an error for a dtype or device that
            they do not support; CPU tensors too, if Triton reaches them, as its interpreter does. ``"aten"``: PyTorch's
            operators for everything. Exported, traced or transformed code and tensor subclasses always run these. Compiled
            code obeys the environment variable alone: Dynamo cannot read what a block sets.

    Returns:
        A context manager and decorator.

    Raises:
        ValueError: any other name, at once.
        TypeError: it decorates a coroutine function or a generator function, whose body runs after the call.

    Example:
        >>> x = torch.tensor([0.0])
        >>> with sigtorch.use_backend("aten"):
        ...     sigtorch.backend_of(x), sigtorch.sigmoid(x)
        ('aten', tensor([0.5000]))
    """
    return _Block(_checks.check_backend("use_backend()", name))


def backend_of(tensor: torch.Tensor, *tensors: torch.Tensor) -> Literal["triton", "aten"]:
    """Tells what would run an operation on these tensors here and now, if it fuses their shapes.

    Args:
        tensor: any tensor.
        tensors: the operation's other tensors.

    Returns:
        ``"triton"`` for the fused kernels, ``"aten"`` for PyTorch's operators.

    Raises:
        TypeError, ValueError, RuntimeError: ``"triton"`` is forced and cannot run on these.

    Example:
        >>> with sigtorch.use_backend("auto"):
        ...     sigtorch.backend_of(torch.zeros(3))
        'aten'
    """
    return "triton" if select(tensor, *tensors) == "triton" else "aten"


@once
def _named_by_variable() -> Backend:
    named = os.environ.get("SIGTORCH_BACKEND")
    return _checks.check_backend("the variable SIGTORCH_BACKEND", named) if named else "auto"


@once
def _triton_missing() -> str | None:
    """Returns in one line why Triton, or its parts that kernels use, cannot be imported; None if they can."""
    try:
        import triton  # noqa: F401

        importlib.import_module("sigtorch.kernels._plan")
    except Exception as error:  # a broken Triton raises anything, an old one lacks an attribute
        return _checks.in_a_line(error)
    return None


@once
def _triton_works_on(index: int) -> bool:
    """Tells whether kernels run on a CUDA device; if Triton is installed but fails, a warning says so once."""
    installed = importlib.util.find_spec("triton") is not None
    if torch.version.hip is not None or not installed or torch.cuda.get_device_capability(index) < CAPABILITY:
        return False
    failure = _triton_missing() or _probe(index)
    if failure is not None:
        warnings.warn(_checks.warning_triton_fails(index, failure), RuntimeWarning, stacklevel=2)
    return failure is None


def _probe(index: int) -> str | None:
    """Returns in one line why no kernel compiles and loads on a CUDA device; None if one does."""
    try:
        importlib.import_module("sigtorch.kernels._probe").probe(index)
    except Exception as error:  # no compiler, no headers, no driver, no assembler for the chip: each raises its own
        return _checks.in_a_line(error)
    return None


def _require_kernels(index: int, dtypes: Sequence[torch.dtype]) -> None:
    error = obstacle(index)
    if error is not None:
        raise type(error)(*error.args)  # a new one, for a raised error holds the frames that it passed
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            raise _checks.error_triton_dtype(dtype, KERNEL_DTYPES)


@once
def obstacle(index: int) -> Exception | None:
    """Returns the error if "triton" is forced and cannot run on a device."""
    missing = _triton_missing()
    if missing is not None:
        return _checks.error_triton_missing(missing)
    device = torch.device("cuda", index) if index >= 0 else torch.device("cpu")
    if _interprets_or_stands_in(device.type):
        return None
    if index < 0:
        return _checks.error_triton_device(device)
    if torch.version.hip is not None:
        return _checks.error_triton_on_rocm()
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return _checks.error_triton_capability(device, capability, CAPABILITY)
    failure = _probe(index)
    return _checks.error_triton_fails(index, failure) if failure is not None else None


def _interprets_or_stands_in(kind: str) -> bool:
    """Tells whether Triton's interpreter is on, or its driver takes tensors of another type of device."""
    import triton

    if triton.knobs.runtime.interpret:
        return True
    try:
        return kind != "cuda" and bool(triton.runtime.driver.active.get_active_torch_device().type == kind)
    except Exception:  # no driver, or none that can be built: any error
        return False
