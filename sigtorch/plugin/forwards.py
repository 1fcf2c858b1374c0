"""Forwards that replace those of PyTorch's modules."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sigtorch.ops import gates, losses, sigmoid
from sigtorch.ops.losses.checks import pytorch_takes


def sigmoid_forward(self: Any, input: torch.Tensor) -> torch.Tensor:
    """The sigmoid of every element."""
    return sigmoid.sigmoid(input)


def sigmoid_from_input_forward(self: Any, input: torch.Tensor) -> torch.Tensor:
    """The sigmoid of every element, of which backward gets the input."""
    return sigmoid.sigmoid(input, save="input")


def glu_forward(self: Any, input: torch.Tensor) -> torch.Tensor:
    """One half times the sigmoid of the other."""
    return gates.glu(input, self.dim)


def bce_forward(self: Any, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss, or PyTorch's own error: so no class indices."""
    if pytorch_takes(input, target, self.weight, self.reduction, self.pos_weight):
        return losses.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )
    return torch.nn.BCEWithLogitsLoss.forward(self, input, target)


class Swap(NamedTuple):
    """A class of PyTorch's, its forward when sigtorch is imported, and ours by what a sigmoid saves."""

    module_class: type[torch.nn.Module]
    original: Any
    code: Any
    output: Any
    input: Any
    name: str


def _swap(module_class: Any, output: Any, input: Any = None) -> Swap:
    return Swap(
        module_class,
        module_class.forward,
        module_class.forward.__code__,
        output,
        input or output,
        f"sigtorch.nn.{module_class.__name__}",
    )


SWAPS = (
    _swap(torch.nn.Sigmoid, sigmoid_forward, sigmoid_from_input_forward),
    _swap(torch.nn.GLU, glu_forward),
    _swap(torch.nn.BCEWithLogitsLoss, bce_forward),
)
