"""Passes over CPU tensors, for the one operation whose precision no operator of PyTorch gives; named as in kernels."""

from __future__ import annotations

import torch

from sigtorch._backend import HALF_DTYPES


def sigmoid_from_input_forward(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


def sigmoid_from_input_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    wide = x.float() if x.dtype in HALF_DTYPES else x
    return ((grad * (torch.sigmoid(wide) * torch.sigmoid(-wide))).to(x.dtype),)
