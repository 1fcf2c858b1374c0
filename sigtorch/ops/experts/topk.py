"""The choice of experts: function, checks, formula, autograd Function and operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd import Function

from sigtorch import _checks, _operators
from sigtorch._autograd import Passes, backward_runner, formula_grads, marker, register_op, saved, with_strides_of
from sigtorch._backend import Runner, select
from sigtorch._eligible import aten_sigmoid
from sigtorch._once import once

OP = "sigmoid_topk"
MOST_COLUMNS = 1024  # of a row in registers, with groups rounded up to powers of two
MOST_CHOSEN = 32


class Choice(NamedTuple):
    """Settings of the choice of experts."""

    k: int
    num_groups: int
    topk_groups: int


class Weighting(NamedTuple):
    """Settings of the weights of chosen experts."""

    normalize: bool
    scale: float


def sigmoid_topk(
    logits: torch.Tensor,
    k: int,
    correction_bias: torch.Tensor | None = None,
    *,
    num_groups: int = 1,
    topk_groups: int | None = None,
    normalize: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Chooses k experts a row by :math:`\sigma(x) + b`, and weights them by their scores :math:`\sigma(x)` alone.

    The router of DeepSeek-V3, Kimi and GLM. Equal experts are taken in the order of their indices, and a NaN before all
    others. Without a bias, experts are ordered by their logits, which differ where rounded scores are equal.

    Args:
        logits: of shape (..., experts) and any floating dtype.
        k: how many experts to choose.
        correction_bias: of shape (experts,), added to the scores for the choice only. It gets no gradient.
        num_groups: splits the experts into groups of neighbours. A group is worth the sum of its two best experts.
        topk_groups: how many groups to choose first; the experts of all others are never chosen.
        normalize: divides a row's weights by their sum. This is computed from logarithms, so it is right however small the
            scores are.
        scale: multiplies the weights, after that.

    Returns:
        ``(weights, indices)``, both (..., k), by descending :math:`\sigma(x) + b`. Weights are float32, or float64 for float64
        logits; indices are int64. The weights of a row with a NaN among the chosen are NaN. Only logits and indices are kept
        for backward.

    Raises:
        TypeError: logits or bias are no floating tensors, or a number has another type.
        ValueError: a k that is not possible, groups that do not divide the experts, several groups without
            ``topk_groups``, a bias of another shape, or tensors on several devices.

    Example:
        >>> logits, bias = torch.tensor([[0.0, 0.0, -1.0, 2.0]]), torch.tensor([0.0, 0.1, 2.0, 0.0])
        >>> sigtorch.sigmoid_topk(logits, 2, bias, normalize=False)
        (tensor([[0.2689, 0.8808]]), tensor([[2, 3]]))
        >>> sigtorch.sigmoid_topk(logits - 500, 2)
        (tensor([[0.8808, 0.1192]]), tensor([[3, 0]]))

    Source:
        DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437; Wang et al., "Auxiliary-Loss-Free Load Balancing
        Strategy for Mixture-of-Experts", 2024, arXiv:2408.15664.
    """
    choice, weighting = settings_of(
        "sigmoid_topk()", logits, k, correction_bias, num_groups, topk_groups, normalize, scale
    )
    if correction_bias is not None and correction_bias.requires_grad:
        correction_bias = correction_bias.detach()
    runner = select(logits, beside=() if correction_bias is None else (correction_bias,), opaque=True)
    if runner == "aten" or not _fuses(logits, choice):
        return _formula(logits, correction_bias, choice, weighting)
    if runner == "compiled":
        return torch.ops.sigtorch.sigmoid_topk.default(logits, correction_bias, *choice, *weighting)  # type: ignore[no-any-return]
    return SigmoidTopkFunction.apply(logits, correction_bias, choice, weighting, runner)  # type: ignore[no-any-return]


def settings_of(
    where: str,
    logits: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    num_groups: int,
    topk_groups: int | None,
    normalize: bool,
    scale: float,
) -> tuple[Choice, Weighting]:
    """Checks the arguments, and returns the settings."""
    _check_tensors(where, logits, bias)
    if type(scale) is not float:
        _checks.check_number(where, scale=scale)
        scale = float(scale)
    if type(k) is not int or type(num_groups) is not int or (topk_groups is not None and type(topk_groups) is not int):
        k, num_groups = _checks.check_whole(where, "k", k), _checks.check_whole(where, "num_groups", num_groups)
        topk_groups = None if topk_groups is None else _checks.check_whole(where, "topk_groups", topk_groups)
    if topk_groups is None:
        if num_groups > 1:
            raise ValueError(f"{where}: num_groups={num_groups} needs topk_groups, how many of them to choose")
        topk_groups = 1
    choice = Choice(k, num_groups, topk_groups)
    _check_choice(where, logits.shape[-1], choice)
    return choice, Weighting(_checks.check_flag(where, "normalize", normalize), scale)


def _check_tensors(where: str, logits: torch.Tensor, bias: torch.Tensor | None) -> None:
    given = {"logits": logits} if bias is None else {"logits": logits, "correction_bias": bias}
    for name, t in given.items():
        if type(t) is not torch.Tensor:
            _checks.check_tensors(where, **{name: t})
        _checks.check_floating(where, name, t)
    if not logits.dim():
        raise ValueError(f"{where}: logits must have a dimension of experts, got a scalar")
    if bias is not None:
        if bias.shape != logits.shape[-1:]:
            raise ValueError(
                f"{where}: correction_bias must have shape ({logits.shape[-1]},), one number an expert, "
                f"got {tuple(bias.shape)}"
            )
        if bias.device != logits.device:
            raise _checks.error_several_devices(where, **given)


def _check_choice(where: str, experts: int, choice: Choice) -> None:
    k, num_groups, topk_groups = choice
    if num_groups < 1 or experts % num_groups:
        raise ValueError(f"{where}: num_groups={num_groups} must divide the number of experts, {experts}")
    if not 1 <= topk_groups <= num_groups:
        raise ValueError(f"{where}: topk_groups={topk_groups} must be from 1 to num_groups={num_groups}")
    most = experts // num_groups * topk_groups
    if not 1 <= k <= most:
        raise ValueError(f"{where}: k={k} must be from 1 to {most}, the number of experts that can be chosen")


def _fuses(logits: torch.Tensor, choice: Choice) -> bool:
    """Tells whether the kernels take a row of so many experts."""
    experts = logits.shape[-1]
    if choice.k > MOST_CHOSEN or experts > MOST_COLUMNS:
        return False
    if choice.num_groups == 1:
        return True
    return _power_of_2(choice.num_groups) * _power_of_2(experts // choice.num_groups) <= MOST_COLUMNS


def _power_of_2(size: int) -> int:
    """Returns the next power of two, by comparisons alone, which Dynamo takes for any size."""
    power = 1
    while power < size:
        power *= 2
    return power


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that logits of another are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _formula(
    logits: torch.Tensor, bias: torch.Tensor | None, choice: Choice, weighting: Weighting
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = _chosen(logits.detach(), bias if bias is None else bias.detach(), choice)
    return _weights(logits, indices, weighting), indices


def _chosen(logits: torch.Tensor, bias: torch.Tensor | None, choice: Choice) -> torch.Tensor:
    """Returns the indices of the chosen experts; torch.topk would not promise the lowest of equal ones."""
    worth = logits.to(_wide(logits.dtype))
    if bias is not None:
        worth = aten_sigmoid(worth) + bias.to(worth.dtype)
    if choice.topk_groups == choice.num_groups:
        return worth.sort(dim=-1, descending=True, stable=True).indices[..., : choice.k]
    grouped = worth.unflatten(-1, (choice.num_groups, -1))
    size = grouped.shape[-1]
    best = grouped.topk(min(2, size), -1).values
    if bias is None:
        best = aten_sigmoid(best)
    groups = best.sum(-1).sort(dim=-1, descending=True, stable=True).indices[..., : choice.topk_groups]
    groups = groups.sort(dim=-1).values
    # Only their experts are sorted: no number keeps all others below those whose bias is minus infinity.
    members = (groups.unsqueeze(-1) * size + torch.arange(size, device=logits.device)).flatten(-2)
    order = worth.gather(-1, members).sort(dim=-1, descending=True, stable=True).indices[..., : choice.k]
    return members.gather(-1, order)


def _weights(logits: torch.Tensor, indices: torch.Tensor, weighting: Weighting) -> torch.Tensor:
    chosen = logits.gather(-1, indices).to(_wide(logits.dtype))
    # A ratio of sigmoids is one of exponentials of logsigmoid: no sum of scores that could be 0.
    scores = F.softmax(F.logsigmoid(chosen), -1) if weighting.normalize else aten_sigmoid(chosen)
    return scores * weighting.scale


register_op(OP)


class SigmoidTopkFunction(Function):
    """Saves the logits and the chosen indices."""

    @staticmethod
    @once
    def passes(runner: Runner) -> Passes:
        """Returns the passes; kernels are imported when the first tensor needs them."""
        if runner == "operator":
            return OPERATORS
        from sigtorch.kernels.experts import sigmoid_topk_backward, sigmoid_topk_forward

        return Passes(sigmoid_topk_forward, sigmoid_topk_backward)

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        bias: torch.Tensor | None,
        choice: Choice,
        weighting: Weighting,
        runner: Runner,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, indices = SigmoidTopkFunction.passes(runner).forward(logits, bias, *choice, *weighting)
        ctx.weighting, ctx.runner = weighting, runner
        ctx.save_for_backward(marker(OP), logits, indices)
        ctx.mark_non_differentiable(indices)
        return weights, indices

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        logits, indices = saved(ctx, OP)
        runner = backward_runner(ctx.runner, grad, logits)
        if runner == "aten":
            (grad_logits,) = _formula_grads(logits, indices, ctx.weighting, grad)
        else:
            grad_logits = SigmoidTopkFunction.passes(runner).backward(grad, logits, indices, *ctx.weighting)
            grad_logits = with_strides_of(logits, grad_logits)
        return grad_logits, None, None, None, None


def _formula_grads(
    logits: torch.Tensor, indices: torch.Tensor, weighting: Weighting, grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Differentiates the weights of experts that are chosen already."""
    return formula_grads([True], lambda x: _weights(x, indices, weighting), (logits,), grad)


# The operators.


def _run(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int, num_groups: int, topk_groups: int, *weighting: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    choice = Choice(k, num_groups, topk_groups)
    _check_tensors(f"torch.ops.sigtorch.{OP}", logits, bias)
    _check_choice(f"torch.ops.sigtorch.{OP}", logits.shape[-1], choice)
    runner = select(logits, beside=() if bias is None else (bias,)) if _fuses(logits, choice) else "aten"
    if runner == "aten":
        weights, indices = _formula(logits, bias, choice, Weighting(*weighting))
        return weights.contiguous(), indices.contiguous()
    return SigmoidTopkFunction.passes(runner).forward(logits, bias, *choice, *weighting)  # type: ignore[no-any-return]


def _meta(logits: torch.Tensor, bias: torch.Tensor | None, k: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*logits.shape[:-1], k)
    return logits.new_empty(shape, dtype=_wide(logits.dtype)), logits.new_empty(shape, dtype=torch.int64)


def _run_backward(grad: torch.Tensor, logits: torch.Tensor, indices: torch.Tensor, *weighting: Any) -> torch.Tensor:
    if indices.dtype != torch.int64 or indices.shape != grad.shape or indices.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"torch.ops.sigtorch.{OP}_backward: indices must be int64 of the shape that forward returned, "
            f"got {indices.dtype} {tuple(indices.shape)} for grad {tuple(grad.shape)} and logits {tuple(logits.shape)}"
        )
    experts, k = logits.shape[-1], indices.shape[-1]
    fuses = 1 <= k <= experts and _fuses(logits, Choice(k, 1, 1))
    runner = select(logits, beside=(grad, indices)) if fuses else "aten"
    if runner == "aten":
        with _operators.differentiable():
            (found,) = _formula_grads(logits, indices, Weighting(*weighting), grad)
        grad_logits: Any = found
    else:
        grad_logits = SigmoidTopkFunction.passes(runner).backward(grad, logits, indices, *weighting)
    return _operators.laid_out(logits, grad_logits)


def _save(ctx: Any, args: Sequence[Any], results: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, _, *settings = args
    _, indices = results
    ctx.weighting = Weighting(*settings[len(Choice._fields) :])
    ctx.save_for_backward(logits, indices)
    ctx.mark_non_differentiable(indices)


def _differentiate(ctx: Any, grad: torch.Tensor, _: Any) -> Sequence[torch.Tensor | None]:
    logits, indices = ctx.saved_tensors
    if torch.is_grad_enabled():
        (grad_logits,) = _formula_grads(logits, indices, ctx.weighting, grad)
    else:
        grad_logits = OPERATORS.backward(grad, logits, indices, *ctx.weighting)
    return grad_logits, *[None] * (1 + len(Choice._fields) + len(Weighting._fields))


OPERATORS = Passes(
    _operators.define(
        OP,
        "(Tensor logits, Tensor? correction_bias, int k, int num_groups, int topk_groups, bool normalize, float scale)"
        " -> (Tensor weights, Tensor indices)",
        _run,
        _meta,
        _operators.Gradient(_save, _differentiate),
    ),
    _operators.define(
        f"{OP}_backward",
        "(Tensor grad, Tensor logits, Tensor indices, bool normalize, float scale) -> Tensor",
        _run_backward,
        lambda grad, logits, *_: torch.empty_like(logits),
    ),
)
