"""What a rewritten method calls: a product of a sigmoid or silu, computed as ours where it is one, else as it was written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from types import MethodType
from typing import Any

import torch

from sigtorch import _backend, _checks
from sigtorch.ops import gates
from sigtorch.plugin.recognise import SIGMOID, activation, sequence


class Activated:
    """A sigmoid or silu that is still to be computed: of gate, by called, and then expanded to a shape."""

    __slots__ = ("called", "expanded", "gate", "graph", "kind", "version")

    def __init__(
        self, kind: str, called: Any, gate: torch.Tensor, version: int | None, expanded: torch.Size | None = None
    ) -> None:
        self.kind, self.called, self.gate, self.version, self.expanded = kind, called, gate, version, expanded
        self.graph = torch.is_grad_enabled()

    def computed(self) -> Any:
        """As it was written, and where: statements may have switched autograd since."""
        with torch.set_grad_enabled(self.graph):
            s = self.called(self.gate)
        return s if self.expanded is None else s.expand(self.expanded)

    def _seen_as(self, gate: torch.Tensor, expanded: torch.Size | None = None) -> Any:
        self._unchanged()
        seen = Activated(self.kind, self.called, gate, self.version, expanded)
        seen.graph = self.graph
        return seen

    def unsqueeze(self, dim: int) -> Any:
        """As of a tensor: an elementwise function of a view is the view of the function."""
        return self._seen_as(self.gate.unsqueeze(dim)) if self.expanded is None else self.computed().unsqueeze(dim)

    def view(self, *shape: Any) -> Any:
        """As of a tensor, by its shape."""
        shaped = self.expanded is None and not isinstance(shape[0], torch.dtype) and self.gate.is_contiguous()
        return self._seen_as(self.gate.view(*shape)) if shaped else self.computed().view(*shape)

    def expand_as(self, other: Any) -> Any:
        """As of a tensor; a product with one of that shape does without."""
        if self.expanded is not None or not isinstance(other, torch.Tensor):
            return self.computed().expand_as(other)
        self.gate.expand(other.shape)  # which says what does not fit
        return self._seen_as(self.gate, other.shape)

    def _unchanged(self) -> None:
        if self.version is not None and self.gate._version != self.version:
            raise _checks.gate_changed(self.called)


def activated(called: Any, gate: Any, still: bool) -> Any:
    """``called(gate)``, of which the last step is put off where that is a sigmoid or silu, and kernels take the tensor.

    Still means that nothing runs before the product that could change the gate in place. Else its version tells, which
    tensors of inference mode do not have. Where no kernel runs, everything runs as, and when, it was written.
    """
    if torch.compiler.is_compiling() or type(gate) not in _backend.PLAIN_TYPES or not fused_on(gate):
        return called(gate)
    kind = activation(called)
    if kind is None:
        return called(gate)
    while modules := sequence(called):
        *before, called = modules
        for module in before:
            gate = module(gate)
    if type(gate) not in _backend.PLAIN_TYPES or (not still and gate.is_inference()):
        return called(gate)
    return Activated(kind, called, gate, None if still else gate._version)


def product(left: Any, right: Any, by: Callable[[Any, Any], Any] | str = operator.mul) -> Any:
    """``left * right``, one of which may have been put off; by is the function, or the method's name, that was written."""
    if type(left) is Activated and type(right) is Activated:
        left._unchanged()
        left = left.computed()
    act, other = (right, left) if type(right) is Activated else (left, right)
    if type(act) is Activated:
        act._unchanged()
        if act.graph == torch.is_grad_enabled() and _shapes_fuse(act, other) and fused_on(other, act.gate):
            gate = act.gate
            return gates.sigmoid_gate(other, gate) if act.kind == SIGMOID else gates.swiglu(gate, other)
        left, right = (t.computed() if type(t) is Activated else t for t in (left, right))
    return getattr(left, by)(right) if isinstance(by, str) else by(left, right)


def fused_on(*tensors: torch.Tensor) -> bool:
    """Whether a kernel runs on these."""
    return tensors[0].is_floating_point() and _backend.select(*tensors) == "triton"


def _shapes_fuse(act: Activated, x: Any) -> bool:
    """Whether a kernel takes the shapes, and the result's strides do not depend on which operand comes first."""
    gate = act.gate
    if type(x) not in _backend.PLAIN_TYPES or act.expanded not in (None, x.shape):
        return False
    fitting = gate.shape == x.shape or (act.kind == SIGMOID and gates.fuses(x, gate))
    return fitting and (gate.stride() == x.stride() or _lie_alike(x, gate))


def _lie_alike(x: torch.Tensor, gate: torch.Tensor) -> bool:
    """Whether the axes that both have follow one another in the same order of strides."""
    axes = zip(gate.shape, x.stride()[-gate.dim() :], gate.stride(), strict=True)
    shared = sorted((by for n, *by in axes if n > 1), reverse=True)
    # A stride of zero has no place in that order.
    return all(min(by) > 0 for by in shared) and all(outer[1] >= inner[1] for outer, inner in pairwise(shared))


def method(bound: Any, known: Any, returns_activated: Any) -> Any:
    """A bound method, or what it is with its returned sigmoid put off, if it is still the one known."""
    function = getattr(bound, "__func__", None)
    if torch.compiler.is_compiling() or getattr(function, "_sigtorch_of", function) is not known:
        return bound
    return MethodType(returns_activated, bound.__self__)
