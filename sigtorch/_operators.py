"""Operators of ``torch.library``, ``torch.ops.sigtorch``: a compiler keeps one whole, and a dispatch mode sees one.

Plain eager code calls none: its autograd Functions launch the kernels. Under a dispatch mode the same Functions call operators
in their place. Compiled code calls operators, whose autograd is defined here, where a compiler would not fuse as well.
``docs/operators.md`` lists their schemas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import Function, forward_ad
from torch.library import Library

from sigtorch import _checks

NAMESPACE = "sigtorch"


def _library() -> Library:
    """Returns the library, which PyTorch's namespace keeps: reloading this module must not end it."""
    kept = vars(torch.ops.sigtorch)
    if "_library" not in kept:
        kept["_library"] = Library(NAMESPACE, "FRAGMENT")
    return kept["_library"]  # type: ignore[no-any-return]


class Gradient(NamedTuple):
    """The autograd of an operator.

    ``save(ctx, args, output)`` keeps what backward needs, and may return another output for the caller;
    ``backward(ctx, *grads)`` returns a gradient for each argument.
    """

    save: Callable[..., Any]
    backward: Callable[..., Sequence[torch.Tensor | None]]


def define(
    op: str,
    schema: str,
    run: Callable[..., Any],
    meta: Callable[..., Any],
    gradient: Gradient | None = None,
    *,
    waits: bool = False,
) -> Any:
    """Defines an operator, once in a process, and returns it.

    Args:
        op: its name in ``torch.ops.sigtorch``.
        schema: its arguments and results, as torch.library writes them.
        run: computes it for tensors of any device.
        meta: returns empty tensors of the results' shapes, strides and dtypes.
        gradient: its autograd; without one, differentiating it raises.
        waits: whether it waits for the device, which a CUDA graph cannot.
    """
    if hasattr(torch.ops.sigtorch, op):
        return getattr(torch.ops.sigtorch, op).default
    library = _library()
    tags = (torch.Tag.pt2_compliant_tag, *((torch.Tag.cudagraph_unsafe,) if waits else ()))
    library.define(op + schema, tags=tags)
    library.impl(op, run, "CompositeExplicitAutograd")
    library.impl(op, meta, "Meta")
    overload = getattr(torch.ops.sigtorch, op).default
    gradient = gradient or Gradient(lambda ctx, args, output: None, lambda ctx, *grads: _refuse(op))

    def differentiate(keyset: DispatchKeySet, *args: Any) -> Any:
        if any(isinstance(a, torch.Tensor) and _is_differentiated(a) for a in args):
            return Differentiated.apply(overload, gradient, keyset, *args)
        return _below_autograd(overload, keyset, args)

    library.impl(op, differentiate, "Autograd", with_keyset=True)
    return overload


def _is_differentiated(t: torch.Tensor) -> bool:
    """Tells whether autograd differentiates t; in forward mode too, which the Function refuses, so that no tangent is lost."""
    if t.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None


def _refuse(op: str) -> Any:
    raise _checks.error_backward_twice(op)


def _below_autograd(overload: Any, keyset: DispatchKeySet, args: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


class Differentiated(Function):
    """Runs an operator, and saves what its gradient needs."""

    @staticmethod
    def forward(ctx: Any, overload: Any, gradient: Gradient, keyset: DispatchKeySet, *args: Any) -> Any:
        output = _below_autograd(overload, keyset, args)
        ctx.gradient = gradient
        returned = gradient.save(ctx, args, output)
        return output if returned is None else returned

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        ctx.needs = ctx.needs_input_grad[3:]
        return None, None, None, *ctx.gradient.backward(ctx, *grads)


@contextmanager
def differentiable() -> Iterator[None]:
    """Lets an operator's own body differentiate a formula, once."""
    with torch.no_grad(), torch._C._SetExcludeDispatchKeyGuard(DispatchKey.AutogradFunctionality, False):
        yield


# Strides: run and meta must agree, whatever runs.


def empty_like(lead: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Returns an empty tensor, with the strides of ``torch.empty_like(lead)`` if it has that shape."""
    if tuple(lead.shape) == tuple(shape):
        return torch.empty_like(lead, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=lead.device)


def laid_out(lead: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Returns the value with the strides that ``empty_like`` gives, copied if it has others."""
    if value.is_contiguous() and (lead.shape != value.shape or lead.is_contiguous() or _falls(lead.stride())):
        return value
    if value.stride() == empty_like(lead.to("meta"), value.shape, value.dtype).stride():
        return value
    return empty_like(lead, value.shape, value.dtype).copy_(value)


def _falls(strides: Sequence[int]) -> bool:
    """Tells whether each stride is smaller than the one before, as a half of a contiguous tensor has them."""
    return all(a > b for a, b in itertools.pairwise(strides))
