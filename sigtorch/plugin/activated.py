"""Sigmoids and silus that are put off for a product, which computes them in one kernel with it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.compiler import is_compiling

from sigtorch import _backend, _checks, _eligible
from sigtorch._once import once
from sigtorch.plugin.classes import original_of
from sigtorch.plugin.recognise import (
    Activation,
    activation_position,
    fusable_activation,
    obstacle,
    own_forward,
    sequence,
)

# Methods of a tensor that show its values in another shape, or nearly: a product takes the same view of its gate.
VIEWS = {
    "view", "view_as", "reshape", "unsqueeze", "squeeze", "expand", "expand_as", "flatten", "unflatten", "transpose", "permute",
    "movedim", "contiguous", "chunk", "split", "unbind", "repeat", "to", "type_as", "float", "half", "bfloat16",
}  # fmt: skip


class Activated:
    """The sigmoid or silu of a gate, for a product to fuse.

    Attributes:
        activation: which of the two it is.
        function: what computes it.
        gate: its argument, or a view of that.
        computed: its value, once that is computed; before the product only where something may change the gate until then.
        expanded: the shape to which it was expanded, or None.
        version: the gate's version counter when it was created; None for an inference tensor, which has none.
        with_graph: whether autograd was on then.
        is_read: whether code outside of products has read the value, so that it is there anyway.
        whole: what this is a view of, or None; ``take_view`` takes it.
    """

    computed: torch.Tensor | None = None
    is_read = False
    expanded: torch.Size | None = None
    whole: Activated | None = None
    take_view: Callable[[torch.Tensor], Any] | None = None

    def __init__(self, activation: Activation, function: Any, gate: torch.Tensor) -> None:
        self.activation, self.function, self.gate = activation, function, gate
        self.version = None if gate.is_inference() else gate._version
        self.with_graph = torch.is_grad_enabled()

    def value(self) -> Any:
        """Computes what was written, with autograd on or off as it was there: later statements may have switched it."""
        if self.computed is None:
            if self.whole is None and self.gate_changed():
                raise _checks.error_gate_changed(self.function)
            if self.with_graph == torch.is_grad_enabled():
                self.computed = self._compute()
            else:
                with torch.set_grad_enabled(self.with_graph):
                    self.computed = self._compute()
        return self.computed

    def _compute(self) -> Any:
        if self.whole is None or self.take_view is None:
            return self.function(self.gate)
        return self.take_view(self.whole.value())

    def gate_changed(self) -> bool:
        """Tells whether something has written into the gate's memory since."""
        return self.version is not None and self.gate._version != self.version

    def __getattr__(self, name: str) -> Any:
        """Returns a method that does what Tensor's does: an elementwise function of a view is the view of the function."""
        if name not in VIEWS:
            raise AttributeError(name)
        return functools.partial(self._method_viewed, name)

    def _method_viewed(self, name: str, *args: Any, **kwargs: Any) -> Any:
        kept, kept_by_name = _kept(args), {k: _kept(a) for k, a in kwargs.items()}
        return self.viewed(lambda t: getattr(t, name)(*kept, **kept_by_name))

    def __getitem__(self, index: Any) -> Any:
        kept = _kept(index)
        return self.viewed(lambda t: t[kept])

    def __iter__(self) -> Any:
        return iter(self.viewed(tuple))

    def expand(self, *shape: Any) -> Any:
        """Does what Tensor.expand does; a product with a tensor of that shape needs no expanding."""
        kept = _kept(shape)
        return self._expanded(lambda t: t.expand(*kept))

    def expand_as(self, other: Any) -> Any:
        """Does what Tensor.expand_as does."""
        return self._expanded(lambda t: t.expand_as(other))

    def _expanded(self, expand: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        if not self._can_be_viewed():
            return expand(self.value())
        made = self._part(self.gate, expand)
        made.expanded = expand(self.gate).shape  # raises PyTorch's error where it does not fit
        return made

    def viewed(self, view: Callable[[torch.Tensor], Any]) -> Any:
        """Takes a view of the gate, if the value would have its strides, and one of the value otherwise."""
        if not self._can_be_viewed():
            return view(self.value())
        gates = view(self.gate)
        if not isinstance(gates, torch.Tensor):
            return tuple(self._part(g, lambda t, i=i: view(t)[i]) for i, g in enumerate(gates))  # type: ignore[misc]
        return self._part(gates, view) if gates.dtype == self.gate.dtype else view(self.value())

    def _can_be_viewed(self) -> bool:
        return not (self.is_read or self.expanded or self.gate_changed()) and _is_dense(self.gate)

    def _part(self, gate: torch.Tensor, view: Callable[[torch.Tensor], Any]) -> Activated:
        made = Activated(self.activation, self.function, gate)
        made.with_graph, made.whole, made.take_view = self.with_graph, self, view
        return made


def _kept(argument: Any) -> Any:
    """Returns an argument of a view as it is now: lists and indices may change until the view is taken again."""
    if type(argument) in (list, tuple):
        return type(argument)(map(_kept, argument))
    is_index = isinstance(argument, torch.Tensor) and not argument.is_floating_point()
    return argument.clone() if is_index else argument


def _is_dense(t: torch.Tensor) -> bool:
    """Tells whether an elementwise function of a tensor has the tensor's strides."""
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def activated(function: Any, gate: Any) -> Any:
    """Returns ``function(gate)``, put off for the product that uses it: no other code runs before that.

    If no kernel runs, or if the function does not end in a sigmoid or silu, all is computed now, as it was written.
    """
    if not may_fuse(gate):
        return function(gate)
    activation = fusable_activation(function)
    if activation is None:
        return deferring(function)(gate)
    if steps := sequence(function):
        return _views(steps, activated(steps[activation_position(steps)], _run_before(steps, gate)))
    return Activated(activation, function, gate)


def _called_from_c(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that is called through C, so that its arguments always have the same number of references.

    A call in Python hands its references over, but not while torch.compile evaluates frames, which it may go on doing after
    an error.
    """
    return functools.update_wrapper(functools.partial(function), function)


@_called_from_c
def activated_early(function: Any, gate: Any) -> Any:
    """Returns ``function(gate)`` as :func:`activated` does, where other code runs before the product.

    That code may change the gate in place. If it can reach the gate's memory, the value is computed now, and the product
    takes the gate or the value.
    """
    if not may_fuse(gate):
        return function(gate)
    is_alone = sys.getrefcount(gate) <= _ALONE  # before the gate is an argument of another call
    return _put_off(function, gate, is_alone)


@_called_from_c
def activated_at_last(function: Any, gate: Any) -> Any:
    """Returns ``function(gate)`` as :func:`activated_early` does, where a local variable may hold the gate: the last one."""
    if not may_fuse(gate):
        return function(gate)
    is_alone = sys.getrefcount(gate) <= _ALONE + 1
    return _put_off(function, gate, is_alone)


def _put_off(function: Any, gate: torch.Tensor, is_alone: bool) -> Any:
    activation = fusable_activation(function)
    if activation is None:
        return deferring(function)(gate)
    if steps := sequence(function):
        return _views(steps, activated_early(steps[activation_position(steps)], _run_before(steps, gate)))
    shares_memory = _count_memory_uses(gate) > _OWN_USES
    # A change would not be noticed without a version counter, or through a tensor that has another one, as ``x.data`` has.
    if gate.is_inference() or (shares_memory and not gate._is_view()):
        return function(gate)
    made = Activated(activation, function, gate)
    if not is_alone or shares_memory:
        made.computed = function(gate)
    return made


def _count_memory_uses(t: torch.Tensor) -> int:
    """Returns how many tensors use a tensor's memory, and some more: also those that are no views, such as ``x.data``."""
    storage = t.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata)


def may_fuse(gate: Any) -> bool:
    """Tells whether a gate is worth putting off. The product checks dtypes, keys, shapes and strides."""
    if type(gate) not in _eligible.PLAIN_TYPES or is_compiling() or not _backend.kernels_run_on(gate):
        return False
    # A tracer would note the sizes that a product compares. Nested and sparse tensors have no sizes or strides to compare.
    return not (_eligible.transformed() or gate.is_nested) and gate.layout is torch.strided


def _run_before(steps: list[torch.nn.Module], x: Any) -> Any:
    """Runs the steps of a sequence before its activation."""
    for step in steps[: activation_position(steps)]:
        x = step(x)
    return x


def _views(steps: list[torch.nn.Module], activated: Any) -> Any:
    """Runs the steps of a sequence after its activation, which only change the shape."""
    for step in steps[activation_position(steps) + 1 :]:
        activated = activated.viewed(step) if type(activated) is Activated else step(activated)
    return activated


@_called_from_c
def _count_references(argument: Any) -> int:
    """Returns the reference count of an argument that nothing else holds, which differs between releases of Python."""
    return sys.getrefcount(argument)


# From Python 3.14 on, a call may borrow what a local variable holds, uncounted: there, no argument is known to be alone.
_ALONE = _count_references(object()) if sys.version_info < (3, 14) else 0


_OWN_USES = _count_memory_uses(torch.empty(0, device="cpu"))  # of memory that one tensor has


def value(held: Any) -> Any:
    """Returns what a variable holds; a sigmoid or silu that was put off is computed, also the parts of one."""
    if type(held) is tuple and any(type(part) is Activated for part in held):  # as of ``chunk``
        return tuple(map(value, held))
    if type(held) is not Activated:
        return held
    held.is_read = True
    return held.value()


def called(callee: Any) -> Any:
    """Returns what a function that holds products is rewritten to; anything else as it is."""
    return callee if is_compiling() else _replaced(callee, _rewrite().rewritten_function)


def deferring(callee: Any) -> Any:
    """Returns what puts off the sigmoid or silu that a function ends in, for a product; anything else as it is."""
    if is_compiling():
        return callee
    if isinstance(callee, torch.nn.Module):
        forward = own_forward(callee)
        if type(forward) is not FunctionType or obstacle(callee) is not None:
            return callee
        deferred = _replaced(MethodType(forward, callee), _rewrite().deferring_function)
        return callee if deferred.__func__ is forward else deferred
    return _replaced(callee, _rewrite().deferring_function)


@once
def _rewrite() -> Any:
    """Returns the module that rewrites functions, at the first call: it needs this one."""
    from sigtorch.plugin import rewrite

    return rewrite


def _replaced(callee: Any, find: Callable[[FunctionType, Any], Any]) -> Any:
    """Returns a function, or a method bound to its object, as ``find`` rewrites it."""
    if type(callee) is FunctionType:
        made = find(callee, object)
        return callee if made is None else made.function
    function: Any = callee
    owner: Any = callee
    if type(callee) is MethodType:
        function, owner = callee.__func__, callee.__self__
    elif not isinstance(callee, torch.nn.Module):
        function = vars(type(callee)).get("__call__")
    rewritten = getattr(function, "_sigtorch_rewritten", None)
    if rewritten is not None and rewritten.function is function:  # and no wrapper that took over its attributes
        function = rewritten.original
    made = find(function, original_of(type(owner))) if type(function) is FunctionType else None
    return callee if made is None else MethodType(made.function, owner)


def runs_kernel(*tensors: torch.Tensor) -> bool:
    """Tells whether a kernel runs on these; during a report, whether one would without it."""
    for t in tensors:  # forced kernels refuse a dtype by an error, where PyTorch computes
        if not t.is_floating_point():
            return False
    runner = _backend.select(*tensors)
    return runner == "triton" or (runner == "operator" and _eligible.reporting() is not None)
