"""Sigmoid attention in PyTorch's operators: whole, for tracers and transforms, and in chunks of queries.

The chunks compute in float32 or float64, and hold a few rows of scores at a time. They are differentiable, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from sigtorch._eligible import aten_sigmoid, autocasts

CHUNK = 2**20  # scores that a chunk holds
FEWEST_ROWS = 16  # of a chunk, however many heads there are


class Tensors(NamedTuple):
    """The tensors of a call: query, key and value of shape (batch, heads, n, d), or packed, of shape (total, heads, d)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None = None  # boolean or floating, broadcast to (batch, heads, n_queries, n_keys)
    bias: torch.Tensor | None = None  # 0-d or of shape (heads,)
    slopes: torch.Tensor | None = None  # of shape (heads,)
    cu_seqlens_q: torch.Tensor | None = None  # where packed sequences begin, and the last ends
    cu_seqlens_k: torch.Tensor | None = None


class Settings(NamedTuple):
    """The numbers of a call."""

    max_seqlen_q: int  # the longest of the packed sequences, else 0
    max_seqlen_k: int
    causal: bool
    scale: float
    bias: float | None  # added to that of a tensor; None for -log(n_keys)


class Grads(NamedTuple):
    """The gradients of the tensors that can have one, None where none is wanted."""

    query: torch.Tensor | None
    key: torch.Tensor | None
    value: torch.Tensor | None
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    slopes: torch.Tensor | None


class Added(NamedTuple):
    """The terms of scores beside the product of queries and keys, as they broadcast to (batch, heads, rows, n_keys)."""

    number: torch.Tensor | float
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    penalty: torch.Tensor | None  # of ALiBi, subtracted
    seen: torch.Tensor | None  # where a query sees a key; None if everywhere


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that tensors of another are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_bias(keys: int) -> float:
    return -math.log(max(keys, 1))


def without_autocast(device: torch.device, function: Callable[..., Any], *args: Any) -> Any:
    """Calls the function where autocast does not round the scores."""
    if not autocasts(device.type):
        return function(*args)
    with torch.autocast(device.type, enabled=False):
        return function(*args)


def _sigmoid(z: torch.Tensor, differentiable: bool) -> torch.Tensor:
    """Computes the sigmoid; PyTorch's derivative s (1 - s) would be 0 where s rounds to 1."""
    if not differentiable:
        return aten_sigmoid(z)
    is_positive = z >= 0
    # No abs(), whose derivative at 0 is neither branch's.
    e = torch.exp(torch.where(is_positive, -z, z))
    return torch.where(is_positive, 1.0, e) / (1 + e)


def _by_key_head(t: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns (batch, key heads, rows, ...) of (batch, heads, rows, ...): the rows of all heads that share a key head."""
    batch, all_heads, rows, columns = t.shape
    return t.reshape(batch, heads, all_heads // heads * rows, columns)


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, added: Added) -> torch.Tensor:
    products = _by_key_head(query, key.shape[1]) @ key.mT
    z = products.reshape(*query.shape[:3], key.shape[2]) * scale + added.number
    if added.bias is not None:
        z = z + added.bias.to(z.dtype).reshape(-1, 1, 1)
    if added.penalty is not None:
        z = z - added.penalty
    if added.mask is not None:
        z = z.masked_fill(~added.mask, -math.inf) if added.mask.dtype == torch.bool else z + added.mask.to(z.dtype)
    return z if added.seen is None else z.masked_fill(~added.seen, -math.inf)


def _penalty(slopes: torch.Tensor, distance: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return slopes.to(dtype).reshape(-1, 1, 1) * distance


def _weighted(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (_by_key_head(weights, value.shape[1]) @ value).reshape(*weights.shape[:3], value.shape[3])


# Whole: one expression, whose sizes a tracer does not fix.


def whole(tensors: Tensors, settings: Settings) -> torch.Tensor:
    """Computes attention with all scores at once, differentiable in every way that PyTorch knows."""
    return without_autocast(tensors.query.device, _whole, tensors, settings)  # type: ignore[no-any-return]


def _whole(tensors: Tensors, settings: Settings) -> torch.Tensor:
    query, key, value, mask, bias, slopes, cu_q, cu_k = tensors
    q, k, v = (t.to(wide(query.dtype)) for t in (query, key, value))
    if cu_q is None or cu_k is None:
        number, i, j, seen = _places_dense(q, k, settings)
    else:
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        number, i, j, seen = _places_packed(q, k, cu_q, cu_k, settings)
    penalty = None if slopes is None else _penalty(slopes, (i - j).abs(), q.dtype)
    added = Added(number, mask, bias, penalty, seen)
    out = _weighted(_sigmoid(_scores(q, k, settings.scale, added), True), v).to(query.dtype)
    return out if cu_q is None else out.squeeze(0).transpose(0, 1)


def _places_dense(q: torch.Tensor, k: torch.Tensor, settings: Settings) -> tuple[Any, ...]:
    """Returns the number added to scores, the places of queries and keys by which ALiBi counts, and who sees whom."""
    rows, keys = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
    number: Any = settings.bias
    if number is None:
        number = -torch.log(torch.full((), k.shape[2], dtype=q.dtype, device=q.device).clamp(min=1))
    seen = rows.unsqueeze(-1) >= keys if settings.causal else None
    return number, rows.unsqueeze(-1) + (k.shape[2] - q.shape[2]), keys, seen


def _places_packed(
    q: torch.Tensor, k: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, settings: Settings
) -> tuple[Any, ...]:
    """Returns the same for packed sequences, which do not see each other."""
    rows, keys = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
    sequence = torch.bucketize(rows, cu_q[1:], right=True, out_int32=True)
    seen = sequence.unsqueeze(-1) == torch.bucketize(keys, cu_k[1:], right=True, out_int32=True)
    # Of a query, its place among the keys of its sequence, counted from the first of all.
    i = (rows - cu_q[1:][sequence] + cu_k[1:][sequence]).unsqueeze(-1)
    number: Any = settings.bias
    if number is None:
        number = -torch.log(cu_k.diff().clamp(min=1).to(q.dtype))[sequence].unsqueeze(-1)
    return number, i, keys, seen & (i >= keys) if settings.causal else seen


# In chunks.


def _rows(t: torch.Tensor, rows: slice, dim: int = 2) -> torch.Tensor:
    """Returns some rows; an index of all else would be a view that batched gradients do not take."""
    return t.narrow(dim, rows.start, rows.stop - rows.start)


class Problem(NamedTuple):
    """One attention without packed sequences, in the dtype that it is computed in."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    slopes: torch.Tensor | None
    scale: float
    number: float
    seen_from: int | None  # query i sees key j <= i + seen_from; None if every one

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Yields the rows of each chunk, and the keys that some of them see."""
        (batch, heads, rows, _), keys = self.query.shape, self.key.shape[2]
        step = max(FEWEST_ROWS, CHUNK // max(batch * heads * keys, 1))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            seen = keys if self.seen_from is None else min(keys, max(0, last + self.seen_from))
            yield slice(first, last), slice(0, seen)

    def scores(self, rows: slice, keys: slice) -> torch.Tensor:
        """Returns the scores of a chunk."""
        i, j = self._places(rows, keys)
        mask = self.mask if self.mask is None or self.mask.shape[-2] == 1 else _rows(self.mask, rows, -2)
        penalty = None
        if self.slopes is not None:
            penalty = _penalty(self.slopes, self.distances(rows, keys), self.query.dtype)
        seen = None if self.seen_from is None else i + self.seen_from >= j
        added = Added(self.number, mask, self.bias, penalty, seen)
        return _scores(_rows(self.query, rows), _rows(self.key, keys), self.scale, added)

    def distances(self, rows: slice, keys: slice) -> torch.Tensor:
        """Returns what the slopes of ALiBi multiply."""
        i, j = self._places(rows, keys)
        return (i + (self.key.shape[2] - self.query.shape[2]) - j).abs()

    def _places(self, rows: slice, keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.query.device
        return torch.arange(rows.start, rows.stop, device=device).unsqueeze(-1), torch.arange(keys.stop, device=device)


def _problem(tensors: Tensors, settings: Settings, q: slice, k: slice) -> Problem:
    """Returns a packed sequence as an attention of its own."""
    query, key, value = (
        t[s].transpose(0, 1).unsqueeze(0).to(wide(t.dtype)) for t, s in zip(tensors[:3], (q, k, k), strict=True)
    )
    return _with_settings(query, key, value, tensors, settings, key.shape[2] - query.shape[2])


def _with_settings(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tensors: Tensors, settings: Settings, seen_from: int
) -> Problem:
    number = default_bias(key.shape[2]) if settings.bias is None else settings.bias
    return Problem(
        query, key, value, tensors.mask, tensors.bias, tensors.slopes, settings.scale, number,
        seen_from if settings.causal else None,
    )  # fmt: skip


def _problems(tensors: Tensors, settings: Settings) -> list[Problem]:
    """Returns the attentions that a call consists of: one, or one of each packed sequence."""
    if tensors.cu_seqlens_q is None or tensors.cu_seqlens_k is None:
        query, key, value = (t.to(wide(t.dtype)) for t in tensors[:3])
        return [_with_settings(query, key, value, tensors, settings, 0)]
    places = (t.tolist() for t in (tensors.cu_seqlens_q, tensors.cu_seqlens_k))
    q, k = ([slice(*ends) for ends in itertools.pairwise(c)] for c in places)
    return [_problem(tensors, settings, a, b) for a, b in zip(q, k, strict=True)]


def forward(*args: Any) -> torch.Tensor:
    """Computes attention in chunks; the arguments are those of ``Tensors``, then of ``Settings``."""
    tensors, settings = parts(args)
    return without_autocast(tensors.query.device, _forward, tensors, settings)  # type: ignore[no-any-return]


def parts(args: tuple[Any, ...]) -> tuple[Tensors, Settings]:
    return Tensors(*args[: len(Tensors._fields)]), Settings(*args[len(Tensors._fields) :])


def _forward(tensors: Tensors, settings: Settings) -> torch.Tensor:
    dtype, is_packed = tensors.query.dtype, tensors.cu_seqlens_q is not None
    outs = []
    for problem in _problems(tensors, settings):
        rows = [problem.query.new_empty(*problem.query.shape[:2], 0, problem.value.shape[3], dtype=dtype)]
        for at, keys in problem.chunks():
            weights = _sigmoid(problem.scores(at, keys), torch.is_grad_enabled())
            rows.append(_weighted(weights, _rows(problem.value, keys)).to(dtype))
        outs.append(torch.cat(rows, 2))
    if not is_packed:
        return outs[0]
    return torch.cat([out.squeeze(0).transpose(0, 1) for out in outs])


def backward(grad: torch.Tensor, *args: Any) -> Grads:
    """Computes the gradients in chunks; the last argument tells which of ``Grads`` are wanted."""
    *given, wanted = args
    tensors, settings = parts(tuple(given))
    return without_autocast(tensors.query.device, _backward, grad, tensors, settings, wanted)  # type: ignore[no-any-return]


def _backward(grad: torch.Tensor, tensors: Tensors, settings: Settings, wanted: tuple[bool, ...]) -> Grads:
    problems = _problems(tensors, settings)
    if tensors.cu_seqlens_q is None:
        found = [_problem_grads(grad.to(wide(grad.dtype)), problems[0], wanted)]
    else:
        sizes = [problem.query.shape[2] for problem in problems]
        each = (g.transpose(0, 1).unsqueeze(0).to(wide(g.dtype)) for g in grad.split(sizes))
        found = [_problem_grads(g, problem, wanted) for g, problem in zip(each, problems, strict=True)]
    grads: list[torch.Tensor | None] = []
    for number, (t, is_wanted) in enumerate(zip(tensors, wanted)):  # noqa: B905, no gradients of cu_seqlens
        several: list[Any] = [one[number] for one in found]
        if not is_wanted or t is None:
            grads.append(None)
        elif len(several) == 1 and tensors.cu_seqlens_q is None:
            grads.append(several[0].to(t.dtype))
        elif number < 3:
            grads.append(torch.cat([g.squeeze(0).transpose(0, 1) for g in several]).to(t.dtype))
        else:
            grads.append(sum(several).reshape(t.shape).to(t.dtype))
    return Grads(*grads)


def _problem_grads(grad: torch.Tensor, problem: Problem, wanted: tuple[bool, ...]) -> Grads:
    """Returns the gradients of one attention: sigma' = sigma(z) sigma(-z) needs nothing of other keys, unlike softmax."""
    query, key, value, heads = problem.query, problem.key, problem.value, problem.key.shape[1]
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    grad_bias = grad_slopes = query.new_zeros(query.shape[1])
    of_queries, of_masks = [query.new_empty(*query.shape[:2], 0, query.shape[3])], []
    needs = Grads(*wanted)  # type: ignore[arg-type]
    for rows, keys in problem.chunks():
        z = problem.scores(rows, keys)
        g = _rows(grad, rows)
        p = _sigmoid(z, torch.is_grad_enabled())
        rest = key.shape[2] - keys.stop
        of_values = _by_key_head(p, heads).mT @ _by_key_head(g, heads)
        grad_value = grad_value + torch.nn.functional.pad(of_values, (0, 0, 0, rest))
        slope = _weighted(g, _rows(value, keys).mT) * p * _sigmoid(-z, torch.is_grad_enabled())
        of_queries.append(_weighted(slope, _rows(key, keys)) * problem.scale)
        of_keys = _by_key_head(slope, heads).mT @ _by_key_head(_rows(query, rows), heads)
        grad_key = grad_key + torch.nn.functional.pad(of_keys, (0, 0, 0, rest)) * problem.scale
        if needs.bias:
            grad_bias = grad_bias + slope.sum((0, 2, 3))
        if needs.slopes:
            grad_slopes = grad_slopes - (slope * problem.distances(rows, keys)).sum((0, 2, 3))
        if needs.mask and problem.mask is not None:
            shape = list(problem.mask.shape)
            shape[-2] = 1 if shape[-2] == 1 else rows.stop - rows.start
            of_masks.append(slope.sum_to_size(shape))
    grad_mask = None if problem.mask is None or not needs.mask else _joined(of_masks, problem.mask)
    if problem.bias is not None and not problem.bias.dim():
        grad_bias = grad_bias.sum()
    return Grads(torch.cat(of_queries, 2), grad_key, grad_value, grad_mask, grad_bias, grad_slopes)


def _joined(chunks: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a mask, of those of chunks of queries."""
    if not chunks:
        return torch.zeros_like(mask)
    return torch.stack(chunks).sum(0) if mask.shape[-2] == 1 else torch.cat(chunks, -2)
