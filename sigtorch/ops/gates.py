"""The gates, each whole: functions, then formulas, autograd Functions and modules in the same order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _checks
from sigtorch._autograd import FromInputs, formula_grads, fused, marker, passes_of, saved
from sigtorch._backend import aten_sigmoid, select


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    r"""Computes :math:`\sigma(g) \cdot x`, plus ``residual`` where one is given.

    Args:
        x: what is gated, any shape and floating dtype.
        gate: logits of the gate, broadcastable against x. Fused on CUDA for x's shape, one gate a row ``(..., 1)``, one
            a feature ``(features,)`` and one a channel ``(N, C, 1, 1)``; PyTorch's operators for the rest.
        residual: added to the result, broadcastable; fused where it has x's shape.

    Returns:
        A tensor of the broadcast shape and the promoted dtype. Only x and gate are kept for backward.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not broadcast, or tensors on several devices.

    Source:
        Qiu et al., "Gated Attention for Large Language Models", 2025, arXiv:2505.06708; Hu et al.,
        "Squeeze-and-Excitation Networks", 2018, arXiv:1709.01507.
    """
    given = (x, gate) if residual is None else (x, gate, residual)
    backend = select(*given)
    if backend == "formula" or not fuses(x, gate) or (residual is not None and residual.shape != x.shape):
        return _checks.broadcast("sigmoid_gate()", _gate_formula, ("x", "gate", "residual"), given)
    if residual is None:
        return SigmoidGateFunction.apply(x, gate, backend)
    return SigmoidGateResidualFunction.apply(x, gate, residual, backend)


def fuses(x: torch.Tensor, gate: torch.Tensor) -> bool:
    """The shapes that the kernels broadcast: x's own, (..., 1), (features,) and (N, C, 1, 1)."""
    if gate.shape == x.shape:
        return True
    if gate.numel() <= 1:
        return False
    channels = (*x.shape[:2], *(1,) * (x.dim() - 2))
    return gate.shape in ((*x.shape[:-1], 1), x.shape[-1:], channels)


def sigmoid_lerp(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    r"""Computes :math:`\sigma(g) \cdot x + (1 - \sigma(g)) \cdot y`, the update of highway layers and GRU cells.

    Args:
        x: taken where the gate is open, any shape and floating dtype.
        y: taken where it is closed, broadcastable against x.
        gate: logits of the gate, broadcastable against both. Fused where all three have one shape.

    Returns:
        A tensor of the broadcast shape and the promoted dtype. Only the three inputs are kept for backward.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not broadcast, or tensors on several devices.

    Source:
        Srivastava, Greff and Schmidhuber, "Highway Networks", 2015, arXiv:1505.00387.
    """
    backend = select(x, y, gate)
    if backend == "formula" or not x.shape == y.shape == gate.shape:
        return _checks.broadcast("sigmoid_lerp()", _lerp_formula, ("x", "y", "gate"), (x, y, gate))
    return SigmoidLerpFunction.apply(x, y, gate, backend)


def glu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    r"""Computes :math:`a \cdot \sigma(b)` of the halves a, b of x along ``dim``, as :func:`torch.nn.functional.glu` does.

    Args:
        x: any floating dtype; ``dim`` has an even size.
        dim: the axis to halve.

    Returns:
        A tensor of x's shape with ``dim`` halved. Only x is kept for backward; its gradient is written into its halves.

    Raises:
        TypeError: x is not a tensor.
        ValueError: an odd size, or no such dimension.

    Source:
        Dauphin et al., "Language Modeling with Gated Convolutional Networks", 2017, arXiv:1612.08083.
    """
    backend = select(x)
    dim = _checks.halves("glu()", "x", x, dim)
    if backend == "formula":
        return F.glu(x, dim)
    return GLUFunction.apply(x, dim, backend)


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    r"""Computes :math:`\mathrm{silu}(g) \cdot u = g \, \sigma(g) \cdot u`.

    Args:
        gate: any shape and floating dtype; without ``up``, both packed along the last axis, the gate first, as in
            ``F.silu(a) * b`` of ``a, b = x.chunk(2, -1)``.
        up: broadcastable against gate; fused where it has its shape.

    Returns:
        A tensor of the broadcast shape, or of the packed one with its last axis halved, and the promoted dtype. Only the
        inputs are kept for backward; a packed gradient is written into its halves.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not broadcast, an odd last axis of a packed tensor, or tensors on several devices.

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.
    """
    if up is None:
        backend = select(gate)
        _checks.halves("swiglu()", "gate", gate, -1)
        if backend == "formula":
            return _swiglu_packed_formula(gate)
        return SwiGLUPackedFunction.apply(gate, backend)
    backend = select(gate, up)
    if backend == "formula" or gate.shape != up.shape:
        return _checks.broadcast("swiglu()", _swiglu_formula, ("gate", "up"), (gate, up))
    return SwiGLUFunction.apply(gate, up, backend)


def _gate_formula(x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    gated = aten_sigmoid(gate) * x
    return gated if residual is None else gated + residual


def _lerp_formula(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    s = aten_sigmoid(gate)
    return s * x + (1 - s) * y


def _swiglu_formula(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _swiglu_packed_formula(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class SigmoidGateFunction(FromInputs):
    family, op, tensors, formula = "gates", "sigmoid_gate", 2, staticmethod(_gate_formula)


class SigmoidGateResidualFunction(Function):
    """The residual's gradient is the incoming one: it is not saved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor, backend: str) -> torch.Tensor:
        forward_pass, ctx.backward_pass = passes_of(backend, "gates", "sigmoid_gate")
        ctx.save_for_backward(marker("sigmoid_gate"), x, gate)
        return forward_pass(x, gate, residual)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate = saved(ctx, "sigmoid_gate")
        if fused(grad, x, gate):
            return *ctx.backward_pass(grad, x, gate), grad, None
        return *formula_grads(ctx.needs_input_grad[:2], _gate_formula, (x, gate), grad), grad, None


class SigmoidLerpFunction(FromInputs):
    family, op, tensors, formula = "gates", "sigmoid_lerp", 3, staticmethod(_lerp_formula)


class GLUFunction(FromInputs):
    family, op, tensors, formula = "gates", "glu", 1, staticmethod(F.glu)


class SwiGLUFunction(FromInputs):
    family, op, tensors, formula = "gates", "swiglu", 2, staticmethod(_swiglu_formula)


class SwiGLUPackedFunction(FromInputs):
    family, op, tensors, formula = "gates", "swiglu_packed", 1, staticmethod(_swiglu_packed_formula)


class SigmoidGate(torch.nn.Module):
    """:func:`sigtorch.sigmoid_gate` as a module: ``forward(x, gate, residual=None)``."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """σ(gate)·x, plus residual: of the broadcast shape."""
        return sigmoid_gate(x, gate, residual)


class GLU(torch.nn.GLU):
    """:func:`sigtorch.glu` as a module; drop-in for :class:`torch.nn.GLU`, which it is one of.

    Args:
        dim: the axis to halve.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """One half times the sigmoid of the other: of input's shape with ``dim`` halved."""
        return glu(input, self.dim)


class SwiGLU(torch.nn.Module):
    """:func:`sigtorch.swiglu` as a module: ``forward(gate, up)``, or packed ``forward(x)``."""

    def forward(self, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """silu(gate)·up, of the broadcast shape; of both packed in one, with the last axis halved."""
        return swiglu(gate, up)


class GatedMLP(torch.nn.Module):
    """The feed-forward layer of Llama and its kin, ``down_proj(swiglu(gate_proj(x), up_proj(x)))``.

    Args:
        dim: features of the input and the output.
        hidden: features in between.
        bias: whether the projections have one.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(dim, hidden, bias, device, dtype)
        self.up_proj = torch.nn.Linear(dim, hidden, bias, device, dtype)
        self.down_proj = torch.nn.Linear(hidden, dim, bias, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (..., dim) to (..., dim)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
