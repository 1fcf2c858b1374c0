"""The sigmoid: function, formula, autograd Functions and module."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from sigtorch import _checks, _operators
from sigtorch._autograd import Passes, backward_runner
from sigtorch._backend import Runner, select
from sigtorch._checks import Save
from sigtorch._elementwise import FromInputs, in_tuple
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
    """Computes 1 / (1 + e), or e / (1 + e) below 0, with e = exp(-|x|): nothing cancels in its derivatives.

    A compiler fuses it into one pass over vectors, and none of its operators overflows.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout != torch.strided or x.is_nested:
        return aten_sigmoid(x)
    wide = x.float() if x.dtype in HALF_DTYPES else x
    is_positive = wide >= 0
    # No abs(), whose derivative at 0 is neither branch's.
    e = torch.exp(torch.where(is_positive, -wide, wide))
    return (torch.where(is_positive, 1.0, e) / (1 + e)).to(x.dtype)


class SigmoidFunction(Function):
    """Saves the output, as torch.sigmoid does: forward has computed all that backward needs.

    Without a marker: a checkpoint may return the tensor that torch.sigmoid saved, which is the same.
    """

    @staticmethod
    @once
    def passes(runner: Runner) -> Passes:
        """Returns the passes; kernels are imported when the first tensor needs them."""
        if runner == "operator":
            return Passes(torch.ops.sigtorch.sigmoid.default, in_tuple(torch.ops.sigtorch.sigmoid_backward.default))
        from sigtorch.kernels.sigmoid import sigmoid_backward, sigmoid_forward

        return Passes(sigmoid_forward, sigmoid_backward)

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, runner: Runner) -> torch.Tensor:
        ctx.runner = runner
        s = SigmoidFunction.passes(runner).forward(x)
        ctx.save_for_backward(s)
        return s  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (s,) = ctx.saved_tensors
        runner = backward_runner(ctx.runner, grad, s)
        if runner == "aten":
            return torch.ops.aten.sigmoid_backward(grad, s), None
        return *SigmoidFunction.passes(runner).backward(grad, s), None


def _operator(x: torch.Tensor) -> torch.Tensor:
    runner = select(x)
    return _operators.laid_out(x, aten_sigmoid(x) if runner == "aten" else SigmoidFunction.passes(runner).forward(x))


def _operator_backward(grad: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    runner = select(grad, s)
    if runner == "aten":
        return _operators.laid_out(s, torch.ops.aten.sigmoid_backward(grad, s))
    (grad_x,) = SigmoidFunction.passes(runner).backward(grad, s)
    return grad_x  # type: ignore[no-any-return]


def _operator_gradient(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor]:
    (s,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (torch.ops.aten.sigmoid_backward(grad, s),)
    return (torch.ops.sigtorch.sigmoid_backward(grad, s),)


_operators.define(
    "sigmoid", "(Tensor input) -> Tensor", _operator,
    lambda x: torch.empty_like(x, dtype=torch.sigmoid(x).dtype),
    _operators.Gradient(lambda ctx, args, s: ctx.save_for_backward(s), _operator_gradient),
)  # fmt: skip
_operators.define(
    "sigmoid_backward", "(Tensor grad, Tensor output) -> Tensor", _operator_backward,
    lambda grad, s: torch.empty_like(s),
)  # fmt: skip


class SigmoidFromInputFunction(FromInputs):
    op, arguments = "sigmoid_from_input", "Tensor input"
    tensor_count, cpu_pass, formula = 1, True, staticmethod(_from_input)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        if runner == "cpu":
            from sigtorch.cpu.sigmoid import sigmoid_from_input_backward, sigmoid_from_input_forward
        else:
            from sigtorch.kernels.sigmoid import sigmoid_from_input_backward, sigmoid_from_input_forward

        return Passes(sigmoid_from_input_forward, sigmoid_from_input_backward)


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
