"""The gates of a sigmoid: functions, then formulas, autograd Functions and modules in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _checks
from sigtorch._autograd import Passes, backward_runner, formula_grads, marker, saved
from sigtorch._backend import Runner, select
from sigtorch._elementwise import FromInputs
from sigtorch._eligible import aten_sigmoid


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    r"""Computes :math:`\sigma(g) \cdot x`, plus ``residual`` if given.

    Args:
        x: the gated tensor, any shape and floating dtype.
        gate: logits of the gate, broadcastable against x: of x's shape, one gate a row ``(..., 1)``, a feature
            ``(features,)``, a channel ``(N, C, 1, 1)`` or a pixel ``(N, 1, H, W)``, or of any other shape. It may be
            larger than x. All are fused on CUDA.
        residual: added to the result, broadcastable.

    Returns:
        A tensor of the broadcast shape and the promoted dtype, with the strides that ``torch.empty_like`` gives for the
        first argument of that shape. Only x and gate are kept for backward. The gradient of a broadcast argument is summed
        in the order of memory, always alike, in float32 or float64.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not broadcast, or tensors on several devices.

    Example:
        >>> x, gate = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 100.0])
        >>> sigtorch.sigmoid_gate(x, gate)
        tensor([0.5000, 2.0000])
        >>> sigtorch.sigmoid_gate(x, gate, residual=x)
        tensor([1.5000, 4.0000])

    Source:
        Qiu et al., "Gated Attention for Large Language Models", 2025, arXiv:2505.06708; Hu et al.,
        "Squeeze-and-Excitation Networks", 2018, arXiv:1709.01507.
    """
    given = (x, gate) if residual is None else (x, gate, residual)
    runner = select(*given)
    if runner == "aten" or not SigmoidGateFunction.fuses(*given):
        return _checks.run_explained("sigmoid_gate()", _gate_formula, ("x", "gate", "residual"), given)
    if residual is None:
        return SigmoidGateFunction.apply(x, gate, runner)
    return SigmoidGateResidualFunction.apply(x, gate, residual, runner)


def sigmoid_lerp(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    r"""Computes :math:`\sigma(g) \cdot x + (1 - \sigma(g)) \cdot y`, the update of highway layers and GRU cells.

    Args:
        x: the result of an open gate, any shape and floating dtype.
        y: the result of a closed gate, broadcastable against x.
        gate: logits of the gate, broadcastable against both.

    Returns:
        A tensor of the broadcast shape and the promoted dtype. Only the three inputs are kept for backward.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not broadcast, or tensors on several devices.

    Example:
        >>> x, y = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])
        >>> sigtorch.sigmoid_lerp(x, y, torch.tensor([0.0, -100.0]))
        tensor([2., 3.])

    Source:
        Srivastava, Greff and Schmidhuber, "Highway Networks", 2015, arXiv:1505.00387.
    """
    runner = select(x, y, gate)
    if runner == "aten" or not SigmoidLerpFunction.fuses(x, y, gate):
        return _checks.run_explained("sigmoid_lerp()", _lerp_formula, ("x", "y", "gate"), (x, y, gate))
    return SigmoidLerpFunction.apply(x, y, gate, runner)


def glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    r"""Computes :math:`a \cdot \sigma(b)` of input's halves a, b along ``dim``, as :func:`torch.nn.functional.glu` does.

    Args:
        input: any floating dtype; ``dim`` has an even size.
        dim: the dimension to halve.

    Returns:
        A tensor of input's shape with ``dim`` halved. Only input is kept for backward, which writes both halves of its
        gradient in one pass.

    Raises:
        TypeError: input is not a tensor.
        ValueError: an odd size, or no such dimension.

    Example:
        >>> sigtorch.glu(torch.tensor([1.0, 2.0, 0.0, 100.0]))
        tensor([0.5000, 2.0000])

    Source:
        Dauphin et al., "Language Modeling with Gated Convolutional Networks", 2017, arXiv:1612.08083.
    """
    runner = select(input, opaque=True)
    dim = _checks.check_halves("glu()", "input", input, dim)
    if runner == "aten":
        return F.glu(input, dim)
    if runner == "compiled":
        return torch.ops.sigtorch.glu.default(input, dim)  # type: ignore[no-any-return]
    return GLUFunction.apply(input, dim, runner)


def _gate_formula(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    gated = aten_sigmoid(gate) * x
    return gated if residual is None else gated + residual


def _lerp_formula(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    s = aten_sigmoid(gate)
    return s * x + (1 - s) * y


class SigmoidGateFunction(FromInputs):
    op, arguments = "sigmoid_gate", "Tensor x, Tensor gate, Tensor? residual=None"
    saved_arguments = "Tensor x, Tensor gate"
    tensor_count, formula = 2, staticmethod(_gate_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import sigmoid_gate_backward, sigmoid_gate_forward

        return Passes(sigmoid_gate_forward, sigmoid_gate_backward)

    @staticmethod
    def rest_grads(grad: torch.Tensor, *rest: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        return [t if t is None else grad.sum_to_size(t.shape).to(t.dtype) for t in rest]


class SigmoidGateResidualFunction(Function):
    """Does not save the residual: its gradient is the incoming one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor, runner: Runner) -> torch.Tensor:
        ctx.runner, ctx.shape = runner, residual.shape
        ctx.save_for_backward(marker("sigmoid_gate"), x, gate)
        return SigmoidGateFunction.passes(ctx.runner).forward(x, gate, residual)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate = saved(ctx, "sigmoid_gate")
        chosen = backward_runner(ctx.runner, grad, x, gate)
        rest = grad if grad.shape == ctx.shape else grad.sum_to_size(ctx.shape)
        if chosen != "aten":
            return *SigmoidGateFunction.passes(chosen).backward(grad, x, gate), rest, None
        return *formula_grads(ctx.needs_input_grad[:2], _gate_formula, (x, gate), grad), rest, None


class SigmoidLerpFunction(FromInputs):
    op, arguments = "sigmoid_lerp", "Tensor x, Tensor y, Tensor gate"
    tensor_count, formula = 3, staticmethod(_lerp_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import sigmoid_lerp_backward, sigmoid_lerp_forward

        return Passes(sigmoid_lerp_forward, sigmoid_lerp_backward)


class GLUFunction(FromInputs):
    op, arguments = "glu", "Tensor input, int dim"
    tensor_count, formula = 1, staticmethod(F.glu)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import glu_backward, glu_forward

        return Passes(glu_forward, glu_backward)

    @staticmethod
    def check(x: torch.Tensor, dim: int) -> None:
        _checks.check_halves("torch.ops.sigtorch.glu", "input", x, dim)

    @staticmethod
    def lead(x: torch.Tensor, dim: int) -> torch.Tensor:
        return x.chunk(2, dim)[0]


class SigmoidGate(torch.nn.Module):
    """:func:`sigtorch.sigmoid_gate` as a module.

    Example:
        >>> sigtorch.nn.SigmoidGate()(torch.tensor([1.0]), torch.tensor([0.0]))
        tensor([0.5000])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Returns σ(gate)·x, plus residual, of the broadcast shape."""
        return sigmoid_gate(x, gate, residual)


class SigmoidLerp(torch.nn.Module):
    """:func:`sigtorch.sigmoid_lerp` as a module.

    Example:
        >>> sigtorch.nn.SigmoidLerp()(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.0]))
        tensor([2.])

        A GRU cell: the reset gate with its sum is one kernel, the update gate another.

        >>> from torch.nn.functional import linear
        >>> class GRUCell(torch.nn.GRUCell):
        ...     update = sigtorch.nn.SigmoidLerp()
        ...
        ...     def forward(self, x, h):
        ...         reset_x, update_x, new_x = linear(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        ...         reset_h, update_h, new_h = linear(h, self.weight_hh, self.bias_hh).chunk(3, -1)
        ...         new = torch.tanh(sigtorch.sigmoid_gate(new_h, reset_x + reset_h, residual=new_x))
        ...         return self.update(h, new, update_x + update_h)
        >>> cell, x, h = GRUCell(4, 8), torch.randn(2, 4), torch.randn(2, 8)
        >>> torch.allclose(cell(x, h), torch.nn.GRUCell.forward(cell, x, h), atol=1e-6)
        True
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Returns σ(gate)·x + (1 − σ(gate))·y, of the broadcast shape."""
        return sigmoid_lerp(x, y, gate)


class GLU(torch.nn.GLU):
    """:func:`sigtorch.glu` as a module, a subclass of :class:`torch.nn.GLU`.

    Args:
        dim: the dimension to halve.

    Example:
        >>> sigtorch.nn.GLU(dim=0)(torch.tensor([1.0, 0.0]))
        tensor([0.5000])
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns one half times the sigmoid of the other, of input's shape with ``dim`` halved."""
        return glu(input, self.dim)
