"""The sigmoid: function, formula, autograd Functions and module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _checks
from sigtorch._autograd import FromInputs, Passes, can_run_fused_backward
from sigtorch._backend import select
from sigtorch._checks import Save
from sigtorch._eligible import HALF_DTYPES, aten_sigmoid
from sigtorch._once import once


def sigmoid(input: torch.Tensor, *, save: Save = "output") -> torch.Tensor:
    r"""Computes :math:`\sigma(x) = 1 / (1 + e^{-x})` for every element, as :func:`torch.sigmoid` does.

    Args:
        input: x, of any shape, strides and dtype that :func:`torch.sigmoid` takes; integers and bools promote to the
            default float dtype.
        save: the tensor kept for backward. ``"output"`` keeps s and computes :math:`g \cdot s (1 - s)`, as PyTorch does;
            nothing is computed twice. ``"input"`` keeps x and computes :math:`g \cdot \sigma(x)\,\sigma(-x)`, which
            does not cancel as s nears 1: a saved s makes bfloat16 gradients off by up to 53 % from x = 4 to 6, more from
            there, and 0 from 6.24 on; float32 ones are 0 from 16.64 on. Both cost the same memory. Complex and sparse
            tensors have PyTorch's gradient in either case.

    Returns:
        A tensor of input's shape and memory format.

    Raises:
        TypeError: input is not a tensor.
        ValueError: an unknown ``save``.

    Example:
        >>> x = torch.tensor([0.0, 10.0], dtype=torch.bfloat16, requires_grad=True)
        >>> sigtorch.sigmoid(x)
        tensor([0.5000, 1.0000], dtype=torch.bfloat16, grad_fn=<SigmoidBackward0>)
        >>> sigtorch.sigmoid(x, save="input").sum().backward()
        >>> x.grad  # with save="output" the second would be 0
        tensor([2.5000e-01, 4.5300e-05], dtype=torch.bfloat16)

    Source:
        Han and Moraga, "The influence of the sigmoid function parameters on the speed of backpropagation learning",
        1995; the derivation is in ``docs/derivation.md``.
    """
    if isinstance(save, str) and save == "output":
        runner = select(input)
        if runner == "aten":
            if type(input) is not torch.Tensor:
                _checks.check_tensors("sigmoid()", input=input)
            return aten_sigmoid(input)
        return SigmoidFunction.apply(input, runner)
    _checks.check_save("sigmoid()", save)
    runner = select(input, cpu_pass=True)
    if runner == "aten" or not input.is_floating_point():
        _checks.check_tensors("sigmoid()", input=input)
        return _from_input(input)
    return SigmoidFromInputFunction.apply(input, runner)


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

    Without a marker: a checkpoint may return the tensor that torch.sigmoid saved, which is the same.
    """

    @staticmethod
    @once
    def passes(runner: str) -> Passes:
        from sigtorch.kernels.sigmoid import sigmoid_backward, sigmoid_forward

        return sigmoid_forward, sigmoid_backward

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, runner: str) -> torch.Tensor:
        forward_pass, ctx.backward_pass = SigmoidFunction.passes(runner)
        s = forward_pass(x)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (s,) = ctx.saved_tensors
        if can_run_fused_backward(grad, s):
            return ctx.backward_pass(grad, s), None
        return torch.ops.aten.sigmoid_backward(grad, s), None


class SigmoidFromInputFunction(FromInputs):
    op, tensor_count, formula = "sigmoid_from_input", 1, staticmethod(_from_input)

    @staticmethod
    @once
    def passes(runner: str) -> Passes:
        if runner == "cpu":
            from sigtorch.cpu.sigmoid import sigmoid_from_input_backward, sigmoid_from_input_forward
        else:
            from sigtorch.kernels.sigmoid import sigmoid_from_input_backward, sigmoid_from_input_forward

        return sigmoid_from_input_forward, sigmoid_from_input_backward


class Sigmoid(torch.nn.Sigmoid):
    """:func:`sigtorch.sigmoid` as a module, a subclass of :class:`torch.nn.Sigmoid`.

    Args:
        save: the tensor kept for backward, ``"output"`` or ``"input"``.

    Raises:
        ValueError: an unknown ``save``.

    Example:
        >>> sigtorch.nn.Sigmoid(save="input")
        Sigmoid(save='input')
    """

    def __init__(self, *, save: Save = "output") -> None:
        super().__init__()
        _checks.check_save("Sigmoid()", save)
        self.save: Save = save

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the sigmoid of every element."""
        return sigmoid(input, save=self.save)

    def extra_repr(self) -> str:
        return f"save={self.save!r}"
