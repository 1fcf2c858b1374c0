"""Modules: they store arguments and call the functions."""

from __future__ import annotations

import torch

from sigtorch import _checks, functional
from sigtorch._loss_modules import BCEWithLogitsLoss, SigmoidFocalLoss

__all__ = ["GLU", "BCEWithLogitsLoss", "GatedMLP", "Sigmoid", "SigmoidFocalLoss", "SigmoidGate", "SwiGLU"]


class Sigmoid(torch.nn.Sigmoid):
    """:func:`sigtorch.sigmoid` as a module; drop-in for :class:`torch.nn.Sigmoid`, which it is one of.

    Args:
        save: what is kept for backward, ``"output"`` or ``"input"``.

    Raises:
        ValueError: an unknown ``save``.
    """

    def __init__(self, *, save: str = "output") -> None:
        super().__init__()
        _checks.save(save, "Sigmoid()")
        self.save = save

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The sigmoid of every element."""
        return functional.sigmoid(input, save=self.save)

    def extra_repr(self) -> str:
        return f"save={self.save!r}"


class SigmoidGate(torch.nn.Module):
    """:func:`sigtorch.sigmoid_gate` as a module: ``forward(x, gate, residual=None)``."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """σ(gate)·x, plus residual: of the broadcast shape."""
        return functional.sigmoid_gate(x, gate, residual)


class GLU(torch.nn.GLU):
    """:func:`sigtorch.glu` as a module; drop-in for :class:`torch.nn.GLU`, which it is one of.

    Args:
        dim: the axis to halve.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """One half times the sigmoid of the other: of input's shape with ``dim`` halved."""
        return functional.glu(input, self.dim)


class SwiGLU(torch.nn.Module):
    """:func:`sigtorch.swiglu` as a module: ``forward(gate, up)``, or packed ``forward(x)``."""

    def forward(self, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """silu(gate)·up, of the broadcast shape; of both packed in one, with the last axis halved."""
        return functional.swiglu(gate, up)


class GatedMLP(torch.nn.Module):
    """The feed-forward layer of Llama and its kin, ``down_proj(swiglu(gate_proj(x), up_proj(x)))``.

    Args:
        dim: features of the input and the output.
        hidden: features in between.
        bias: whether the projections have one.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(dim, hidden, bias, device, dtype)
        self.up_proj = torch.nn.Linear(dim, hidden, bias, device, dtype)
        self.down_proj = torch.nn.Linear(hidden, dim, bias, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (..., dim) to (..., dim)."""
        return self.down_proj(functional.swiglu(self.gate_proj(x), self.up_proj(x)))
