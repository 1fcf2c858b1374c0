"""The loss of a chunk of logits, and its gradient in place: one kernel reads and writes each logit once."""

from __future__ import annotations

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._layout import Operand, exact
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_map_and_sum, launch_sum


def negatives(
    logits: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, positives: torch.Tensor
) -> torch.Tensor:
    """Returns the summed loss of all pairs as negatives, without those at ``positives``, whose logits are overwritten."""
    inputs = _marked(logits, scale, bias, positives)
    total, _ = launch_sum(_math.negative, inputs, logits, 1, logits.dtype)
    return total


def negatives_with_gradient(
    logits: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    positives: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns that loss and the gradients of the logits: in place, or in a new tensor if dtype is another one."""
    inputs = _marked(logits, scale, bias, positives)
    out = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    if logits.shape[1] > 1:
        losses = launch_map_and_sum(_math.dnegative, inputs, (out,))
    else:  # the bias has the shape of the logits: nothing is summed
        losses = torch.empty_like(logits)
        launch_map(_math.dnegative, inputs, (out, losses))
    return losses.sum(dtype=torch.float64), out


def _marked(
    logits: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, positives: torch.Tensor
) -> tuple[Operand, ...]:
    """Returns the kernel's inputs: logits with -inf at positives, the scale, and a bias per row."""
    if len(positives):
        logits.view(-1).index_fill_(0, positives, -torch.inf)
    rows = (len(logits), 1)
    bias = logits.new_zeros(rows) if bias is None else bias.expand(rows).contiguous()
    return exact((logits, 1 if scale is None else scale, bias), logits)
