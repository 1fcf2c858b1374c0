"""Functions that a rewritten method calls: each computes a product fused if it can, and otherwise as it was written."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from itertools import pairwise
from types import MethodType
from typing import Any

import torch

from sigtorch import _backend, _checks, _eligible
from sigtorch.ops import gates
from sigtorch.plugin.recognise import SIGMOID, Activation, fusable_activation, sequence


class Activated:
    """The sigmoid or silu of a gate, for a product to fuse.

    Attributes:
        activation: which of the two it is.
        function: what computes it.
        gate: its argument, perhaps viewed since.
        computed: its value, where something may change the gate before the product; else None, and computing it is put off.
        expanded: the shape to which it was expanded, or None.
        version: the gate's version counter when it was created; None for an inference tensor, which has none.
        with_graph: whether autograd was on then.
    """

    __slots__ = ("activation", "computed", "expanded", "function", "gate", "version", "with_graph")

    def __init__(
        self, activation: Activation, function: Any, gate: torch.Tensor, computed: torch.Tensor | None = None
    ) -> None:
        self.activation, self.function, self.gate, self.computed = activation, function, gate, computed
        self.version = None if gate.is_inference() else gate._version
        self.with_graph, self.expanded = torch.is_grad_enabled(), None

    def value(self) -> Any:
        """Computes what was written, with autograd on or off as it was there: later statements may have switched it."""
        value = self.computed
        if value is None:
            if self.gate_changed():
                raise _checks.error_gate_changed(self.function)
            with torch.set_grad_enabled(self.with_graph):
                value = self.function(self.gate)
        return value if self.expanded is None else value.expand(self.expanded)

    def gate_changed(self) -> bool:
        """Tells whether something has written into the gate's memory since."""
        return self.version is not None and self.gate._version != self.version

    def unsqueeze(self, dim: int) -> Any:
        """Does what Tensor.unsqueeze does: an elementwise function of a view is the view of the function."""
        if self.expanded is not None or self.gate_changed():
            return self.value().unsqueeze(dim)
        return self._viewed(lambda t: t.unsqueeze(dim))

    def view(self, *shape: Any) -> Any:
        """Does what Tensor.view does."""
        is_shape = not any(isinstance(size, torch.dtype) for size in shape)
        can_view = self.expanded is None and is_shape and self.gate.is_contiguous()
        if not can_view or self.gate_changed():
            return self.value().view(*shape)
        return self._viewed(lambda t: t.view(*shape))

    def expand_as(self, other: Any) -> Any:
        """Does what Tensor.expand_as does; a product with a tensor of that shape needs no expanding."""
        if self.expanded is not None or not isinstance(other, torch.Tensor) or self.gate_changed():
            return self.value().expand_as(other)
        self.gate.expand(other.shape)  # raises PyTorch's error where it does not fit
        viewed = self._viewed(lambda t: t)
        viewed.expanded = other.shape
        return viewed

    def _viewed(self, view: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        computed = None if self.computed is None else view(self.computed)
        viewed = Activated(self.activation, self.function, view(self.gate), computed)
        viewed.with_graph = self.with_graph
        return viewed


def activated(function: Any, gate: Any) -> Any:
    """Returns ``function(gate)``, put off for the product that uses it: no other code runs before that.

    If no kernel runs, or if the function does not end in a sigmoid or silu, all is computed now, as it was written.
    """
    activation = _activation_to_fuse(function, gate)
    if activation is None:
        return function(gate)
    if steps := sequence(function):
        return activated(steps[-1], _run(steps[:-1], gate))
    return Activated(activation, function, gate)


def activated_early(function: Any, gate: Any) -> Any:
    """Returns ``function(gate)`` as :func:`activated` does, where other code runs before the product.

    That code may change the gate in place. If it can reach the gate's memory, the value is computed now, and the product
    takes the gate or the value.
    """
    activation = _activation_to_fuse(function, gate)
    if activation is None:
        return function(gate)
    if steps := sequence(function):
        return activated_early(steps[-1], _run(steps[:-1], gate))
    if gate.is_inference():  # without a version counter, a change would not be noticed
        return function(gate)
    is_alone = sys.getrefcount(gate) <= _ALONE and not gate._is_view()
    return Activated(activation, function, gate, None if is_alone else function(gate))


def _activation_to_fuse(function: Any, gate: Any) -> Activation | None:
    """Returns which activation a function ends in, if a kernel may run."""
    if torch.compiler.is_compiling() or type(gate) not in _eligible.PLAIN_TYPES or not runs_kernel(gate):
        return None
    return fusable_activation(function)


def _run(steps: list[torch.nn.Module], x: Any) -> Any:
    for step in steps:
        x = step(x)
    return x


def _count_references(argument: Any) -> int:
    """Returns the reference count of an argument that nothing else holds, which differs between releases of Python."""
    return sys.getrefcount(argument)


# From Python 3.14 on, a call may borrow what a local variable holds, uncounted: there, no argument is known to be alone.
_ALONE = _count_references(object()) if sys.version_info < (3, 14) else 0


def product(left: Any, right: Any) -> Any:
    """Computes ``left * right``, either of which may be a sigmoid or silu to fuse."""
    return _multiply(operator.mul, left, right)


def product_by(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Computes ``function(left, right)``, where the function is :func:`torch.mul` or one of its other names."""
    return _multiply(function, left, right)


def product_method(left: Any, name: str) -> Callable[[Any], Any]:
    """Returns ``left.mul`` or ``left.multiply``, to be called with the other operand."""
    if type(left) is Activated:
        return lambda right: _multiply(lambda a, b: getattr(a, name)(b), left, right)
    method = getattr(left, name)  # read before the operand is evaluated, as it was written
    return lambda right: _multiply(lambda _, b: method(b), left, right)


def _multiply(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if type(left) is Activated and type(right) is Activated:
        left = left.value()
    act, x = (right, left) if type(right) is Activated else (left, right)
    if type(act) is Activated and act.with_graph == torch.is_grad_enabled() and _operands_fuse(act, x, right is act):
        return fused_product(act.activation, x, act.gate)
    left, right = (t.value() if type(t) is Activated else t for t in (left, right))
    return function(left, right)


def fused_product(activation: Activation, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Computes by a kernel the product of operands that fuse."""
    if activation == SIGMOID:
        return gates.SigmoidGateFunction.apply(x, gate, "triton")
    return gates.SwiGLUFunction.apply(gate, x, "triton")


def runs_kernel(*tensors: torch.Tensor) -> bool:
    """Tells whether a kernel runs on these."""
    return tensors[0].is_floating_point() and _backend.select(*tensors) == "triton"


def _operands_fuse(act: Activated, x: Any, x_first: bool) -> bool:
    """Tells whether a kernel gives the product's values and strides, and saves no tensor that may be changed later."""
    gate = act.gate
    if type(x) not in _eligible.PLAIN_TYPES or act.expanded not in (None, x.shape) or act.gate_changed():
        return False
    if act.with_graph and x.requires_grad and not gate.requires_grad:
        return False  # PyTorch saves the sigmoid alone for backward, a kernel both operands
    if not gates.SigmoidGateFunction.fuses(x, gate):
        return False
    leads = x_first == (act.activation == SIGMOID)  # the first operand of the product is the kernel's, too
    return (gate.stride() == x.stride() or _have_same_strides(x, gate, x_first, leads)) and runs_kernel(x, gate)


def _have_same_strides(x: torch.Tensor, gate: torch.Tensor, x_first: bool, leads: bool) -> bool:
    """Tells whether a kernel's result has the strides of PyTorch's product.

    In PyTorch, the first operand orders the axes, and the second those along which the first is broadcast. A kernel's result
    has the strides of its first operand of the result's shape. So the axes that both have must be in the same order by their
    strides, unless the first operand is the kernel's first and has all.
    """
    first, second = (x, gate) if x_first else (gate, x)
    large = first if _covers(first, second) else second
    if not _covers(large, first):  # each is broadcast: a kernel's result is contiguous
        return x.is_contiguous() and gate.is_contiguous()
    if not all(stride for n, stride in zip(large.shape, large.stride(), strict=True) if n > 1):
        return False  # a stride of zero has no place in an order
    if leads and large is first:
        return True
    axes = zip(*(reversed(part) for t in (x, gate) for part in (t.shape, t.stride())), strict=False)
    strides = sorted(((by, other) for n, by, m, other in axes if n > 1 and m > 1), reverse=True)
    return all(min(pair) > 0 for pair in strides) and all(
        outer >= inner for (_, outer), (_, inner) in pairwise(strides)
    )


def _covers(large: torch.Tensor, t: torch.Tensor) -> bool:
    """Tells whether two tensors that broadcast have the large one's shape together."""
    sizes = zip(reversed(large.shape), reversed(t.shape), strict=False)
    return t.dim() <= large.dim() and all(n >= m or n == 0 for n, m in sizes)


def deferring(bound: Any) -> Any:
    """Returns a bound method whose result, a sigmoid or silu, is put off for a product, if it is a rewritten one."""
    if torch.compiler.is_compiling():
        return bound
    function = getattr(getattr(bound, "__func__", None), "_sigtorch_deferring", None)
    return bound if function is None else MethodType(function, bound.__self__)
