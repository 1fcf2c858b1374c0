"""Cases of the router, and its oracle: DeepSeek-V3's in float64, which sorts stably."""

from dataclasses import dataclass

import torch

import sigtorch


@dataclass(frozen=True)
class RouterCase:
    name: str
    experts: int
    k: int
    num_groups: int = 1
    topk_groups: int | None = None
    biased: bool = True
    normalize: bool = True
    scale: float = 1.0

    @property
    def options(self):
        return {
            "num_groups": self.num_groups, "topk_groups": self.topk_groups, "normalize": self.normalize, "scale": self.scale,
        }  # fmt: skip

    def inputs(self, rows, dtype, device="cpu"):
        """Logits that no rounding makes equal, and a bias or None."""
        spread = torch.linspace(-4.3, 4, self.experts, dtype=torch.float64)
        order = torch.rand(*rows, self.experts).argsort(-1).to(device)
        logits = spread.to(device, dtype)[order].requires_grad_()
        bias = torch.rand(self.experts).to(device) - 0.5 if self.biased else None
        return logits, bias

    def ours(self, logits, bias):
        return sigtorch.sigmoid_topk(logits, self.k, bias, **self.options)

    def oracle(self, logits, bias):
        return oracle(logits, self.k, bias, **self.options)


CASES = [
    RouterCase("plain", 64, 6, biased=False),
    RouterCase("biased", 48, 8, scale=2.5),
    RouterCase("scores", 24, 3, normalize=False, scale=1.5),
    RouterCase("groups", 32, 4, 8, 4, scale=2.5),
    RouterCase("odd groups", 21, 4, 7, 2, normalize=False),
    RouterCase("groups without a bias", 20, 5, 5, 3, biased=False),
    RouterCase("groups of one", 12, 2, 12, 3),
    RouterCase("every group", 16, 4, 4, 4),
    RouterCase("every expert", 7, 7, biased=False),
    RouterCase("one", 16, 1, normalize=False, biased=False),
]


def oracle(logits, k, bias=None, *, num_groups=1, topk_groups=None, normalize=True, scale=1.0):
    """Weights and indices, in plain PyTorch as DeepSeek-V3's router; give it float64."""
    scores = torch.sigmoid(logits)
    worth = scores.detach() if bias is None else scores.detach() + bias
    if num_groups > 1:
        grouped = worth.unflatten(-1, (num_groups, -1))
        best = grouped.sort(dim=-1, descending=True).values[..., :2].sum(-1)
        chosen = best.sort(dim=-1, descending=True, stable=True).indices[..., :topk_groups]
        taken = torch.zeros_like(best, dtype=torch.bool).scatter(-1, chosen, True)
        worth = torch.where(taken.unsqueeze(-1), grouped, -torch.inf).flatten(-2)
    indices = worth.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    weights = scores.gather(-1, indices)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, indices
