"""Functions that a rewritten method calls: each computes a product fused if it can, and otherwise as it was written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigtorch import _backend, _eligible
from sigtorch.ops import gates
from sigtorch.plugin import activated
from sigtorch.plugin.activated import Activated, called, value
from sigtorch.plugin.recognise import SIGMOID, Activation, fusable_activation

PRODUCTS = (torch.mul, torch.multiply, operator.mul)


def product(left: Any, right: Any) -> Any:
    """Computes ``left * right``, either of which may be a sigmoid or silu to fuse."""
    if type(left) is Tensor and type(right) is Tensor:  # the usual case where no kernel runs
        return left * right
    return _multiply(operator.mul, left, right)


def product_by(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Computes ``function(left, right)``, where the function is :func:`torch.mul` or one of its other names."""
    if type(left) is Tensor and type(right) is Tensor:
        return function(left, right)
    if not any(function is p for p in PRODUCTS):  # it was replaced since
        return function(value(left), value(right))
    return _multiply(function, left, right)


def product_method(left: Any, name: str) -> Callable[[Any], Any]:
    """Returns ``left.mul`` or ``left.multiply``, to be called with the other operand."""
    if type(left) is Activated:
        return lambda right: _multiply(lambda a, b: getattr(a, name)(b), left, right)
    method = getattr(left, name)  # read before the operand is evaluated, as it was written
    return lambda right: method(right) if type(right) is Tensor else _multiply(lambda _, b: method(b), left, right)


class Gated:
    """The product of a tensor and a sigmoid, for a sum to fuse."""

    __slots__ = ("gate", "x")

    def __init__(self, x: torch.Tensor, gate: torch.Tensor) -> None:
        self.x, self.gate = x, gate


class Complement:
    """One minus what a variable holds, for a sum to fuse."""

    __slots__ = ("held", "one")

    def __init__(self, one: Any, held: Any) -> None:
        self.one, self.held = one, held

    def value(self) -> Any:
        """Computes what was written."""
        return self.one - value(self.held)


_PUT_OFF = (Activated, Complement)


def complement_first(one: Any, held: Any) -> Any:
    """Returns ``one - held`` for a sum to fuse, where other code may run before the sum."""
    return Complement(one, held) if type(held) is Activated else one - held


def interpolation(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Computes ``a * b + c * d``, where one factor may be a sigmoid and another one minus the same sigmoid."""
    if Activated not in (type(a), type(b), type(c), type(d)):  # the usual case where no kernel runs
        return _value(a) * _value(b) + _value(c) * _value(d)
    left, right = _by_kind(a, b), _by_kind(c, d)
    if type(left[0]) is Complement:
        left, right = right, left
    (act, x), (rest, y) = left, right
    is_sigmoid = type(act) is Activated and act.activation == SIGMOID and type(rest) is Complement and rest.held is act
    if is_sigmoid and _fuses(_lerp_obstacle(act, x, y)):
        return fused_lerp(x, y, act.gate)
    # One minus the sigmoid takes its value in any case.
    return _value(a) * _value(b) + _value(c) * _value(d)


def _value(factor: Any) -> Any:
    if type(factor) is Tensor:
        return factor
    return factor.value() if type(factor) is Complement else value(factor)


def lerp(function: Any, start: Any, end: Any, weight: Any) -> Any:
    """Computes :func:`torch.lerp`, whose weight may be a sigmoid."""
    if function is torch.lerp and _lerp_fuses(start, end, weight):
        return fused_lerp(end, start, weight.gate)
    return function(start, end, value(weight))


def lerp_method(start: Any) -> Callable[[Any, Any], Any]:
    """Returns ``start.lerp``, to be called with the end and the weight."""
    method = start.lerp  # read before the others are evaluated, as it was written
    if type(start) not in _eligible.PLAIN_TYPES:  # a method of something else
        method = called(method)

    def interpolate(end: Any, weight: Any) -> Any:
        fuses = _lerp_fuses(start, end, weight)
        return fused_lerp(end, start, weight.gate) if fuses else method(end, value(weight))

    return interpolate


def _lerp_fuses(start: Any, end: Any, weight: Any) -> bool:
    is_sigmoid = type(weight) is Activated and weight.activation == SIGMOID
    return is_sigmoid and isinstance(start, Tensor) and _fuses(_lerp_obstacle(weight, end, start))


def gated(left: Any, right: Any) -> Any:
    """Computes ``left * right`` as :func:`product` does, put off for a sum if it is a gate."""
    if type(left) is Tensor and type(right) is Tensor:
        return left * right
    act, x = _by_kind(left, right)
    if _is_gate(act, x, act is right):
        return Gated(x, act.gate)
    return _multiply(operator.mul, left, right)


def _is_gate(act: Any, x: Any, x_first: bool) -> bool:
    """Tells whether a kernel computes a product that a sum may take."""
    is_sigmoid = type(act) is Activated and act.activation == SIGMOID and type(x) is not Activated
    return is_sigmoid and _obstacle(act, x, x_first) is None


def plus(left: Any, right: Any) -> Any:
    """Computes ``left + right``, one of which may be a gated tensor."""
    term, residual = (left, right) if type(left) is Gated else (right, left)
    if type(term) is not Gated:
        return left + right
    x = term.x
    is_like_x = (
        _covers(x, term.gate)
        and type(residual) in _eligible.PLAIN_TYPES
        and residual.shape == x.shape
        and residual.stride() == x.stride()
        and residual.dtype == x.dtype
    )
    if is_like_x and activated.runs_kernel(x, term.gate, residual):
        return fused_product(SIGMOID, x, term.gate, residual)
    computed = fused_product(SIGMOID, x, term.gate)
    return computed + right if term is left else left + computed


def addcmul(function: Any, summand: Any, left: Any, right: Any) -> Any:
    """Computes :func:`torch.addcmul`, one of whose factors may be a sigmoid."""
    if function is torch.addcmul and (type(left) is Activated or type(right) is Activated):
        act, x = _by_kind(left, right)
        if _is_gate(act, x, act is right):
            return plus(summand, Gated(x, act.gate))
    return function(summand, value(left), value(right))


def _by_kind(left: Any, right: Any) -> tuple[Any, Any]:
    """Returns the factors, the one that is put off first; of two, the right one."""
    return (left, right) if type(left) in _PUT_OFF and type(right) not in _PUT_OFF else (right, left)


def _multiply(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if type(left) is Activated and type(right) is Activated:
        left = left.value()
    act, x = _by_kind(left, right)
    if type(act) is Activated and _fuses(_obstacle(act, x, act is right)):
        return fused_product(act.activation, x, act.gate)
    left = left.value() if type(left) is Activated else value(left)
    right = right.value() if type(right) is Activated else value(right)
    return function(left, right)


def fused_product(
    activation: Activation, x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes by a kernel the product of operands that fuse, and a sum with it."""
    if residual is not None:
        return gates.SigmoidGateResidualFunction.apply(x, gate, residual, _runner())
    if activation == SIGMOID:
        return gates.SigmoidGateFunction.apply(x, gate, _runner())
    return gates.SwiGLUFunction.apply(gate, x, _runner())


def fused_lerp(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Computes by a kernel the interpolation of operands that fuse."""
    return gates.SigmoidLerpFunction.apply(x, y, gate, _runner())


def _runner() -> _backend.Runner:
    return "triton" if _eligible.reporting() is None else "operator"


def _fuses(obstacle: str | None) -> bool:
    """Tells whether a kernel runs, for there is no obstacle; during a report, the report is told of one."""
    if obstacle is not None and (report := _eligible.reporting()) is not None:
        report.obstacle = obstacle
    return obstacle is None


def _obstacle(act: Activated, x: Any, x_first: bool) -> str | None:
    """Returns why no kernel computes a product; None if one gives its values and strides, and saves nothing that may change."""
    gate = act.gate
    if type(x) not in _eligible.PLAIN_TYPES:
        return "its other operand is no plain tensor"
    if reason := _change(act):
        return reason
    if act.with_graph and x.requires_grad and not gate.requires_grad:
        return "its gate needs no gradient"  # PyTorch saves the sigmoid alone for backward, a kernel both operands
    if act.expanded not in (None, x.shape) or not gates.SigmoidGateFunction.fuses(x, gate):
        return "no kernel takes its shapes"
    leads = x_first == (act.activation == SIGMOID)  # the first operand of the product is the kernel's, too
    if gate.stride() != x.stride() and not _have_same_strides(x, gate, x_first, leads):
        return "its operands have their axes in different orders"
    return None if activated.runs_kernel(x, gate) else "no kernel takes its dtypes"


def _lerp_obstacle(act: Activated, x: Any, y: Any) -> str | None:
    """Returns why no kernel computes an interpolation; None if one gives its values and strides."""
    if not (type(x) in _eligible.PLAIN_TYPES and type(y) in _eligible.PLAIN_TYPES):
        return "its other operands are no plain tensors"
    if reason := _change(act):
        return reason
    if act.with_graph and (x.requires_grad or y.requires_grad) and not act.gate.requires_grad:
        return "its gate needs no gradient"
    if act.expanded is not None or not gates.SigmoidLerpFunction.fuses(x, y, act.gate):
        return "no kernel takes its shapes"
    like_x = [t.stride() == x.stride() or _have_same_strides(x, t, True, False) for t in (y, act.gate)]
    if not (x.shape == y.shape and _covers(x, act.gate) and all(like_x)) and not all(
        t.is_contiguous() for t in (x, y, act.gate)
    ):
        return "its operands have their axes in different orders"
    same = act.gate.dtype == x.dtype == y.dtype
    return None if same and activated.runs_kernel(x, y, act.gate) else "no kernel takes its dtypes"


def _change(act: Activated) -> str | None:
    """Returns why the gate does not give the value any more; None if it does."""
    if act.is_read:
        return "other code has read its sigmoid or silu"
    if act.with_graph != torch.is_grad_enabled():
        return "autograd is switched between the sigmoid and the product"
    return "its gate has changed in place" if act.gate_changed() else None


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


def glu(function: Any, input: Any, dim: int = -1) -> Any:
    """Computes ``F.glu(input, dim)`` by sigtorch's function, but for what PyTorch's refuses."""
    can_halve = type(input) in _eligible.PLAIN_TYPES and type(dim) is int and -input.dim() <= dim < input.dim()
    if function is F.glu and can_halve and input.shape[dim] % 2 == 0 and input.is_floating_point():
        return gates.glu(input, dim)
    return function(input, dim)


def takes_swiglu(
    activation: Activation, function: Any, tensors: tuple[Any, ...], interleaved: bool, *numbers: Any
) -> bool:
    """Tells whether a kernel computes a clamped SwiGLU of gate and up, or of both in one, with alpha, limit and offset."""
    alpha, limit, offset = numbers
    if torch.compiler.is_compiling() or fusable_activation(function) != activation:
        return False
    are_numbers = all(type(n) in (int, float) for n in (alpha, limit, offset))
    if not are_numbers or not limit >= 0 or not all(type(t) in _eligible.PLAIN_TYPES for t in tensors):
        return False
    return _fuses(_swiglu_obstacle(*tensors))


def _swiglu_obstacle(gate: torch.Tensor, up: torch.Tensor | None = None) -> str | None:
    """Returns why no kernel computes a clamped SwiGLU; None if one gives its values and strides."""
    if up is None:
        if not gate.dim() or gate.shape[-1] % 2:
            return "no kernel takes its shapes"
        return None if activated.runs_kernel(gate) else "no kernel takes its dtypes"
    if torch.is_grad_enabled() and up.requires_grad and not gate.requires_grad:
        return "its gate needs no gradient"
    if gate.shape != up.shape:
        return "no kernel takes its shapes"
    if gate.stride() != up.stride():
        return "its operands have their axes in different orders"
    return None if gate.dtype == up.dtype and activated.runs_kernel(gate, up) else "no kernel takes its dtypes"


def clamped_swiglu(tensors: tuple[torch.Tensor, ...], interleaved: bool, *numbers: float) -> torch.Tensor:
    """Computes by a kernel what :func:`takes_swiglu` takes."""
    if len(tensors) == 1:
        return gates.SwiGLUPackedVariantFunction.apply(*tensors, interleaved, *map(float, numbers), _runner())
    return gates.SwiGLUVariantFunction.apply(*tensors, *map(float, numbers), _runner())
