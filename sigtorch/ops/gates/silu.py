"""SwiGLU: function, then formulas, autograd Functions and modules in the same order."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch._autograd import Passes
from sigtorch._backend import Runner, select
from sigtorch._elementwise import FromInputs
from sigtorch._eligible import aten_sigmoid


def swiglu(
    gate: torch.Tensor,
    up: torch.Tensor | None = None,
    *,
    alpha: float = 1,  # whole, as offset: Dynamo takes a float for a dynamic number, and compiles twice
    limit: float | None = None,
    offset: float = 0,
    interleaved: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Computes :math:`\mathrm{silu}(g) \cdot u = g \, \sigma(g) \cdot u`, or with options
    :math:`g \, \sigma(\alpha g) \cdot (u + \mathrm{offset}) \cdot w` of clamped g and u.

    Args:
        gate: any shape and floating dtype; without ``up``, both packed along the last dimension, the gate first, as in
            ``F.silu(a) * b`` with ``a, b = x.chunk(2, -1)``.
        up: broadcastable against gate.
        alpha: multiplies the gate inside of the sigmoid.
        limit: the most that a gate is, and that an up is either side of 0: ``gate.clamp(max=limit)`` and
            ``up.clamp(-limit, limit)``. What is clamped gets no gradient, and a value at the limit that of ``torch.clamp``.
        offset: added to up, after that.
        interleaved: reads a packed tensor as g₀ u₀ g₁ u₁ …, ``x[..., 0::2]`` and ``x[..., 1::2]``.
        weight: one number a row, of the result's shape with a last dimension of 1. It may be float32 beside half gates.

    Returns:
        A tensor of the broadcast shape, or of the packed one with its last dimension halved, and of the dtype that gate and
        up promote to. Only the inputs are kept for backward, which writes both halves of a packed gradient in one pass, and
        sums the gradient of ``weight`` along rows in the same one.

    Raises:
        TypeError: an argument is not a tensor, or a number is none.
        ValueError: shapes that do not broadcast, an odd last dimension of a packed tensor, tensors on several devices, a
            negative or NaN ``limit``, ``interleaved`` beside ``up``, or a weight of another shape.

    Example:
        >>> gate, up = torch.tensor([0.0, 100.0]), torch.tensor([3.0, 2.0])
        >>> sigtorch.swiglu(gate, up)
        tensor([  0., 200.])
        >>> sigtorch.swiglu(torch.cat([gate, up]))  # packed
        tensor([  0., 200.])
        >>> sigtorch.swiglu(gate, up, limit=7.0, offset=1.0)
        tensor([ 0.0000, 20.9809])

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202; OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card",
        2025, arXiv:2508.10925, for alpha, limit and offset.
    """
    has_numbers = not isinstance(alpha, torch.Tensor) and not isinstance(offset, torch.Tensor)
    if not has_numbers or alpha != 1 or offset != 0 or limit is not None or weight is not None or interleaved:
        return _variant(gate, up, check_variant("swiglu()", alpha, limit, offset), interleaved, weight)
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


class Variant(NamedTuple):
    """The numbers of a SwiGLU, in the order of its operators' arguments."""

    alpha: float
    limit: float | None
    offset: float


def check_variant(where: str, alpha: Any, limit: Any, offset: Any) -> Variant:
    """Returns the numbers as Python's."""
    _checks.check_constant(where, alpha=alpha, offset=offset)
    if limit is not None:
        _checks.check_constant(where, limit=limit)
        limit = float(limit)
        if not limit >= 0:
            raise ValueError(f"{where}: limit must be at least 0, got {limit}")
    return Variant(float(alpha), limit, float(offset))


def _variant(
    gate: torch.Tensor, up: torch.Tensor | None, variant: Variant, interleaved: bool, weight: torch.Tensor | None
) -> torch.Tensor:
    where = "swiglu()"
    _checks.check_flag(where, "interleaved", interleaved)
    settings: tuple[Any, ...] = variant
    given = {"gate": gate}
    if up is None:
        _checks.check_halves(where, "gate", gate, -1)
        settings = interleaved, *variant
    else:
        given["up"] = up
        _checks.check_tensors(where, **given)
        if interleaved:
            raise ValueError(f"{where}: interleaved reads both from gate, but up was given, of shape {tuple(up.shape)}")
    kind = up is None, weight is not None
    function = FUNCTIONS[kind]
    if weight is not None:
        check_weight(where, gate, up, weight)
        given["weight"] = weight
    tensors = (*given.values(),)
    runner = select(*tensors, opaque=up is None or weight is not None)
    if runner == "aten" or not function.fuses(*tensors):
        return _checks.run_explained(where, lambda *given: function.formula(*given, *settings), (*given,), tensors)
    if runner == "compiled":
        return OPERATORS[kind](*tensors, *settings)  # type: ignore[no-any-return]
    return function.apply(*tensors, *settings, runner)


def check_weight(where: str, gate: torch.Tensor, up: torch.Tensor | None, weight: torch.Tensor) -> None:
    """Takes one number a row of the result, which a packed gate has as many of."""
    given = {"gate": gate, "weight": weight} if up is None else {"gate": gate, "up": up, "weight": weight}
    _checks.check_tensors(where, **given)
    if torch._C._get_tracing_state() is not None or not all(isinstance(t, torch.Tensor) for t in given.values()):
        return
    rows = gate.shape[:-1]
    if up is not None and up.shape != gate.shape:
        _checks.check_broadcastable(where, gate=gate, up=up)
        rows = torch.broadcast_shapes(gate.shape, up.shape)[:-1]
    if not gate.dim() or weight.shape != (*rows, 1):
        raise ValueError(
            f"{where}: weight must be one number a row, (..., 1), got {tuple(weight.shape)} for gate {tuple(gate.shape)}"
        )


def _swiglu_formula(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _swiglu_packed_formula(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def variant_formula(
    gate: torch.Tensor, up: torch.Tensor, alpha: float, limit: float | None, offset: float
) -> torch.Tensor:
    """SwiGLU with its numbers, without a weight."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    activated = F.silu(gate) if alpha == 1 else gate * aten_sigmoid(gate * alpha)
    return activated * (up + offset if offset else up)


def _weighted_formula(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, *variant: Any) -> torch.Tensor:
    product = variant_formula(gate, up, *variant)
    return (product * weight).to(product.dtype)


def _halves(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    gate, up = x.chunk(2, -1)
    return gate, up


def _packed_variant_formula(x: torch.Tensor, interleaved: bool, *variant: Any) -> torch.Tensor:
    return variant_formula(*_halves(x, interleaved), *variant)


def _packed_weighted_formula(x: torch.Tensor, weight: torch.Tensor, interleaved: bool, *variant: Any) -> torch.Tensor:
    return _weighted_formula(*_halves(x, interleaved), weight, *variant)


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


NUMBERS = "float alpha, float? limit, float offset"


class SwiGLUVariantFunction(FromInputs):
    op, arguments = "swiglu_variant", f"Tensor gate, Tensor up, {NUMBERS}"
    tensor_count, formula = 2, staticmethod(variant_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import swiglu_variant_backward, swiglu_variant_forward

        return Passes(swiglu_variant_forward, swiglu_variant_backward)

    @staticmethod
    def check(gate: torch.Tensor, up: torch.Tensor, *variant: Any) -> None:
        check_variant("torch.ops.sigtorch.swiglu_variant", *variant)


class SwiGLUWeightedFunction(FromInputs):
    op, arguments = "swiglu_weighted", f"Tensor gate, Tensor up, Tensor weight, {NUMBERS}"
    tensor_count, formula = 3, staticmethod(_weighted_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import swiglu_weighted_backward, swiglu_weighted_forward

        return Passes(swiglu_weighted_forward, swiglu_weighted_backward)

    @staticmethod
    def check(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, *variant: Any) -> None:
        where = "torch.ops.sigtorch.swiglu_weighted"
        check_variant(where, *variant)
        check_weight(where, gate, up, weight)


class SwiGLUPackedVariantFunction(FromInputs):
    op, arguments = "swiglu_packed_variant", f"Tensor input, bool interleaved, {NUMBERS}"
    tensor_count, formula = 1, staticmethod(_packed_variant_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import swiglu_packed_variant_backward, swiglu_packed_variant_forward

        return Passes(swiglu_packed_variant_forward, swiglu_packed_variant_backward)

    @staticmethod
    def check(x: torch.Tensor, interleaved: bool, *variant: Any) -> None:
        where = "torch.ops.sigtorch.swiglu_packed_variant"
        _checks.check_halves(where, "input", x, -1)
        check_variant(where, *variant)

    @staticmethod
    def lead(x: torch.Tensor, interleaved: bool, *variant: Any) -> torch.Tensor:
        return _halves(x, interleaved)[0]


class SwiGLUPackedWeightedFunction(FromInputs):
    op, arguments = "swiglu_packed_weighted", f"Tensor input, Tensor weight, bool interleaved, {NUMBERS}"
    tensor_count, formula = 2, staticmethod(_packed_weighted_formula)

    @staticmethod
    def passes_of(runner: Runner) -> Passes:
        from sigtorch.kernels.gates import swiglu_packed_weighted_backward, swiglu_packed_weighted_forward

        return Passes(swiglu_packed_weighted_forward, swiglu_packed_weighted_backward)

    @staticmethod
    def check(x: torch.Tensor, weight: torch.Tensor, interleaved: bool, *variant: Any) -> None:
        where = "torch.ops.sigtorch.swiglu_packed_weighted"
        _checks.check_halves(where, "input", x, -1)
        check_variant(where, *variant)
        check_weight(where, x, None, weight)

    @staticmethod
    def lead(x: torch.Tensor, weight: torch.Tensor, interleaved: bool, *variant: Any) -> torch.Tensor:
        return _halves(x, interleaved)[0]


# By whether gate and up are packed, and whether there is a weight.
FUNCTIONS: dict[tuple[bool, bool], type[FromInputs]] = {
    (False, False): SwiGLUVariantFunction,
    (False, True): SwiGLUWeightedFunction,
    (True, False): SwiGLUPackedVariantFunction,
    (True, True): SwiGLUPackedWeightedFunction,
}
OPERATORS = {kind: function.operators.forward for kind, function in FUNCTIONS.items()}  # for compiled code


class SwiGLU(torch.nn.Module):
    """:func:`sigtorch.swiglu` as a module: ``forward(gate, up)``, or packed ``forward(x)``.

    Args:
        alpha: as for :func:`sigtorch.swiglu`, and so are the others.
        limit: the most that a gate is, and that an up is either side of 0.
        offset: added to up.
        interleaved: reads a packed tensor as g₀ u₀ g₁ u₁ ….

    Raises:
        TypeError, ValueError: a number as for :func:`sigtorch.swiglu`.

    Example:
        >>> sigtorch.nn.SwiGLU()(torch.tensor([100.0]), torch.tensor([2.0]))
        tensor([200.])
    """

    def __init__(
        self, *, alpha: float = 1, limit: float | None = None, offset: float = 0, interleaved: bool = False
    ) -> None:
        super().__init__()
        self.alpha, self.limit, self.offset = check_variant("SwiGLU()", alpha, limit, offset)
        self.interleaved = _checks.check_flag("SwiGLU()", "interleaved", interleaved)

    def forward(
        self, gate: torch.Tensor, up: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns silu(gate)·up, of the broadcast shape, or of the packed one with the last dimension halved."""
        return swiglu(
            gate,
            up,
            alpha=self.alpha,
            limit=self.limit,
            offset=self.offset,
            interleaved=self.interleaved,
            weight=weight,
        )

    def extra_repr(self) -> str:
        """Returns the options."""
        return _checks.shown(alpha=self.alpha, limit=self.limit, offset=self.offset, interleaved=self.interleaved)
