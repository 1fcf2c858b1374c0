"""Forward and backward passes of the router: a row of experts is held in registers, several rows by a program."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from sigtorch.kernels import _math
from sigtorch.kernels._layout import Operand, exact
from sigtorch.kernels._plan import Call, plan

WARPS = 1  # a program: several would share a row, and wait for each other at every chosen expert
ELEMENTS = 512  # of a program, if a row has no more: 16 a thread
MOST_ROWS = 32  # of a program: the short rows of one thread have a few addresses each


class Form(NamedTuple):
    """Properties that both kernels are compiled for."""

    experts: int
    chosen: int
    num_groups: int
    topk_groups: int
    normalize: bool
    has_bias: bool


class Block(NamedTuple):
    """The sizes of a program's blocks, powers of two: rows, groups, experts of a group, and chosen experts."""

    rows: int
    groups: int
    members: int
    chosen: int


@triton.jit
def _key(value):
    """Returns a whole number in the order of values, NaN highest; the lowest number of all is no value's."""
    double: tl.constexpr = value.dtype == tl.float64
    INT: tl.constexpr = tl.int64 if double else tl.int32
    HIGHEST: tl.constexpr = 0x7FFFFFFFFFFFFFFF if double else 0x7FFFFFFF
    bits = tl.where(value == 0.0, 0.0, value).to(INT, bitcast=True)  # -0 is 0
    return tl.where(value == value, tl.where(bits < 0, bits ^ HIGHEST, bits), HIGHEST)


@triton.jit
def _value(key):
    """Returns the value that has a key."""
    double: tl.constexpr = key.dtype == tl.int64
    HIGHEST: tl.constexpr = 0x7FFFFFFFFFFFFFFF if double else 0x7FFFFFFF
    return tl.where(key < 0, key ^ HIGHEST, key).to(tl.float64 if double else tl.float32, bitcast=True)


@triton.jit
def _best(key, n):
    """Returns where in each row, the last axis, the first of the highest keys is; n counts along that axis."""
    AXIS: tl.constexpr = len(key.shape) - 1
    highest = tl.max(key, AXIS, keep_dims=True)
    return tl.min(tl.where(key == highest, n, key.shape[AXIS]), AXIS, keep_dims=True)


@triton.jit
def _in_best_groups(key, LOWEST: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the keys with those of the experts in all other groups lowered to LOWEST."""
    ROWS: tl.constexpr = BLOCK.rows
    GROUPS: tl.constexpr = BLOCK.groups
    MEMBERS: tl.constexpr = BLOCK.members
    grouped = tl.reshape(key, [ROWS, GROUPS, MEMBERS])
    p = tl.arange(0, MEMBERS)[None, None, :]
    best = _value(tl.max(grouped, 2))
    rest = tl.where(p == _best(grouped, p), LOWEST, grouped)
    second = _value(tl.max(rest, 2))
    if not FORM.has_bias:  # then keys are those of logits
        best, second = _math.sigmoid(best, True), _math.sigmoid(second, True)
    worth = best + second if FORM.experts > FORM.num_groups else best
    g = tl.arange(0, GROUPS)[None, :]
    group_key = tl.where(g < FORM.num_groups, _key(worth), LOWEST)
    for _ in range(FORM.topk_groups):
        group_key = tl.where(g == _best(group_key, g), LOWEST, group_key)
    taken = tl.reshape(group_key, [ROWS, GROUPS, 1]) == LOWEST
    return tl.reshape(tl.where(taken, grouped, LOWEST), [ROWS, GROUPS * MEMBERS])


@triton.jit
def _scores(x, k, FORM: tl.constexpr):
    """Returns the weights of chosen experts, before the scale."""
    if FORM.normalize:
        log = tl.minimum(x, 0.0) - _math.log1p(_math.exp_neg(tl.abs(x), True))
        ordered = tl.where((k < FORM.chosen) & (log == log), log, float("-inf"))  # a NaN has no order
        e = _math.exp_neg(tl.max(ordered, 1, keep_dims=True) - log, True)
        e = tl.where(k < FORM.chosen, e, 0.0)
        return e * _math.reciprocal(tl.sum(e, 1, keep_dims=True))
    else:
        return _math.sigmoid(x, True)


@triton.jit
def _scalar(scale, dtype: tl.constexpr):
    """Returns a number, which float64 keeps in memory: see ``exact``."""
    return tl.load(scale) if dtype == tl.float64 else scale


@triton.jit(do_not_specialize=["rows"])
def _choose_kernel(inputs, outputs, rows, FORM: tl.constexpr, BLOCK: tl.constexpr):
    x_ptr, bias_ptr, scale = inputs
    weights_ptr, indices_ptr = outputs
    WIDE: tl.constexpr = weights_ptr.dtype.element_ty
    double: tl.constexpr = weights_ptr.dtype.element_ty == tl.float64
    LOWEST: tl.constexpr = -0x8000000000000000 if double else -0x80000000
    SIZE: tl.constexpr = FORM.experts // FORM.num_groups
    ROWS: tl.constexpr = BLOCK.rows
    GROUPS: tl.constexpr = BLOCK.groups
    MEMBERS: tl.constexpr = BLOCK.members
    CHOSEN: tl.constexpr = BLOCK.chosen
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, GROUPS * MEMBERS)[None, :]
    k = tl.arange(0, CHOSEN)[None, :]
    expert = n // MEMBERS * SIZE + n % MEMBERS
    inside = (n % MEMBERS < SIZE) & (n // MEMBERS < FORM.num_groups)
    value = tl.load(x_ptr + t * FORM.experts + expert, mask=inside & (t < rows), other=0.0).to(WIDE)
    if FORM.has_bias:
        value = _math.sigmoid(value, True) + tl.load(bias_ptr + expert, mask=inside, other=0.0).to(WIDE)
    key = tl.where(inside, _key(value), LOWEST)
    if FORM.topk_groups < FORM.num_groups:
        key = _in_best_groups(key, LOWEST, FORM, BLOCK)
    index = tl.zeros([ROWS, CHOSEN], tl.int32)
    for number in range(FORM.chosen):
        best = _best(key, n)
        index = tl.where(k == number, best, index)
        key = tl.where(n == best, LOWEST, key)
    index = index // MEMBERS * SIZE + index % MEMBERS
    inside = (k < FORM.chosen) & (t < rows)
    x = tl.load(x_ptr + t * FORM.experts + index, mask=inside, other=0.0).to(WIDE)
    tl.store(weights_ptr + t * FORM.chosen + k, _scores(x, k, FORM) * _scalar(scale, WIDE), mask=inside)
    tl.store(indices_ptr + t * FORM.chosen + k, index.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _choose_backward_kernel(inputs, outputs, rows, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """Writes each row of the gradient once, zeros and all. An index that is no expert's makes a row NaN."""
    grad_ptr, x_ptr, indices_ptr, scale = inputs
    out_ptr = outputs[0]
    WIDE: tl.constexpr = grad_ptr.dtype.element_ty
    ROWS: tl.constexpr = BLOCK.rows
    MEMBERS: tl.constexpr = BLOCK.members
    CHOSEN: tl.constexpr = BLOCK.chosen
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, MEMBERS)[None, :]
    k = tl.arange(0, CHOSEN)[None, :]
    inside = (k < FORM.chosen) & (t < rows)
    index = tl.load(indices_ptr + t * FORM.chosen + k, mask=inside, other=0)
    grad = tl.load(grad_ptr + t * FORM.chosen + k, mask=inside, other=0.0)
    known = inside & (index >= 0) & (index < FORM.experts)
    x = tl.load(x_ptr + t * FORM.experts + index, mask=known, other=float("nan")).to(WIDE)
    x = tl.where(inside, x, 0.0)
    index = tl.where(known, index, 0).to(tl.int32)
    near, rest = _math.exact_sigmoid_and_complement(x, True)
    if FORM.normalize:
        score = _scores(x, k, FORM)
        slope = score * rest * (grad - tl.sum(score * grad, 1, keep_dims=True))
    else:
        slope = near * rest * grad
    slope *= _scalar(scale, WIDE)
    row = tl.zeros([ROWS, MEMBERS], WIDE)
    for number in range(FORM.chosen):
        this = k == number
        at = tl.sum(tl.where(this, index, 0), 1, keep_dims=True)
        row += tl.where(n == at, tl.sum(tl.where(this, slope, 0.0), 1, keep_dims=True), 0.0)
    row = _math.rounded(row, out_ptr.dtype.element_ty)
    tl.store(out_ptr + t * FORM.experts + n, row, mask=(n < FORM.experts) & (t < rows))


def sigmoid_topk_forward(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    num_groups: int,
    topk_groups: int,
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weights and the indices of the chosen experts, both contiguous."""
    experts = logits.shape[-1]
    shape = (*logits.shape[:-1], k)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    outputs = logits.new_empty(shape, dtype=wide), logits.new_empty(shape, dtype=torch.int64)
    form = Form(experts, k, num_groups, topk_groups, normalize, bias is not None)
    bias = 1 if bias is None else bias.contiguous()  # 1 is not read
    _launch(_choose_call, form, (logits.contiguous(), bias, scale), outputs)
    return outputs


def sigmoid_topk_backward(
    grad: torch.Tensor, logits: torch.Tensor, indices: torch.Tensor, normalize: bool, scale: float
) -> torch.Tensor:
    """Returns the gradient of the logits, contiguous."""
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    form = Form(logits.shape[-1], indices.shape[-1], 1, 1, normalize, False)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    inputs = grad.to(wide).contiguous(), logits.contiguous(), indices.contiguous(), scale
    _launch(_choose_backward_call, form, inputs, (grad_logits,))
    return grad_logits


def _launch(make: Any, form: Form, inputs: tuple[Any, ...], outputs: tuple[torch.Tensor, ...]) -> None:
    if outputs[0].numel():
        ready, operands = plan(make, None, exact(inputs, outputs[0]), outputs, (form,))
        ready.launch(operands, outputs)


def _choose_call(_: None, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], form: Form) -> Call:
    return _call(_choose_kernel, outputs[0].numel() // form.chosen, form)


def _choose_backward_call(_: None, inputs: tuple[Operand, ...], outputs: tuple[torch.Tensor, ...], form: Form) -> Call:
    return _call(_choose_backward_kernel, outputs[0].numel() // form.experts, form)


def _call(kernel: Any, tokens: int, form: Form) -> Call:
    groups = triton.next_power_of_2(form.num_groups)
    members = triton.next_power_of_2(form.experts // form.num_groups)
    rows = min(MOST_ROWS, max(1, ELEMENTS // (groups * members)))
    block = Block(rows, groups, members, triton.next_power_of_2(form.chosen))
    return Call(kernel, (triton.cdiv(tokens, rows), 1, 1), (tokens, form, block), warps=WARPS)
