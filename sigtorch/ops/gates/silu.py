"""SwiGLU: function, then formulas, autograd Functions and modules in the same order."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch._autograd import Passes
from sigtorch._backend import Runner, select
from sigtorch._elementwise import FromInputs


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    r"""Computes :math:`\mathrm{silu}(g) \cdot u = g \, \sigma(g) \cdot u`.

    Args:
        gate: any shape and floating dtype; without ``up``, both packed along the last dimension, the gate first, as in
            ``F.silu(a) * b`` with ``a, b = x.chunk(2, -1)``.
        up: broadcastable against gate.

    Returns:
        A tensor of the broadcast shape, or of the packed one with its last dimension halved, and the promoted dtype. Only
        the inputs are kept for backward, which writes both halves of a packed gradient in one pass.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not broadcast, an odd last dimension of a packed tensor, or tensors on several devices.

    Example:
        >>> gate, up = torch.tensor([0.0, 100.0]), torch.tensor([3.0, 2.0])
        >>> sigtorch.swiglu(gate, up)
        tensor([  0., 200.])
        >>> sigtorch.swiglu(torch.cat([gate, up]))  # packed
        tensor([  0., 200.])

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.
    """
    if up is None:
        runner = select(gate, opaque=True)
        _checks.check_halves("swiglu()", "gate", gate, -1)
        if runner == "aten":
            return _swiglu_packed_formula(gate)
        if runner == "compiled":
            return torch.ops.sigtorch.swiglu_packed.default(gate)  # type: ignore[no-any-return]
        return SwiGLUPackedFunction.apply(gate, runner)
    runner = select(gate, up)
    if runner == "aten" or not SwiGLUFunction.fuses(gate, up):
        return _checks.run_explained("swiglu()", _swiglu_formula, ("gate", "up"), (gate, up))
    return SwiGLUFunction.apply(gate, up, runner)


def _swiglu_formula(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _swiglu_packed_formula(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class SwiGLUFunction(FromInputs):
    op, arguments = "swiglu", "Tensor gate, Tensor up"
    tensor_count, formula = 2, staticmethod(_swiglu_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import swiglu_backward, swiglu_forward

        return Passes(swiglu_forward, swiglu_backward)


class SwiGLUPackedFunction(FromInputs):
    op, arguments = "swiglu_packed", "Tensor input"
    tensor_count, formula = 1, staticmethod(_swiglu_packed_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import swiglu_packed_backward, swiglu_packed_forward

        return Passes(swiglu_packed_forward, swiglu_packed_backward)

    @staticmethod
    def check(x: torch.Tensor) -> None:
        _checks.check_halves("torch.ops.sigtorch.swiglu_packed", "input", x, -1)

    @staticmethod
    def lead(x: torch.Tensor) -> torch.Tensor:
        return x.chunk(2, -1)[0]


class SwiGLU(torch.nn.Module):
    """:func:`sigtorch.swiglu` as a module: ``forward(gate, up)``, or packed ``forward(x)``.

    Example:
        >>> sigtorch.nn.SwiGLU()(torch.tensor([100.0]), torch.tensor([2.0]))
        tensor([200.])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """Returns silu(gate)·up, of the broadcast shape, or of the packed one with the last dimension halved."""
        return swiglu(gate, up)


class GatedMLP(torch.nn.Module):
    """The feed-forward layer of Llama and its relatives, ``down_proj(swiglu(gate_proj(x), up_proj(x)))``.

    Args:
        dim: features of the input and the output.
        hidden: features in between.
        bias: gives each projection a bias.
        device: of the parameters.
        dtype: of the parameters.

    Example:
        >>> sigtorch.nn.GatedMLP(8, 32)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
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
        """Maps (..., dim) to (..., dim)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
