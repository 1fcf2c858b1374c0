"""The sigmoid, whole: function, formula, autograd Functions and module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _checks
from sigtorch._autograd import FromInputs, fused, passes_of
from sigtorch._backend import HALF_DTYPES, aten_sigmoid, select


def sigmoid(x: torch.Tensor, *, save: str = "output") -> torch.Tensor:
    r"""Computes :math:`\sigma(x) = 1 / (1 + e^{-x})` for every element, as :func:`torch.sigmoid` does.

    Args:
        x: any shape, strides and dtype that :func:`torch.sigmoid` takes; integers and bools promote to the default
            float dtype.
        save: what is kept for backward. ``"output"`` keeps s and computes :math:`g \cdot s (1 - s)`, as PyTorch does;
            nothing is computed twice. ``"input"`` keeps x and computes :math:`g \cdot \sigma(x)\,\sigma(-x)`, which
            does not cancel as s nears 1: a saved s makes bfloat16 gradients off by up to 53 % from x = 4 to 6, more from
            there, and 0 from 6.24 on; float32 ones are 0 from 16.64 on. It costs the same memory. Complex and sparse
            tensors have PyTorch's gradient in either case.

    Returns:
        A tensor of x's shape and memory format.

    Raises:
        TypeError: x is not a tensor.
        ValueError: an unknown ``save``.

    Source:
        Han and Moraga, "The influence of the sigmoid function parameters on the speed of backpropagation learning",
        1995; the derivation is in ``docs/derivation.md``.
    """
    if isinstance(save, str) and save == "output":
        backend = select(x)
        if backend == "formula":
            if type(x) is not torch.Tensor:
                _checks.tensors("sigmoid()", x=x)
            return aten_sigmoid(x)
        return SigmoidFunction.apply(x, backend)
    _checks.save(save, "sigmoid()")
    backend = select(x, cpu_pass=True)
    if backend == "formula" or not x.is_floating_point():
        _checks.tensors("sigmoid()", x=x)
        return _from_input(x)
    return SigmoidFromInputFunction.apply(x, backend)


def _from_input(x: torch.Tensor) -> torch.Tensor:
    """exp(-softplus(-x)): its gradient is that times sigmoid(-x), where nothing cancels.

    PyTorch's own threshold of 20 would cost float64 its last digits.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout != torch.strided or x.is_nested:
        return aten_sigmoid(x)
    wide = x.float() if x.dtype in HALF_DTYPES else x
    return torch.exp(-F.softplus(-wide, threshold=50)).to(x.dtype)


class SigmoidFunction(Function):
    """Saves the output, as torch.sigmoid does: forward has computed all that backward needs.

    Without a marker: a checkpoint may hand back what torch.sigmoid saved, which is the same.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, backend: str) -> torch.Tensor:
        forward_pass, ctx.backward_pass = passes_of(backend, "sigmoid", "sigmoid")
        s = forward_pass(x)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (s,) = ctx.saved_tensors
        if fused(grad, s):
            return ctx.backward_pass(grad, s), None
        return torch.ops.aten.sigmoid_backward(grad, s), None


class SigmoidFromInputFunction(FromInputs):
    family, op, tensors, formula = "sigmoid", "sigmoid_from_input", 1, staticmethod(_from_input)


class Sigmoid(torch.nn.Sigmoid):
    """:func:`sigtorch.sigmoid` as a module; drop-in for :class:`torch.nn.Sigmoid`, which it is one of.

    Args:
        save: what is kept for backward, ``"output"`` or ``"input"``.

    Raises:
        ValueError: an unknown ``save``.
    """

    def __init__(self, *, save: str = "output") -> None:
        super().__init__()
        _checks.save(save, "Sigmoid()")
        self.save = save

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The sigmoid of every element."""
        return sigmoid(input, save=self.save)

    def extra_repr(self) -> str:
        return f"save={self.save!r}"
