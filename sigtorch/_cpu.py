"""Fused passes over CPU tensors, for the few operations where one beats the formula in precision, time or memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sigtorch.formulas import HALF_DTYPES

CHUNK = 2**18  # elements a piece: smaller ones lose to threading, larger ones to the caches
LEAST = 2 * CHUNK  # elements for which pieces pay


def sigmoid_from_input_forward(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


def sigmoid_from_input_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    wide = x.float() if x.dtype in HALF_DTYPES else x
    return ((grad * (torch.sigmoid(wide) * torch.sigmoid(-wide))).to(x.dtype),)


def sigmoid_lerp_forward(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    s, one = x.new_empty(CHUNK), x.new_ones(())
    for x_, y_, gate_, out_ in _chunks(x, y, gate, out):
        s_ = torch.sigmoid(gate_, out=s[: len(gate_)])
        torch.mul(s_, x_, out=out_)  # torch.lerp takes x - y, which can be more than a float holds
        out_.addcmul_(torch.sub(one, s_, out=s_), y_)
    return out


def sigmoid_lerp_backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    grads = tuple(torch.empty_like(t) for t in (x, y, gate))
    s = x.new_empty(CHUNK)
    for grad_, x_, y_, gate_, grad_x, grad_y, grad_gate in _chunks(grad.contiguous(), x, y, gate, *grads):
        s_ = torch.sigmoid(gate_, out=s[: len(gate_)])
        torch.mul(grad_, s_, out=grad_x)
        torch.sub(grad_, grad_x, out=grad_y)
        torch.sub(x_, y_, out=grad_gate)
        grad_gate.mul_(grad_y).mul_(s_)
    return grads


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Contiguous tensors of one size, a piece of each at a time that stays in the caches between operators."""
    return zip(*(t.view(-1).split(CHUNK) for t in tensors), strict=True)
