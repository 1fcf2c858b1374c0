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
            return torch.sigmoid(x)
        return _autograd.SigmoidFunction.apply(x, backend)
    _checks.save(save, "sigmoid()")
    backend = select(x, cpu_pass=True)
    if backend == "formula" or not x.is_floating_point():
        _checks.tensors("sigmoid()", x=x)
        return formulas.sigmoid_from_input(x)
    return _autograd.SigmoidFromInputFunction.apply(x, backend)


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
    if backend == "formula" or not _gates_fused(x, gate) or (residual is not None and residual.shape != x.shape):
        return _checks.broadcast("sigmoid_gate()", formulas.sigmoid_gate, ("x", "gate", "residual"), given)
    if residual is None:
        return _autograd.SigmoidGateFunction.apply(x, gate, backend)
    return _autograd.SigmoidGateResidualFunction.apply(x, gate, residual, backend)


def _gates_fused(x: torch.Tensor, gate: torch.Tensor) -> bool:
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
        return _checks.broadcast("sigmoid_lerp()", formulas.sigmoid_lerp, ("x", "y", "gate"), (x, y, gate))
    return _autograd.SigmoidLerpFunction.apply(x, y, gate, backend)


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
        return formulas.glu(x, dim)
    return _autograd.GLUFunction.apply(x, dim, backend)


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
            return formulas.swiglu_packed(gate)
        return _autograd.SwiGLUPackedFunction.apply(gate, backend)
    backend = select(gate, up)
    if backend == "formula" or gate.shape != up.shape:
        return _checks.broadcast("swiglu()", formulas.swiglu, ("gate", "up"), (gate, up))
    return _autograd.SwiGLUFunction.apply(gate, up, backend)
