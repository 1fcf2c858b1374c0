"""The cases that the benchmark compares: each operation as people write it in eager PyTorch, and sigtorch's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sigtorch


@dataclass(frozen=True)
class Case:
    """One operation. ``inputs(n, dtype, device)`` makes the arguments of both callables, for n elements of output.

    Gradients are taken for the inputs that require them. ``moved(itemsize)`` are the bytes an element that forward and
    backward cannot do without moving.
    """

    inputs: Callable[[int, torch.dtype, torch.device], tuple[Any, ...]]
    eager: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    moved: Callable[[int], tuple[float, float]]


def normal(count: int) -> Callable[[int, torch.dtype, torch.device], tuple[Tensor, ...]]:
    """Inputs of a Case: this number of normally distributed vectors, all of them differentiable."""
    return lambda n, dtype, device: tuple(
        torch.randn(n, dtype=dtype, device=device, requires_grad=True) for _ in range(count)
    )


def token_gates(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Rows of 1,024 features, a gate for each."""
    rows = torch.randn(max(1, n // 1024), 1024, dtype=dtype, device=device)
    return rows.requires_grad_(), torch.randn(len(rows), 1, dtype=dtype, device=device, requires_grad=True)


def packed(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Rows of 1,024 features, two halves each."""
    return (torch.randn(max(1, n // 1024), 2048, dtype=dtype, device=device, requires_grad=True),)


def logits(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Logits, and targets that are 1 for one in ten."""
    return torch.randn(n, dtype=dtype, device=device, requires_grad=True), (torch.rand(n, device=device) < 0.1).to(
        dtype
    )


def routed(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Logits of tokens for 256 experts, and the bias of their choice."""
    rows = torch.randn(max(1, n // 256), 256, dtype=dtype, device=device)
    return rows.requires_grad_(), torch.rand(256, device=device) / 8


def eager_router(logits: Tensor, bias: Tensor) -> Tensor:
    """The weights of eight experts, chosen among those of four groups of eight, as DeepSeek-V3 writes it."""
    scores = logits.float().sigmoid()
    worth = scores + bias
    groups = worth.view(-1, 8, 32).topk(2, dim=-1)[0].sum(-1).topk(4, dim=-1, sorted=False)[1]
    taken = torch.zeros_like(worth[:, :8]).scatter_(1, groups, 1)
    worth = worth.masked_fill(~taken.unsqueeze(-1).expand(-1, 8, 32).reshape(-1, 256).bool(), float("-inf"))
    weights = scores.gather(1, worth.topk(8, dim=-1, sorted=False)[1])
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5


def router(logits: Tensor, bias: Tensor) -> Tensor:
    """The same by sigtorch."""
    weights, _ = sigtorch.sigmoid_topk(logits, 8, bias, num_groups=8, topk_groups=4, scale=2.5)
    return weights


def eager_gate(x: Tensor, gate: Tensor, residual: Tensor | None = None) -> Tensor:
    """A gated tensor, and its sum with a residual, as people write them."""
    if residual is None:
        return torch.sigmoid(gate) * x
    return torch.sigmoid(gate) * x + residual


def eager_lerp(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """One sigmoid, as people write it."""
    s = torch.sigmoid(gate)
    return s * x + (1 - s) * y


def eager_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU as Llama writes it."""
    return F.silu(gate) * up


def eager_gpt_oss(x: Tensor) -> Tensor:
    """A clamped SwiGLU of neighbours as gpt-oss writes it."""
    gate, up = x[..., ::2].clamp(max=7.0), x[..., 1::2].clamp(min=-7.0, max=7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def gpt_oss(x: Tensor) -> Tensor:
    """The same by sigtorch."""
    return sigtorch.swiglu(x, alpha=1.702, limit=7.0, offset=1.0, interleaved=True)


def weighted(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Gates and ups of 1,024 features, and a number a row."""
    shapes = (max(1, n // 1024), 1024), (max(1, n // 1024), 1024), (max(1, n // 1024), 1)
    return tuple(torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in shapes)


def eager_focal(x: Tensor, t: Tensor) -> Tensor:
    """The mean focal loss in the operators that detection libraries write it with."""
    p = torch.sigmoid(x)
    missed = p * (1 - t) + (1 - p) * t
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * missed**2
    return ((0.25 * t + 0.75 * (1 - t)) * loss).mean()


def one_pass(size: int) -> tuple[float, float]:
    """Logits and targets read, and the gradient written, by forward; float16 takes two passes, of 2 and 3 sizes."""
    return 3 * size, 0


def eager_quality_focal(x: Tensor, t: Tensor) -> Tensor:
    """The mean quality focal loss as detection libraries write it."""
    return (F.binary_cross_entropy_with_logits(x, t, reduction="none") * (t - torch.sigmoid(x)).abs() ** 2).mean()


def eager_varifocal(x: Tensor, t: Tensor) -> Tensor:
    """The mean varifocal loss as detection libraries write it."""
    weight = torch.where(t > 0, t, 0.75 * torch.sigmoid(x.detach()) ** 2)
    return F.binary_cross_entropy_with_logits(x, t, weight)


def planes(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Logits and targets of images of 4,096 pixels, a class each."""
    shape = max(1, n // 4096), 1, min(n, 4096)
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    return x, (torch.rand(shape, device=device) < 0.1).to(dtype)


def eager_dice(x: Tensor, t: Tensor) -> Tensor:
    """The mean dice loss in the operators that segmentation libraries write it with."""
    p = torch.sigmoid(x)
    return (1 - (2 * (p * t).sum(2) + 1) / (p.sum(2) + t.sum(2) + 1)).mean()


def eager_asymmetric(x: Tensor, t: Tensor) -> Tensor:
    """The mean asymmetric loss in the operators that timm writes it with."""
    s = torch.sigmoid(x)
    others = (1 - s + 0.05).clamp(max=1)
    loss = t * torch.log(s.clamp(min=1e-8)) + (1 - t) * torch.log(others.clamp(min=1e-8))
    missed = 1 - (s * t + others * (1 - t))
    return -(loss * torch.pow(missed, t + 4 * (1 - t))).mean()


CASES = {
    "sigmoid": Case(normal(1), torch.sigmoid, sigtorch.sigmoid, lambda size: (2 * size, 3 * size)),
    "sigmoid-save-input": Case(
        normal(1), torch.sigmoid, lambda x: sigtorch.sigmoid(x, save="input"), lambda size: (2 * size, 3 * size)
    ),
    "sigmoid_gate": Case(normal(2), eager_gate, sigtorch.sigmoid_gate, lambda size: (3 * size, 5 * size)),
    "sigmoid_gate-residual": Case(normal(3), eager_gate, sigtorch.sigmoid_gate, lambda size: (4 * size, 5 * size)),
    "sigmoid_gate-token": Case(token_gates, eager_gate, sigtorch.sigmoid_gate, lambda size: (2 * size, 3 * size)),
    "sigmoid_lerp": Case(
        normal(3),
        eager_lerp,
        sigtorch.sigmoid_lerp,
        lambda size: (4 * size, 7 * size),
    ),
    "glu": Case(packed, F.glu, sigtorch.glu, lambda size: (3 * size, 5 * size)),
    "swiglu": Case(normal(2), eager_swiglu, sigtorch.swiglu, lambda size: (3 * size, 5 * size)),
    "swiglu-packed": Case(
        packed,
        lambda x: eager_swiglu(*x.chunk(2, -1)),
        sigtorch.swiglu,
        lambda size: (3 * size, 5 * size),
    ),
    "swiglu-gpt_oss": Case(packed, eager_gpt_oss, gpt_oss, lambda size: (3 * size, 5 * size)),
    "swiglu-weighted": Case(  # the weights are one number a row
        weighted,
        lambda gate, up, weight: eager_swiglu(gate, up) * weight,
        lambda gate, up, weight: sigtorch.swiglu(gate, up, weight=weight),
        lambda size: (3 * size, 5 * size),
    ),
    "sigmoid_topk": Case(  # of each token 8 weights, their indices and, backward, their logits too
        routed, eager_router, router, lambda size: (size + 8 * 12 / 256, size + 8 * (12 + size) / 256)
    ),
    "bce": Case(
        logits,
        F.binary_cross_entropy_with_logits,
        sigtorch.binary_cross_entropy_with_logits,
        one_pass,
    ),
    "focal": Case(
        logits,
        eager_focal,
        lambda x, t: sigtorch.sigmoid_focal_loss(x, t, reduction="mean"),
        one_pass,
    ),
    "asymmetric": Case(logits, eager_asymmetric, sigtorch.asymmetric_loss, one_pass),
    "varifocal": Case(logits, eager_varifocal, sigtorch.varifocal_loss, one_pass),
    "quality_focal": Case(logits, eager_quality_focal, sigtorch.quality_focal_loss, one_pass),
    "dice": Case(planes, eager_dice, sigtorch.sigmoid_dice_loss, lambda size: (2 * size, 3 * size)),
}
