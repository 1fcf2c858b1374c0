"""``python -m sigtorch selftest``: each operation, forward and backward, against float64 on this machine."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import sigtorch
from sigtorch.commands import CommandError

# Of an error, relative to an element, or to the mean where that is larger. PyTorch's operators promise less in bfloat16.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2**-7}
ROWS, FEATURES = 61, 258  # no multiple of a kernel's block


class Case(NamedTuple):
    """An operation, its oracle in PyTorch's float64 operators, and the tensors that both take."""

    name: str
    operation: Callable[..., Any]
    oracle: Callable[..., Any]
    inputs: Sequence[Tensor]  # floating tensors get gradients
    roundings: int = 1  # on the way to a result; products of matrices round what they multiply


def selftest(options: argparse.Namespace) -> None:
    """Compares values and gradients of each operation with PyTorch's in float64, on a GPU if there is one."""
    device = _device(options.device)
    started, failed = time.monotonic(), 0
    has_kernels = sigtorch.backend_of(torch.empty(1, device=device)) == "triton"
    runner = "kernels" if has_kernels else "PyTorch's operators"
    for case in _cases():
        for dtype in LIMITS if has_kernels else (torch.float32,):
            inputs = [(t.to(dtype) if t.is_floating_point() else t).to(device) for t in case.inputs]
            error = _largest_error(case, inputs)
            limit = case.roundings * LIMITS[dtype]
            is_right = error <= limit
            failed += not is_right
            verdict = "ok" if is_right else f"WRONG, allowed is {limit:.0e}"
            print(f"{case.name:34} {str(dtype).removeprefix('torch.'):9} error {error:.0e}  {verdict}", flush=True)
    verdict = "all right" if not failed else f"{failed} WRONG"
    print(f"{verdict}: {runner} on {device}, in {time.monotonic() - started:.0f} seconds")
    if failed:
        raise SystemExit(1)


def _device(named: str | None) -> torch.device:
    name = named or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device: cannot use {name!r}: {str(error).splitlines()[0]}") from error
    return device


def _largest_error(case: Case, inputs: Sequence[Tensor]) -> float:
    """Returns the largest error of the value or a gradient; infinity for one that is no number."""
    exact = [t.detach().double() if t.is_floating_point() else t for t in inputs]
    found = zip(_results(case.operation, inputs), _results(case.oracle, exact), strict=True)
    return max(_error(ours.double(), oracle) for ours, oracle in found)


def _results(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields what a function returns, and the gradients of its arguments."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    out = function(*leaves)
    yield out.detach()
    wanted = [t for t in leaves if t.requires_grad]
    grad = 1 + torch.arange(out.numel(), device=out.device).reshape(out.shape) % 8 / 8  # whatever the dtype
    yield from torch.autograd.grad(out, wanted, grad.to(out.dtype))


def _error(ours: Tensor, oracle: Tensor) -> float:
    if not ours.isfinite().all():
        return float("inf")
    return ((ours - oracle).abs() / oracle.abs().clamp_min(oracle.abs().mean())).max().item()


class Draw:
    """Draws the tensors of the cases, the same each time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return 3 * torch.randn(*shape, generator=self.generator)

    def classes(self, size: int) -> Tensor:
        return torch.randint(size, (ROWS,), generator=self.generator)

    def mask(self) -> Tensor:
        return torch.rand(ROWS, FEATURES, generator=self.generator) < 0.1

    def apart(self) -> Tensor:
        """Returns numbers of which no two in a row are alike, in bfloat16 either."""
        return (torch.rand(ROWS, FEATURES, generator=self.generator).argsort(-1) - 128) / 64


def _cases() -> list[Case]:
    draw = Draw()
    return [*_gates(draw), *_attention(draw), *_losses(draw)]


def _gates(draw: Draw) -> list[Case]:
    x, y, gate = (draw.normal(ROWS, FEATURES) for _ in range(3))
    row_gate = draw.normal(ROWS, 1)
    return [
        # A saved output loses the gradient where it rounds to 1.
        Case("sigmoid", sigtorch.sigmoid, torch.sigmoid, [x / 16]),
        Case("sigmoid, save='input'", lambda x: sigtorch.sigmoid(x, save="input"), torch.sigmoid, [x]),
        Case("sigmoid_gate", sigtorch.sigmoid_gate, lambda x, g: x * g.sigmoid(), [x, gate]),
        Case("sigmoid_gate, one gate a row", sigtorch.sigmoid_gate, lambda x, g: x * g.sigmoid(), [x, row_gate]),
        Case("sigmoid_gate, residual", sigtorch.sigmoid_gate, lambda x, g, y: x * g.sigmoid() + y, [x, gate, y]),
        Case("sigmoid_lerp", sigtorch.sigmoid_lerp, lambda x, y, g: torch.lerp(y, x, g.sigmoid()), [x, y, gate]),
        Case("glu", sigtorch.glu, F.glu, [x]),
        Case("swiglu", sigtorch.swiglu, lambda g, u: F.silu(g) * u, [gate, x]),
        Case("swiglu, packed", sigtorch.swiglu, _packed_swiglu, [x]),
        Case(
            "swiglu, clamped",
            lambda g, u: sigtorch.swiglu(g, u, alpha=1.5, limit=4.0, offset=1.0),
            lambda g, u: _variant(g.clamp(max=4), u.clamp(-4, 4)),
            [gate, y],
        ),
        Case(
            "swiglu, interleaved, weighted",
            lambda x, w: sigtorch.swiglu(x, alpha=1.5, offset=1.0, interleaved=True, weight=w),
            lambda x, w: _variant(x[..., 0::2], x[..., 1::2]) * w,
            [x, row_gate],
        ),
        Case(
            "swiglu_linear",
            sigtorch.swiglu_linear,
            lambda g, u, w: (F.silu(g) * u) @ w.T,
            [gate, y, draw.normal(64, FEATURES)],
            roundings=2,
        ),
        Case("sigmoid_topk", lambda x: sigtorch.sigmoid_topk(x, 4)[0].to(x.dtype), _topk, [draw.apart()]),
    ]


def _attention(draw: Draw) -> list[Case]:
    return [
        Case(
            "sigmoid_attention",
            lambda q, k, v: sigtorch.sigmoid_attention(q, k, v, is_causal=True),
            _causal_attention,
            [draw.normal(2, 3, ROWS, 32) / 3 for _ in range(3)],
            roundings=4,
        ),
        Case(
            "sigmoid_attention_varlen",
            lambda q, k, v, cu: sigtorch.sigmoid_attention_varlen(q, k, v, cu, cu, ROWS, ROWS, bias=-3.0),
            _packed_attention,
            [
                *(draw.normal(2 * ROWS, 3, 32) / 3 for _ in range(3)),
                torch.tensor([0, ROWS, 2 * ROWS], dtype=torch.int32),
            ],
            roundings=4,
        ),
    ]


def _losses(draw: Draw) -> list[Case]:
    x, mask = draw.normal(ROWS, FEATURES), draw.mask()
    features = [F.normalize(draw.normal(ROWS, FEATURES), dim=-1) for _ in range(2)]
    return [
        Case("binary_cross_entropy_with_logits", sigtorch.binary_cross_entropy_with_logits, _bce, [x, mask]),
        Case(
            "binary_cross_entropy, classes",
            sigtorch.binary_cross_entropy_with_logits,
            lambda x, t: _bce(x, F.one_hot(t, FEATURES)),
            [x, draw.classes(FEATURES)],
        ),
        Case("sigmoid_focal_loss", lambda x, t: sigtorch.sigmoid_focal_loss(x, t, reduction="sum"), _focal, [x, mask]),
        Case("sigmoid_dice_loss", lambda x, t: sigtorch.sigmoid_dice_loss(x, t, dims=-1), _dice, [x, mask]),
        Case(
            "quality_focal_loss", lambda x, t: sigtorch.quality_focal_loss(x, t, reduction="sum"), _quality, [x, mask]
        ),
        Case("varifocal_loss", lambda x, t: sigtorch.varifocal_loss(x, t, reduction="sum"), _varifocal, [x, mask]),
        Case("asymmetric_loss", lambda x, t: sigtorch.asymmetric_loss(x, t, reduction="sum"), _asymmetric, [x, mask]),
        Case("siglip_loss", lambda a, b: sigtorch.siglip_loss(a, b, 10.0, -10.0), _siglip, features),
        Case(
            "linear_binary_cross_entropy",
            sigtorch.linear_binary_cross_entropy,
            lambda x, w, t: _bce(x @ w.T, t),
            [features[0], draw.normal(100, FEATURES) / 3, mask[:, :100]],
        ),
    ]


def _packed_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def _variant(gate: Tensor, up: Tensor) -> Tensor:
    return gate * (1.5 * gate).sigmoid() * (up + 1)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return ((scores - math.log(ROWS)).sigmoid().tril()) @ value


def _packed_attention(query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> Tensor:
    q, k, v = (t.unflatten(0, (2, ROWS)).transpose(1, 2) for t in (query, key, value))
    out = (q @ k.mT / q.shape[-1] ** 0.5 - 3).sigmoid() @ v
    return out.transpose(1, 2).flatten(0, 1)


def _topk(logits: Tensor) -> Tensor:
    chosen = logits.sigmoid().topk(4).values
    return chosen / chosen.sum(-1, keepdim=True)


def _bce(x: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, target.to(x.dtype))


def _positive(x: Tensor, target: Tensor) -> Tensor:
    """Negates the logits of negatives: sigmoid gives the probability of the right answer."""
    return torch.where(target, x, -x)


def _focal(x: Tensor, target: Tensor) -> Tensor:
    z = _positive(x, target)
    return (torch.where(target, 0.25, 0.75) * (-z).sigmoid() ** 2 * -F.logsigmoid(z)).sum()


def _dice(x: Tensor, target: Tensor) -> Tensor:
    s, t = x.sigmoid(), target.to(x.dtype)
    return (1 - (2 * (s * t).sum(-1) + 1) / (s.sum(-1) + t.sum(-1) + 1)).mean()


def _quality(x: Tensor, target: Tensor) -> Tensor:
    z = _positive(x, target)
    return ((-z).sigmoid() ** 2 * -F.logsigmoid(z)).sum()


def _varifocal(x: Tensor, target: Tensor) -> Tensor:
    return torch.where(target, -F.logsigmoid(x), 0.75 * x.detach().sigmoid() ** 2 * -F.logsigmoid(-x)).sum()


def _asymmetric(x: Tensor, target: Tensor) -> Tensor:
    shifted = (x.sigmoid() - 0.05).clamp_min(0)
    negative = shifted**4 * -torch.log1p(-shifted)
    return torch.where(target, (-x).sigmoid() * -F.logsigmoid(x), negative).sum()


def _siglip(images: Tensor, texts: Tensor) -> Tensor:
    logits = 10 * images @ texts.T - 10
    signs = 2 * torch.eye(len(images), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)
