"""Forwards that replace those of PyTorch's modules. Pickles of patched modules name these functions: keep their names."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sigtorch.ops import gates, losses, sigmoid
from sigtorch.ops.losses.checks import pytorch_takes


def sigmoid_forward(self: Any, input: torch.Tensor) -> torch.Tensor:
    """Computes the sigmoid of every element."""
    return sigmoid.sigmoid(input)


def sigmoid_from_input_forward(self: Any, input: torch.Tensor) -> torch.Tensor:
    """Computes the sigmoid of every element, and saves the input for backward."""
    return sigmoid.sigmoid(input, save="input")


def glu_forward(self: Any, input: torch.Tensor) -> torch.Tensor:
    """Computes one half times the sigmoid of the other."""
    return gates.glu(input, self.dim)


def bce_forward(self: Any, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Computes the loss; raises PyTorch's own error for arguments that PyTorch refuses, such as class indices."""
    if pytorch_takes(input, target, self.weight, self.reduction, self.pos_weight):
        return losses.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )
    return torch.nn.BCEWithLogitsLoss.forward(self, input, target)


class Replacement(NamedTuple):
    """A class of PyTorch's, its forward and that one's code when sigtorch is imported, and the forwards that replace it.

    Which of the two is used depends on what a sigmoid saves for backward.
    """

    module_class: type[torch.nn.Module]
    forward: Any
    code: Any
    saving_output: Any
    saving_input: Any
    name: str


def _replacement(module_class: Any, saving_output: Any, saving_input: Any) -> Replacement:
    forward, name = module_class.forward, f"sigtorch.nn.{module_class.__name__}"
    return Replacement(module_class, forward, forward.__code__, saving_output, saving_input, name)


REPLACEMENTS = (
    _replacement(torch.nn.Sigmoid, sigmoid_forward, sigmoid_from_input_forward),
    _replacement(torch.nn.GLU, glu_forward, glu_forward),
    _replacement(torch.nn.BCEWithLogitsLoss, bce_forward, bce_forward),
)
