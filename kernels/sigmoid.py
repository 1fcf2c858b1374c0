"""Forward and backward passes of the sigmoid; each reads and writes every element once."""

from __future__ import annotations

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._map import launch_map


def sigmoid_forward(x: torch.Tensor) -> torch.Tensor:
    s = torch.empty_like(x)
    launch_map(_math.sigmoid, (x,), (s,))
    return s


def sigmoid_backward(grad: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor]:
    grad_x = torch.empty_like(s)
    launch_map(_math.dsigmoid_from_output, (grad, s), (grad_x,))
    return (grad_x,)


def sigmoid_from_input_forward(x: torch.Tensor) -> torch.Tensor:
    return sigmoid_forward(x)


def sigmoid_from_input_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    grad_x = torch.empty_like(x)
    launch_map(_math.dsigmoid_from_input, (grad, x), (grad_x,))
    return (grad_x,)
