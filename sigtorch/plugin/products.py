"""Functions that a rewritten method calls: each computes a product fused where it can, and as written elsewhere."""

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
from sigtorch.plugin.recognise import SIGMOID, activation, sequence


class Activated:
    """A sigmoid or silu of gate, by called, for a product to fuse; then expanded to a shape.

    Computed is what it gives, where something may change the gate before the product: then the product takes either. Else
    computing is put off.
    """

    __slots__ = ("called", "computed", "expanded", "gate", "graph", "kind", "version")

    def __init__(self, kind: str, called: Any, gate: torch.Tensor, computed: torch.Tensor | None) -> None:
        self.kind, self.called, self.gate, self.computed = kind, called, gate, computed
        self.version = None if gate.is_inference() else gate._version
        self.graph, self.expanded = torch.is_grad_enabled(), None

    def value(self) -> Any:
        """Computes what was written, with autograd on or off as it was there: statements may have switched it since."""
        s = self.computed
        if s is None:
            if self.changed():
                raise _checks.error_gate_changed(self.called)
            with torch.set_grad_enabled(self.graph):
                s = self.called(self.gate)
        return s if self.expanded is None else s.expand(self.expanded)

    def changed(self) -> bool:
        """Whether something wrote into the gate, or into a tensor of the same memory, since."""
        return self.version is not None and self.gate._version != self.version

    def unsqueeze(self, dim: int) -> Any:
        """Does what Tensor.unsqueeze does: an elementwise function of a view is the view of the function."""
        if self.expanded is not None or self.changed():
            return self.value().unsqueeze(dim)
        return self._seen(lambda t: t.unsqueeze(dim))

    def view(self, *shape: Any) -> Any:
        """Does what Tensor.view does."""
        shaped = self.expanded is None and not isinstance(shape[0], torch.dtype) and self.gate.is_contiguous()
        if not shaped or self.changed():
            return self.value().view(*shape)
        return self._seen(lambda t: t.view(*shape))

    def expand_as(self, other: Any) -> Any:
        """Does what Tensor.expand_as does; a product with a tensor of that shape needs no expanding."""
        if self.expanded is not None or not isinstance(other, torch.Tensor) or self.changed():
            return self.value().expand_as(other)
        self.gate.expand(other.shape)  # which says what does not fit
        seen = self._seen(lambda t: t)
        seen.expanded = other.shape
        return seen

    def _seen(self, by: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        seen = Activated(self.kind, self.called, by(self.gate), None if self.computed is None else by(self.computed))
        seen.graph = self.graph
        return seen


def activated(called: Any, gate: Any, calm: bool) -> Any:
    """``called(gate)``, for a product to fuse where the last step is a sigmoid or silu, and kernels take the tensor.

    Calm means that nothing runs before the product. Else something may change the gate in place: where others can reach its
    memory, the sigmoid is computed now. Where no kernel runs, everything runs as, and when, it was written.
    """
    if torch.compiler.is_compiling() or type(gate) not in _eligible.PLAIN_TYPES or not runs_kernel(gate):
        return called(gate)
    kind = activation(called)
    if kind is None:
        return called(gate)
    if modules := sequence(called):
        for module in modules[:-2]:
            gate = module(gate)
        return activated(modules[-1], modules[-2](gate) if modules[1:] else gate, calm)
    if calm:
        return Activated(kind, called, gate, None)
    if gate.is_inference():  # which does not tell what changed it
        return called(gate)
    alone = sys.getrefcount(gate) <= _ALONE and not gate._is_view()
    return Activated(kind, called, gate, None if alone else called(gate))


def _references(of: Any) -> int:
    """How often an argument that nothing else holds is counted: Python's releases differ."""
    return sys.getrefcount(of)


# From Python 3.14 on, a call may borrow what a local variable holds, uncounted: there, no argument is known to be alone.
_ALONE = _references(object()) if sys.version_info < (3, 14) else 0


def product(left: Any, right: Any) -> Any:
    """``left * right``, either of which may be a sigmoid or silu to fuse."""
    return _multiplied(operator.mul, left, right)


def product_by(by: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """``by(left, right)``, by :func:`torch.mul` or one of its other names."""
    return _multiplied(by, left, right)


def product_of(left: Any, name: str) -> Callable[[Any], Any]:
    """``left.mul``, to be called with the other operand."""
    if type(left) is Activated:
        return lambda right: _multiplied(lambda a, b: getattr(a, name)(b), left, right)
    by = getattr(left, name)  # where it was written: before the operand
    return lambda right: _multiplied(lambda _, b: by(b), left, right)


def _multiplied(by: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if type(left) is Activated and type(right) is Activated:
        left = left.value()
    act, other = (right, left) if type(right) is Activated else (left, right)
    if type(act) is Activated and act.graph == torch.is_grad_enabled() and _operands_fuse(act, other):
        return fused_product(act.kind, other, act.gate)
    left, right = (t.value() if type(t) is Activated else t for t in (left, right))
    return by(left, right)


def fused_product(kind: str, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The product, by a kernel, of operands that fuse."""
    if kind == SIGMOID:
        return gates.SigmoidGateFunction.apply(x, gate, "triton")
    return gates.SwiGLUFunction.apply(gate, x, "triton")


def runs_kernel(*tensors: torch.Tensor) -> bool:
    """Tells whether a kernel runs on these."""
    return tensors[0].is_floating_point() and _backend.select(*tensors) == "triton"


def _operands_fuse(act: Activated, x: Any) -> bool:
    """Tells whether a kernel computes the product as it is written: values, strides, and what may change in place later."""
    gate = act.gate
    if type(x) not in _eligible.PLAIN_TYPES or act.expanded not in (None, x.shape) or act.changed():
        return False
    if act.graph and x.requires_grad and not gate.requires_grad:
        return False  # PyTorch keeps the sigmoid alone for backward, a kernel both operands
    fitting = gate.shape == x.shape or (act.kind == SIGMOID and gates.gate_shape_fuses(x, gate))
    return fitting and (gate.stride() == x.stride() or _lie_alike(x, gate)) and runs_kernel(x, gate)


def _lie_alike(x: torch.Tensor, gate: torch.Tensor) -> bool:
    """Whether the axes that both have follow one another in the same order of strides."""
    axes = zip(gate.shape, x.stride()[-gate.dim() :], gate.stride(), strict=True)
    shared = sorted((by for n, *by in axes if n > 1), reverse=True)
    # A stride of zero has no place in that order.
    return all(min(by) > 0 for by in shared) and all(outer[1] >= inner[1] for outer, inner in pairwise(shared))


def putting_off(bound: Any) -> Any:
    """A bound method, or one that gives the sigmoid that it returns to a product, where it is a rewritten one that can."""
    if torch.compiler.is_compiling():
        return bound
    function = getattr(getattr(bound, "__func__", None), "_sigtorch_putting_off", None)
    return bound if function is None else MethodType(function, bound.__self__)
