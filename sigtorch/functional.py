"""The public functions: checks, then the fused passes or the formula."""

from __future__ import annotations

import torch

from sigtorch import _autograd, _checks, formulas
from sigtorch._backend import select


def sigmoid(x: torch.Tensor, *, save: str = "output") -> torch.Tensor:
    r"""Computes :math:`\sigma(x) = 1 / (1 + e^{-x})` for every element, as :func:`torch.sigmoid` does.

    Args:
        x: any shape, strides and dtype that :func:`torch.sigmoid` takes; integers and bools promote to the default
            float dtype.
        save: what is kept for backward. ``"output"`` keeps s and computes :math:`g \cdot s (1 - s)`, as PyTorch does;
            nothing is computed twice. ``"input"`` keeps x and computes :math:`g \cdot \sigma(x)\,\sigma(-x)`, which
            does not cancel where s rounds to 1: in bfloat16 from x = 4 on, in float32 from x = 10 on. It costs the
            same memory. Complex and sparse tensors have PyTorch's gradient in either case.

    Returns:
        A tensor of x's shape and memory format.

    Raises:
        TypeError: x is not a tensor.
        ValueError: an unknown ``save``.

    Source:
        Han and Moraga, "The influence of the sigmoid function parameters on the speed of backpropagation learning",
        1995; the derivation is in ``docs/derivation.md``.
    """
    _checks.save(save, "sigmoid()")
    if save == "output":
        backend = select(x)
        if backend == "formula":
            _checks.tensors("sigmoid()", x=x)
            return formulas.sigmoid(x)
        return _autograd.SigmoidFunction.apply(x, backend)
    backend = select(x, cpu_pass=True)
    if backend == "formula" or not x.is_floating_point():
        _checks.tensors("sigmoid()", x=x)
        return formulas.sigmoid_from_input(x)
    return _autograd.SigmoidFromInputFunction.apply(x, backend)
