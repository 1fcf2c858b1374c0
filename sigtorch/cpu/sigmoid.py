"""CPU passes of ``sigmoid(save="input")``, more precise than PyTorch's operators; named as in ``kernels/``."""

from __future__ import annotations

import torch

from sigtorch._eligible import HALF_DTYPES


def sigmoid_from_input_forward(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


def sigmoid_from_input_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    """The derivative is even, and at -|x| the sigmoid is at most a half: PyTorch's s * (1 - s) loses nothing there."""
    if x.dtype in HALF_DTYPES:
        grad, x, dtype = grad.float(), x.float(), x.dtype
    else:
        dtype = x.dtype
    small = x.abs().neg_().sigmoid_()
    return (torch.ops.aten.sigmoid_backward(grad, small).to(dtype),)
