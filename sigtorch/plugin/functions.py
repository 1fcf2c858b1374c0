"""Functions of PyTorch's and torchvision's, diverted within a block."""

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


_DIVERTED: dict[Any, Callable[..., torch.Tensor]] = {
    torch.sigmoid: _sigmoid,
    torch.Tensor.sigmoid: _sigmoid,
    torch.special.expit: _sigmoid,
    F.sigmoid: _sigmoid,
    F.glu: _glu,
    F.binary_cross_entropy_with_logits: _bce,
}


class _Divert(TorchFunctionMode):
    """Diverts the calls of its thread, like every function mode; not those that its own functions make."""

    def __init__(self, save: Save) -> None:
        super().__init__()
        self.save = save

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours, kwargs = _DIVERTED.get(func, func), kwargs or {}
        return ours(*args, **kwargs, save=self.save) if ours is _sigmoid else ours(*args, **kwargs)


class _Focal:
    """torchvision's focal loss is plain Python, which no mode sees: while in use, its code asks for the mode.

    Whoever holds the function, under whatever name, calls that code. Other threads, in no such block, get torchvision's.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.function: Any = None
        self.original: Any = None

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            function = getattr(sys.modules.get("torchvision.ops.focal_loss"), "sigmoid_focal_loss", None)
            if self.function is not None or not inspect.isfunction(function):
                return
            if _arguments(function) == _arguments(_asking) and not function.__closure__:
                self.original = types.FunctionType(function.__code__, function.__globals__, function.__name__)
                self.function, function.__code__ = function, _asking.__code__

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.function is not None:
                self.function.__code__, self.function = self.original.__code__, None

    def answer(self, inputs: Any, targets: Any, alpha: Any, gamma: Any, reduction: Any) -> Any:
        """Computes sigtorch's loss where this thread is in a block and the loss is the same, else torchvision's."""
        modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if (
            any(isinstance(mode, _Divert) for mode in modes)
            and pytorch_takes(inputs, targets, None, reduction, None)
            and torchvision_takes(alpha, gamma)
        ):
            inputs = marked(inputs, "patched_functions")  # torchvision saves tensors of the same shapes
            return losses.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
        return self.original(inputs, targets, alpha, gamma, reduction)


def _asking(inputs: Any, targets: Any, alpha: Any, gamma: Any, reduction: Any) -> Any:
    from sigtorch.plugin.functions import focal  # this runs as torchvision's, with its globals

    return focal.answer(inputs, targets, alpha, gamma, reduction)


def _arguments(function: Any) -> tuple[str, ...]:
    return function.__code__.co_varnames[: function.__code__.co_argcount]  # type: ignore[no-any-return]


focal = _Focal()
_eligible.TRANSPARENT_MODES.add(_Divert)
_eligible.DIVERTING_MODES.add(_Divert)


class _Block(_backend.Block):
    """A block in which functions are diverted."""

    where = "patched_functions()"

    def __init__(self, save: Save) -> None:
        self.save = save
        self.modes: contextlib.ExitStack | None = None

    def __enter__(self) -> None:
        if self.modes is not None:
            raise _checks.error_entered_twice(self.where)
        self.modes = contextlib.ExitStack()
        self.modes.enter_context(focal)
        self.modes.enter_context(_Divert(self.save))

    def __exit__(self, *exception: Any) -> None:
        if self.modes is not None:
            self.modes.__exit__(*exception)

    def anew(self) -> AbstractContextManager[None]:
        return patched_functions(save=self.save)


@contextlib.contextmanager
def _compiled_block(save: Save) -> Iterator[None]:
    """The block in what is compiled, which rebinds no modules; Dynamo in torch 2.8 knows blocks of generators alone."""
    with _Divert(save):
        yield


def patched_functions(*, save: Save = "output") -> _Block:
    """Sends PyTorch's sigmoid functions to sigtorch, inside the ``with`` block or the decorated function.

    These are :func:`torch.sigmoid`, :meth:`torch.Tensor.sigmoid`, :func:`torch.nn.functional.sigmoid`,
    :func:`torch.special.expit`, :func:`torch.nn.functional.glu` and
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`, whoever holds them under whatever name, and
    torchvision's ``sigmoid_focal_loss``, if torchvision is loaded by then: in this thread only, and under
    :func:`torch.compile` too (the focal loss, where the block is around the compiled call, not in it). ``sigmoid_``,
    ``out=``, the legacy ``size_average`` and ``reduce``, and whatever PyTorch's function or torchvision's refuses, class
    indices for one, run as without the block. Every PyTorch call in the block costs some
    microseconds more, as under any function mode: where modules can be swapped, swap them. Swap them, too, under a
    non-reentrant checkpoint: PyTorch runs backward, and what a checkpoint computes again there, without the block, and
    what then differs from the forward pass raises an error.

    What the block raises passes through, and PyTorch's functions are back. Blocks nest.

    Args:
        save: what the sigmoids keep for backward, as in :func:`sigtorch.sigmoid`.

    Returns:
        A context manager and decorator.

    Raises:
        ValueError: an unknown ``save``, at once.
        TypeError: where it decorates a coroutine function or a generator function, whose body runs after the call.

    Example:
        >>> x = torch.tensor([10.0], dtype=torch.bfloat16, requires_grad=True)
        >>> with sigtorch.patched_functions(save="input"):
        ...     torch.sigmoid(x).sum().backward()
        >>> x.grad
        tensor([4.5300e-05], dtype=torch.bfloat16)
    """
    _checks.check_save("patched_functions()", save)
    return _compiled_block(save) if torch.compiler.is_compiling() else _Block(save)  # type: ignore[return-value]
