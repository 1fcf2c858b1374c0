"""A linear layer of a SwiGLU that is computed again in backward: function, formula, autograd Function, operator and module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _checks, _operators
from sigtorch._autograd import backward_runner, formula_grads, marker, register_op, saved
from sigtorch._backend import Runner, select
from sigtorch._eligible import autocasts
from sigtorch._once import once
from sigtorch.ops.gates.silu import NUMBERS, SwiGLUVariantFunction, check_variant, swiglu, variant_formula

OP = "swiglu_linear"
register_op(OP)


def swiglu_linear(
    gate: torch.Tensor,
    up: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    alpha: float = 1,
    limit: float | None = None,
    offset: float = 0,
) -> torch.Tensor:
    r"""Computes ``F.linear(sigtorch.swiglu(gate, up), weight, bias)``, and keeps gate and up for backward, not their product.

    The product is a third of what a gated feed-forward layer keeps between its projections. Backward computes it again, in
    the pass that computes the gradients of gate and up.

    Args:
        gate: (..., features), any floating dtype.
        up: of gate's shape and dtype; others are taken too, and save no memory.
        weight: (out_features, features), as of :class:`torch.nn.Linear`.
        bias: (out_features,).
        alpha: as for :func:`sigtorch.swiglu`, and so are the others.
        limit: the most that a gate is, and that an up is either side of 0.
        offset: added to up.

    Returns:
        A tensor of shape (..., out_features), of the dtype that ``F.linear`` gives, under autocast too. On a CPU the numbers
        are those of PyTorch's operators. Compiled code gets the formula: a compiler decides what it computes again.

    Raises:
        TypeError: an argument is not a tensor, or a number is none.
        ValueError: a gate and an up that do not broadcast, a weight or a bias of another shape, a negative or NaN ``limit``,
            or tensors on several devices.

    Example:
        >>> gate, up = torch.tensor([[0.0, 100.0]]), torch.tensor([[3.0, 2.0]])
        >>> sigtorch.swiglu_linear(gate, up, torch.tensor([[1.0, 2.0]]))
        tensor([[400.]])

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202; Chen et al., "Training Deep Nets with Sublinear
        Memory Cost", 2016, arXiv:1604.06174, for computing again.
    """
    where = "swiglu_linear()"
    variant = check_variant(where, alpha, limit, offset)
    _check(where, gate, up, weight, bias)
    if autocasts(gate.device.type):
        dtype = torch.get_autocast_dtype(gate.device.type)
        weight, bias = _cast(weight, dtype), None if bias is None else _cast(bias, dtype)
    given = (gate, up, weight) if bias is None else (gate, up, weight, bias)
    runner = select(*given, cpu_pass=True)
    if runner == "aten" or not _saves_memory(gate, up, weight, bias):
        return _formula(gate, up, weight, bias, *variant)
    return SwiGLULinearFunction.apply(gate, up, weight, bias, variant, runner)  # type: ignore[no-any-return]


def _check(where: str, gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    given = {"gate": gate, "up": up, "weight": weight} | ({} if bias is None else {"bias": bias})
    _checks.check_tensors(where, **given)
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return  # PyTorch reports shapes there
    if not all(isinstance(t, torch.Tensor) and not t.is_nested for t in given.values()):
        return
    _checks.check_broadcastable(where, gate=gate, up=up)
    _checks.check_one_device(where, **given)
    features = max(gate, up, key=torch.Tensor.dim).shape[-1:]
    if gate.shape != up.shape:
        features = torch.broadcast_shapes(gate.shape, up.shape)[-1:]
    if not features or weight.dim() != 2 or weight.shape[1:] != features:
        raise ValueError(
            f"{where}: weight must be (out_features, features), got {tuple(weight.shape)} for gate {tuple(gate.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{where}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def _cast(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns t as autocast casts it, which leaves float64 alone."""
    return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t


def _saves_memory(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Tells whether the Function takes these; the formula raises PyTorch's errors for dtypes that do not fit."""
    if gate.shape != up.shape or gate.dtype != up.dtype or (bias is not None and bias.dtype != weight.dtype):
        return False
    if gate.dtype == weight.dtype:
        return True
    return autocasts(gate.device.type) and torch.float64 not in (gate.dtype, weight.dtype)


def _formula(
    gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *variant: Any
) -> torch.Tensor:
    return F.linear(variant_formula(gate, up, *variant), weight, bias)


def _formula_of_product(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, *variant: Any) -> torch.Tensor:
    """Returns the result without its bias; backward runs under no autocast."""
    return F.linear(variant_formula(gate, up, *variant).to(weight.dtype), weight)


class RecomputingPasses(NamedTuple):
    """The passes of SwiGLU: forward, backward, and backward that returns the product too."""

    forward: Callable[..., torch.Tensor]
    backward: Callable[..., Sequence[torch.Tensor]]
    recompute: Callable[..., Sequence[torch.Tensor]]


class SwiGLULinearFunction(Function):
    """Saves gate, up and weight."""

    @staticmethod
    @once
    def passes(runner: Runner) -> RecomputingPasses:
        """Returns the passes; kernels are imported when the first tensor needs them."""
        if runner == "operator":
            return RecomputingPasses(*SwiGLUVariantFunction.operators, RECOMPUTE)
        if runner == "cpu":
            return RecomputingPasses(variant_formula, lambda *given: _recompute(*given)[:2], _recompute)
        from sigtorch.kernels.gates import swiglu_recompute

        return RecomputingPasses(*SwiGLUVariantFunction.passes_of(runner), swiglu_recompute)

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        variant: Sequence[Any],
        runner: Runner,
    ) -> torch.Tensor:
        ctx.variant, ctx.runner = variant, runner
        ctx.save_for_backward(marker(OP), gate, up, weight)
        product = SwiGLULinearFunction.passes(runner).forward(gate, up, *variant)
        return F.linear(product.to(weight.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = saved(ctx, OP)
        needs = ctx.needs_input_grad
        grad_bias = grad.sum_to_size(grad.shape[-1:]) if needs[3] else None
        runner = backward_runner(ctx.runner, grad, *tensors)
        if runner == "aten":
            grads = formula_grads(needs[:3], lambda *t: _formula_of_product(*t, *ctx.variant), tensors, grad)
        else:
            grads = _grads(SwiGLULinearFunction.passes(runner), grad, tensors, ctx.variant, needs)
        return *grads, grad_bias, None, None


def _grads(
    passes: RecomputingPasses,
    grad: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    variant: Sequence[Any],
    needs: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Returns the gradients of gate, up and weight."""
    gate, up, weight = tensors
    grad_gate = grad_up = grad_weight = product = None
    if needs[0] or needs[1]:
        grad_product = torch.matmul(grad, weight)
        if needs[2]:
            grad_gate, grad_up, product = passes.recompute(grad_product, gate, up, *variant)
        else:
            grad_gate, grad_up = passes.backward(grad_product, gate, up, *variant)
        del grad_product  # before the gradient of weight is allocated
    elif needs[2]:
        product = passes.forward(gate, up, *variant)
    if product is not None:
        grad_weight = torch.mm(_rows(grad).t(), _rows(product.to(weight.dtype)))
    return [grad_gate, grad_up, grad_weight]


def _rows(t: torch.Tensor) -> torch.Tensor:
    return t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)


def _recompute(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *variant: Any) -> Sequence[torch.Tensor]:
    """Returns the gradients of gate and up, and the product, by PyTorch's operators."""
    with torch.enable_grad():
        gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
        product = variant_formula(gate, up, *variant)
        grads = torch.autograd.grad(product, (gate, up), grad.to(product.dtype))
    return *grads, product.detach()


# The operator, for dispatch modes.


def _run(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *variant: Any) -> tuple[torch.Tensor, ...]:
    check_variant(f"torch.ops.sigtorch.{OP}_recompute", *variant)
    runner = select(grad, gate, up) if gate.shape == up.shape == grad.shape else "aten"
    if runner == "aten":
        with _operators.differentiable():
            found = _recompute(grad, gate, up, *variant)
    else:
        found = SwiGLULinearFunction.passes(runner).recompute(grad, gate, up, *variant)
    return tuple(_operators.laid_out(gate, t) for t in found)


def _meta(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *variant: Any) -> tuple[torch.Tensor, ...]:
    return tuple(_operators.empty_like(gate, gate.shape, t.dtype) for t in (gate, up, gate))


RECOMPUTE = _operators.define(
    "swiglu_variant_recompute",
    f"(Tensor grad, Tensor gate, Tensor up, {NUMBERS}) -> (Tensor, Tensor, Tensor)",
    _run,
    _meta,
)


class GatedMLP(torch.nn.Module):
    """The feed-forward layer of Llama and its relatives, ``down_proj(swiglu(gate_proj(x), up_proj(x)))``.

    Args:
        dim: features of the input and the output.
        hidden: features in between.
        bias: gives each projection a bias.
        alpha: as for :func:`sigtorch.swiglu`, and so are ``limit`` and ``offset``.
        limit: the most that a gate is, and that an up is either side of 0.
        offset: added to up.
        recompute: keeps no product for backward, which computes it again, by :func:`sigtorch.swiglu_linear`. A
            ``down_proj`` that is no plain :class:`torch.nn.Linear`, or has hooks, is called as ever, and keeps it.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: a number as for :func:`sigtorch.swiglu`.

    Example:
        >>> sigtorch.nn.GatedMLP(8, 32, recompute=True)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        bias: bool = False,
        *,
        alpha: float = 1,
        limit: float | None = None,
        offset: float = 0,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.limit, self.offset = check_variant("GatedMLP()", alpha, limit, offset)
        self.recompute = _checks.check_flag("GatedMLP()", "recompute", recompute)
        self.gate_proj = torch.nn.Linear(dim, hidden, bias, device, dtype)
        self.up_proj = torch.nn.Linear(dim, hidden, bias, device, dtype)
        self.down_proj = torch.nn.Linear(hidden, dim, bias, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., dim) to (..., dim)."""
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        alpha, limit, offset = self.alpha, self.limit, self.offset
        if self.recompute and type(down) is torch.nn.Linear and not _has_hooks(down):
            return swiglu_linear(gate, up, down.weight, down.bias, alpha=alpha, limit=limit, offset=offset)
        return down(swiglu(gate, up, alpha=alpha, limit=limit, offset=offset))

    def extra_repr(self) -> str:
        """Returns the options."""
        return _checks.shown(alpha=self.alpha, limit=self.limit, offset=self.offset, recompute=self.recompute)


def _has_hooks(module: torch.nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
