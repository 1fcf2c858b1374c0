"""Diverts functions of PyTorch and torchvision to sigtorch within a block."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sigtorch import _backend, _checks, _eligible
from sigtorch._autograd import marked
from sigtorch._checks import Reduction, Save
from sigtorch.ops import gates, losses, sigmoid
from sigtorch.ops.losses.checks import pytorch_takes, torchvision_takes


def _sigmoid(input: torch.Tensor, *, out: torch.Tensor | None = None, save: Save) -> torch.Tensor:
    return sigmoid.sigmoid(input, save=save) if out is None else torch.sigmoid(input, out=out)


def _glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return gates.glu(input, dim)


def _bce(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    if size_average is None and reduce is None and pytorch_takes(input, target, weight, reduction, pos_weight):
        return losses.binary_cross_entropy_with_logits(
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        )
    return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)


_REPLACEMENTS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.sigmoid: _sigmoid,
    torch.Tensor.sigmoid: _sigmoid,
    torch.special.expit: _sigmoid,
    F.sigmoid: _sigmoid,
    F.glu: _glu,
    F.binary_cross_entropy_with_logits: _bce,
}


class _Divert(TorchFunctionMode):
    """Diverts the calls of its thread, as every function mode does, but not those that the replacements make."""

    def __init__(self, save: Save) -> None:
        super().__init__()
        self.save = save

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function, kwargs = _REPLACEMENTS.get(func, func), kwargs or {}
        return function(*args, **kwargs, save=self.save) if function is _sigmoid else function(*args, **kwargs)


class _FocalDiversion:
    """Diverts torchvision's focal loss, which is plain Python and which no function mode sees.

    While a block is active, the function has the code of :func:`_diverted_focal_loss`, so that it is diverted under every name
    that holds it. In threads outside of a block it calls the original code.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.function: Any = None  # torchvision's, while its code is replaced
        self.original: Any = None  # a function with its original code

    def __enter__(self) -> None:
        with self.lock:
            self.blocks += 1
            function = getattr(sys.modules.get("torchvision.ops.focal_loss"), "sigmoid_focal_loss", None)
            if self.function is not None or not inspect.isfunction(function):
                return
            if _parameters(function) == _parameters(_diverted_focal_loss) and not function.__closure__:
                self.original = types.FunctionType(function.__code__, function.__globals__, function.__name__)
                self.function, function.__code__ = function, _diverted_focal_loss.__code__

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.blocks -= 1
            if self.blocks == 0 and self.function is not None:
                self.function.__code__, self.function = self.original.__code__, None

    def call(self, inputs: Any, targets: Any, alpha: Any, gamma: Any, reduction: Any) -> Any:
        """Computes sigtorch's loss if this thread is in a block and both libraries take the arguments, else torchvision's."""
        modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if (
            any(isinstance(mode, _Divert) for mode in modes)
            and pytorch_takes(inputs, targets, None, reduction, None)
            and torchvision_takes(alpha, gamma)
        ):
            inputs = marked(inputs, "patched_functions")  # torchvision saves tensors of the same shapes
            return losses.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
        return self.original(inputs, targets, alpha, gamma, reduction)


def _diverted_focal_loss(inputs: Any, targets: Any, alpha: Any, gamma: Any, reduction: Any) -> Any:
    from sigtorch.plugin.functions import focal_diversion  # this code runs with torchvision's globals

    return focal_diversion.call(inputs, targets, alpha, gamma, reduction)


def _parameters(function: Any) -> tuple[str, ...]:
    return function.__code__.co_varnames[: function.__code__.co_argcount]  # type: ignore[no-any-return]


focal_diversion = _FocalDiversion()
_eligible.TRANSPARENT_MODES.add(_Divert)
_eligible.DIVERTING_MODES.add(_Divert)


class _Block(_backend.Block):
    """The context manager and decorator that diverts functions."""

    where = "patched_functions()"

    def __init__(self, save: Save) -> None:
        self.save = save
        self.modes: contextlib.ExitStack | None = None

    def __enter__(self) -> None:
        if self.modes is not None:
            raise _checks.error_entered_twice(self.where)
        self.modes = contextlib.ExitStack()
        self.modes.enter_context(focal_diversion)
        self.modes.enter_context(_Divert(self.save))

    def __exit__(self, *exception: Any) -> None:
        if self.modes is not None:
            self.modes.__exit__(*exception)

    def anew(self) -> AbstractContextManager[None]:
        return patched_functions(save=self.save)


@contextlib.contextmanager
def _compiled_block(save: Save) -> Iterator[None]:
    """Diverts functions in compiled code, torchvision's excepted; Dynamo in torch 2.8 traces only generators as blocks."""
    with _Divert(save):
        yield


def patched_functions(*, save: Save = "output") -> _Block:
    """Makes PyTorch's sigmoid functions call sigtorch, inside the ``with`` block or the decorated function.

    The functions are :func:`torch.sigmoid`, :meth:`torch.Tensor.sigmoid`, :func:`torch.nn.functional.sigmoid`,
    :func:`torch.special.expit`, :func:`torch.nn.functional.glu`,
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`, and torchvision's ``sigmoid_focal_loss`` if torchvision is
    imported by then. They are diverted in all code that this thread runs in the block, under every name that they have.
    Blocks nest; the inner one's ``save`` holds. An exception passes through, and PyTorch's functions are restored.

    Some calls run as without the block: ``sigmoid_``, ``out=``, the legacy ``size_average`` and ``reduce``, and all arguments
    that PyTorch's or torchvision's function refuses, such as class indices.

    The block works under :func:`torch.compile`, too. The focal loss is diverted only if the block is around the compiled call,
    not in it.

    Each PyTorch call in the block takes some microseconds more, as under any function mode. Where a model's modules can be
    swapped, use :func:`sigtorch.patch` instead. Use it with non-reentrant checkpoints, too: PyTorch runs backward, and with it
    a checkpoint's recomputation, outside of the block. A difference to the forward pass then raises an error.

    Args:
        save: the tensor that diverted sigmoids keep for backward, ``"output"`` or ``"input"``, as in
            :func:`sigtorch.sigmoid`.

    Returns:
        A context manager that is also a decorator.

    Raises:
        ValueError: ``save`` is unknown.
        TypeError: it decorates a coroutine function or a generator function, whose body runs after the call.

    Example:
        >>> x = torch.tensor([10.0], dtype=torch.bfloat16, requires_grad=True)
        >>> with sigtorch.patched_functions(save="input"):
        ...     torch.sigmoid(x).sum().backward()
        >>> x.grad
        tensor([4.5300e-05], dtype=torch.bfloat16)
    """
    _checks.check_save("patched_functions()", save)
    return _compiled_block(save) if torch.compiler.is_compiling() else _Block(save)  # type: ignore[return-value]
