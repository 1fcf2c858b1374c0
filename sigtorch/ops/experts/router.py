"""The router of a mixture of experts, a module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch._eligible import autocasts
from sigtorch.ops.experts.topk import settings_of, sigmoid_topk

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WHOLE_DTYPES = (torch.int64, torch.int32)


class SigmoidRouter(torch.nn.Module):
    """The gate of a mixture of experts: logits in float32, then :func:`sigtorch.sigmoid_topk`.

    Its parameter ``weight`` (experts, hidden) and its buffer ``e_score_correction_bias`` (experts,), both float32, have the
    names of DeepSeek-V3's gate. The bias starts at 0 and is no parameter: :meth:`update_bias` balances the load with it.

    Args:
        hidden: features of the input.
        num_experts: how many experts there are.
        k: how many of them each row gets.
        num_groups: as for :func:`sigtorch.sigmoid_topk`, and so are all others.
        topk_groups: how many groups are chosen first.
        normalize: makes the weights of a row add up to ``scale``.
        scale: multiplies the weights.
        device: of the weight and the bias.

    Raises:
        TypeError, ValueError: as for :func:`sigtorch.sigmoid_topk`.

    Example:
        >>> router = sigtorch.nn.SigmoidRouter(8, 16, 4)
        >>> weights, indices = router(torch.randn(2, 3, 8))
        >>> weights.shape, indices.dtype
        (torch.Size([2, 3, 4]), torch.int64)
        >>> router.update_bias(indices)  # after an optimizer's step

    Source:
        Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024, arXiv:2408.15664.
    """

    e_score_correction_bias: torch.Tensor

    def __init__(
        self,
        hidden: int,
        num_experts: int,
        k: int,
        *,
        num_groups: int = 1,
        topk_groups: int | None = None,
        normalize: bool = True,
        scale: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        like = torch.empty(num_experts, device="meta")
        choice, weighting = settings_of("SigmoidRouter()", like, k, None, num_groups, topk_groups, normalize, scale)
        self.k, self.num_groups, self.topk_groups = choice
        self.normalize, self.scale = weighting
        self.weight = torch.nn.Parameter(torch.empty(num_experts, hidden, dtype=torch.float32, device=device))
        self.register_buffer("e_score_correction_bias", torch.empty(num_experts, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight as :class:`torch.nn.Linear` does, and sets the bias to 0."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        torch.nn.init.zeros_(self.e_score_correction_bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (..., hidden) to weights and indices, both (..., k); computes the logits in float32, under autocast too."""
        return sigmoid_topk(
            _logits(x, self.weight), self.k, self.e_score_correction_bias, num_groups=self.num_groups,
            topk_groups=self.topk_groups, normalize=self.normalize, scale=self.scale,
        )  # fmt: skip

    @torch.no_grad()
    def update_bias(self, indices: torch.Tensor, rate: float = 1e-3, group: ProcessGroup | None = None) -> None:
        """Raises the bias of each expert with less than the mean load by ``rate``, and lowers it of each with more.

        Args:
            indices: what forward returned, of any shape: the chosen experts of all rows of a step.
            rate: the size of the change.
            group: a process group whose processes' loads are added up, such as ``torch.distributed.group.WORLD``; each
                process of it has to call. Without one, this process' loads count alone.

        Raises:
            TypeError: indices are no tensor of whole numbers, or the bias is in a half type, where a small step is lost.
        """
        where, bias = "update_bias()", self.e_score_correction_bias
        _checks.check_tensors(where, indices=indices)
        _checks.check_number(where, rate=rate)
        if indices.dtype not in WHOLE_DTYPES:
            raise TypeError(f"{where}: indices must be int64 or int32, got {indices.dtype}")
        if bias.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{where}: e_score_correction_bias is {bias.dtype}, where small steps are lost; keep it in float32"
            )
        chosen = indices.flatten().long()
        load = torch.zeros(len(bias), dtype=torch.int64, device=bias.device)
        load.scatter_add_(0, chosen, torch.ones_like(chosen))
        if group is not None:
            torch.distributed.all_reduce(load, group=group)
        bias.add_((load.sum() - load * len(load)).sign(), alpha=float(rate))

    def extra_repr(self) -> str:
        """Returns the sizes and the options."""
        experts, hidden = self.weight.shape
        return _checks.shown(
            hidden=hidden, num_experts=experts, k=self.k, num_groups=self.num_groups, topk_groups=self.topk_groups,
            normalize=self.normalize, scale=self.scale,
        )  # fmt: skip


def _logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Computes the logits in float32, where rounding to a half type would change the choice."""
    device = x.device.type
    if not autocasts(device):
        return F.linear(x.float(), weight.float())
    with torch.autocast(device, enabled=False):
        return F.linear(x.float(), weight.float())
