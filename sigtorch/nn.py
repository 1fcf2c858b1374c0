"""Modules: they store arguments and call the functions."""

from __future__ import annotations

import torch

from sigtorch import _checks, functional


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
        return functional.sigmoid(input, save=self.save)

    def extra_repr(self) -> str:
        return f"save={self.save!r}"
