"""The step between the products of a chunk of logits: one kernel reads each logit once and writes its gradient in its place."""

from __future__ import annotations

import torch

from sigtorch.kernels import _math
from sigtorch.kernels._layout import Operand, exact
from sigtorch.kernels._map import launch_map
from sigtorch.kernels._reduce import launch_map_and_sum, launch_sum

Number = torch.Tensor | None


def negatives(logits: torch.Tensor, scale: Number, bias: Number, positives: torch.Tensor) -> torch.Tensor:
    """The summed loss of all pairs, as negatives, but those at positives, which are overwritten."""
    inputs = _marked(logits, scale, bias, positives)
    return launch_sum(_math.negative, inputs, logits, 1, logits.dtype)[0]


def negatives_with_gradient(
    logits: torch.Tensor, scale: Number, bias: Number, positives: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the logits' gradients: in their place or, of another dtype, in a tensor of their own."""
    inputs = _marked(logits, scale, bias, positives)
    out = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    if logits.shape[1] > 1:
        losses = launch_map_and_sum(_math.dnegative, inputs, (out,), summed=2)
    else:  # the bias has the shape of the logits, and there is nothing to sum to that
        losses = torch.empty_like(logits)
        launch_map(_math.dnegative, inputs, (out, losses))
    return losses.sum(dtype=torch.float64), out


def _marked(logits: torch.Tensor, scale: Number, bias: Number, positives: torch.Tensor) -> tuple[Operand, ...]:
    """The kernel's inputs: logits that are -inf where there is a positive, the scale, and a bias a row."""
    if len(positives):
        logits.view(-1).index_fill_(0, positives, -torch.inf)
    rows = (len(logits), 1)
    bias = logits.new_zeros(rows) if bias is None else bias.expand(rows).contiguous()
    return exact((logits, 1 if scale is None else scale, bias), logits)
