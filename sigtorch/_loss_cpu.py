"""The losses' passes over CPU tensors: cache-sized chunks, PyTorch's operators, buffers that every chunk uses again.

An operator costs a pass over the caches, whatever it computes, and a logarithm or a sigmoid costs several: the fewest of
each, in an order that cancels nowhere. The losses look alike from both sides of 0, so x is folded onto a = |x|: with
n = sigmoid(-a), the smaller of sigmoid(x) and sigmoid(-x), and r, the share of the target on the far side of x (1 - t for
a positive x, t else), the cross-entropy is a r - log(1 - n), its slope sign(x) (r - n), and the focal loss' 1 - p is
r + n (1 - 2r).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import torch

from sigtorch._loss_formulas import Loss, formula

CHUNK = 524_288  # elements; smaller ones lose to the cost of starting threads
SMALL = 16_384  # elements; up to here the number of operators is what costs, and the formula has the fewest

Chunk = tuple[Any, ...]
Buffers = list[torch.Tensor]


@functools.cache
def _wake() -> None:
    """On some processors torch 2.14's log1p is several times slower in a thread until that has computed an atanh."""
    torch.atanh(torch.zeros(CHUNK, device="cpu"))


def _chunks(tensors: Chunk, whole_rows: bool) -> Iterator[Chunk]:
    """Views of about CHUNK elements, the same part of every tensor; what is None or one number stays that."""
    like = tensors[0]
    if not whole_rows and all(t.shape == like.shape and t.is_contiguous() for t in tensors if not _is_one(t)):
        tensors = tuple(t if _is_one(t) else t.view(-1) for t in tensors)
        like = tensors[0]
    if like.numel() <= CHUNK or (whole_rows and like.dim() == 1):
        yield tensors
        return
    step = CHUNK // (like.numel() // like.shape[0])
    if step:
        yield from zip(*(repeat(t) if _is_one(t) else t.split(step) for t in tensors), strict=False)
        return
    for part in zip(*(repeat(t) if _is_one(t) else t.unbind() for t in tensors), strict=False):
        yield from _chunks(part, whole_rows)


def _is_one(t: torch.Tensor | None) -> bool:
    return t is None or not t.dim()


def _each(
    loss: Loss, count: int, out: torch.Tensor | None, x: torch.Tensor, target: torch.Tensor, *others: Any
) -> Iterator[Chunk]:
    """Chunks of x and of the target, in the dtype to compute in, of the others and of out; then that many buffers.

    Where out has that dtype, it is the first of the buffers.
    """
    _wake()
    wide, indexed = loss.wide(x), loss.indexed(target)
    target = target.unsqueeze(-1) if indexed else target
    first = [] if out is None or out.dtype != wide else [out]
    count += (x.dtype != wide) + (target.dtype != wide) - len(first)
    if x.numel() <= CHUNK:
        chunks: Iterable[Chunk] = [(x, target, out, *others)]
        size: Any = x.shape
    else:
        chunks = _chunks((x, target, out, *(t if _is_one(t) else t.expand(x.shape) for t in others)), indexed)
        size = max(CHUNK, x.shape[-1] if indexed else 0)
    memory = [x.new_empty(size, dtype=wide) for _ in range(count)]
    buffers = memory
    for x_, t_, out_, *others_ in chunks:
        if buffers and buffers[0].shape != x_.shape:
            buffers = [m[: x_.numel()].view(x_.shape) for m in memory]
        spare = [out_, *buffers] if first else buffers[:]
        t = t_ if t_.dtype == wide else spare.pop()
        if indexed:
            column = (t_ >= 0) & (t_ < x_.shape[-1]) & (t_ != loss.background_index)
            t.zero_().scatter_(-1, torch.where(column, t_, 0), column.to(wide))
        elif t is not t_:
            t.copy_(t_)
        yield x_ if x_.dtype == wide else spare.pop().copy_(x_), t, *others_, out_, spare


def _forward(
    loss: Loss,
    values: Callable[..., Chunk],
    count: int,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Any,
    pos_weight: Any,
    normalizer: Any,
) -> torch.Tensor:
    """Every chunk's values, weighted: written into the result, or summed, the sums of chunks in float64."""
    if x.numel() <= SMALL:
        result = formula(loss, x, target, weight, pos_weight, normalizer)
        if loss.reduction == "none" or math.isfinite(result.item()):  # else a sum in float32 may have overflown
            return result
    out = torch.empty_like(x, dtype=loss.dtype) if loss.reduction == "none" else None
    divisor, total = _divisor(loss, x, normalizer), 0.0
    for x_, t, weight_, pos_weight_, out_, b in _each(loss, count, out, x, target, weight, pos_weight):
        addends = values(loss, x_, t, pos_weight_, b)
        if weight_ is not None:
            addends[0].mul_(weight_)
        if out_ is None:
            total += sum(map(_sum, addends))
            continue
        if divisor is not None:
            addends[0].div_(divisor)
        if addends[0] is not out_:
            out_.copy_(addends[0])
    if out is not None:
        return out
    return x.new_tensor(total / (1 if divisor is None else float(divisor)), dtype=loss.dtype)


def _sum(values: torch.Tensor) -> float:
    total = values.sum().item()
    return total if math.isfinite(total) else values.sum(dtype=torch.float64).item()


def _backward(
    loss: Loss,
    slopes: Callable[..., torch.Tensor],
    count: int,
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Any,
    pos_weight: Any,
    normalizer: Any,
) -> torch.Tensor:
    """Every chunk's slopes, weighted and times the incoming gradient."""
    grad_x, divisor, factor = torch.empty_like(x), _divisor(loss, x, normalizer), 1.0
    if loss.reduction != "none":
        factor, divisor = grad.item() / (1 if divisor is None else float(divisor)), None
    for x_, t, weight_, pos_weight_, grad_, out, b in _each(loss, count, grad_x, x, target, weight, pos_weight, grad):
        slope = slopes(loss, x_, t, pos_weight_, b)
        if weight_ is not None:
            slope.mul_(weight_)
        slope.mul_(grad_ if loss.reduction == "none" else factor)
        if divisor is not None:
            slope.div_(divisor)
        if slope is not out:
            out.copy_(slope)
    return grad_x


def _divisor(loss: Loss, x: torch.Tensor, normalizer: torch.Tensor | None) -> Any:
    if loss.reduction == "mean":
        return x.numel()
    return loss.normalizer if normalizer is None else normalizer


def _near(x: torch.Tensor, a: torch.Tensor, n: torch.Tensor) -> None:
    """Into a and n, which may be one: |x|, sigmoid(-|x|)."""
    torch.abs(x, out=a)
    torch.neg(a, out=n).sigmoid_()


def _beyond(x: torch.Tensor, t: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Into out: 1 - t for a positive x, -t else; both exact for a t of 0 or 1."""
    return torch.gt(x, 0, out=out).sub_(t)


def _signed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """In y's place: y for a positive x, -y else, by the one operator that multiplies by a sign."""
    return torch.ops.aten.leaky_relu_backward.grad_input(y, x, -1, False, grad_input=y)  # type: ignore[no-any-return]


def _between(t: torch.Tensor, smoothing: float, b: Buffers) -> torch.Tensor:
    """Into b[0]: the value at t on the line from b[0] to b[1], both ends exact; smoothing moves it to the middle."""
    if smoothing:
        torch.add(b[0], b[1], out=b[2]).mul_(smoothing / 2)
    torch.lerp(b[0], b[1], t, out=b[0])
    return b[0].mul_(1 - smoothing).add_(b[2]) if smoothing else b[0]


def _bce_values(loss: Loss, x: torch.Tensor, t: torch.Tensor, pos_weight: Any, b: Buffers) -> tuple[torch.Tensor, ...]:
    _near(x, b[2], b[2])
    b[2].neg_().log1p_()
    torch.clamp_min(x, 0, out=b[0]).sub_(b[2])  # softplus(x)
    torch.neg(x, out=b[1]).clamp_min_(0).sub_(b[2])  # softplus(-x)
    if pos_weight is not None:
        b[1].mul_(pos_weight)
    # Not on a line between them, for one may be infinite.
    keep, least = 1 - loss.label_smoothing, loss.label_smoothing / 2
    b[0].mul_(torch.sub(t.new_ones(()), t, out=b[2]).mul_(keep).add_(least))
    return (b[0].addcmul_(b[1], torch.mul(t, keep, out=b[2]).add_(least)),)


def _bce_addends(loss: Loss, x: torch.Tensor, t: torch.Tensor, _: Any, b: Buffers) -> tuple[torch.Tensor, ...]:
    """Tensors whose sum is that of the values: every four logarithms are one, of the product of their arguments."""
    _near(x, b[0], b[0])
    n, one = b[0].view(-1), b[0].new_ones(())
    for _ in range(2):  # 1 - n is (1 - u) (1 - v); more of them would leave too little of it
        half = (n.numel() + 1) // 2
        u, v = n[: n.numel() - half], n[half:]
        torch.lerp(u, one, v, out=u)
        n = n[:half]
    return _beyond(x, t, b[1]).mul_(x), n.neg_().log1p_().neg_()


def _bce_slopes(loss: Loss, x: torch.Tensor, t: torch.Tensor, pos_weight: Any, b: Buffers) -> torch.Tensor:
    torch.sigmoid(x, out=b[0])
    torch.neg(x, out=b[1]).sigmoid_().neg_()
    if pos_weight is not None:
        b[1].mul_(pos_weight)
    return _between(t, loss.label_smoothing, b)


def _focal_share(x: torch.Tensor, t: torch.Tensor, b: Buffers) -> None:
    """Into the buffers: n, r, |x|, 1 - 2r and 1 - p."""
    n, r, a, w, q = b
    _signed(x, _beyond(x, t, r))
    _near(x, a, n)
    torch.sub(r.new_ones(()), r, alpha=2, out=w)
    torch.addcmul(r, n, w, out=q)


def _focal_factor(loss: Loss, t: torch.Tensor, q: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
    """The power q ** gamma times the share of alpha, in q's place."""
    q.pow_(loss.gamma)
    if loss.alpha >= 0:
        q.mul_(torch.sub(t.new_ones(()), t, out=spare).mul_(1 - loss.alpha).add_(t, alpha=loss.alpha))
    return q


def _focal_values(loss: Loss, x: torch.Tensor, t: torch.Tensor, _: Any, b: Buffers) -> tuple[torch.Tensor, ...]:
    n, r, a, q = b
    _focal_share(x, t, [n, r, a, q, q])
    torch.addcmul(n.neg_().log1p_(), a, r, value=-1, out=n)  # the cross-entropy's negative
    return (n.mul_(_focal_factor(loss, t, q, r)).neg_(),)


def _focal_slopes(loss: Loss, x: torch.Tensor, t: torch.Tensor, _: Any, b: Buffers) -> torch.Tensor:
    """sign(x) (r - n - gamma (1 - 2r) n (1 - n) cross_entropy / q) q ** gamma, with q = 1 - p."""
    slope, n, r, a, w, q = b
    _focal_share(x, t, [n, r, a, w, q])
    torch.addcmul(n, n, n, value=-1, out=slope).mul_(w)
    torch.addcmul(torch.neg(n, out=w).log1p_(), a, r, value=-1, out=w)  # the cross-entropy's negative
    slope.mul_(w)
    # Not 0 / 0: where q is 0 to the last bit, so is the loss.
    torch.addcdiv(r.sub_(n), slope, q.add_(torch.finfo(q.dtype).tiny), value=loss.gamma, out=slope)
    return _signed(x, slope).mul_(_focal_factor(loss, t, q, r))


def binary_cross_entropy_with_logits_forward(
    loss: Loss, x: torch.Tensor, target: torch.Tensor, weight: Any, pos_weight: Any, normalizer: Any
) -> torch.Tensor:
    plain = loss.reduction != "none" and not loss.label_smoothing and weight is None and pos_weight is None
    values, count = (_bce_addends, 2) if plain else (_bce_values, 3)
    return _forward(loss, values, count, x, target, weight, pos_weight, normalizer)


def binary_cross_entropy_with_logits_backward(
    loss: Loss, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None
) -> torch.Tensor:
    return _backward(loss, _bce_slopes, 3 if loss.label_smoothing else 2, grad, x, target, *others)


def sigmoid_focal_loss_forward(
    loss: Loss, x: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None
) -> torch.Tensor:
    return _forward(loss, _focal_values, 4, x, target, *others)


def sigmoid_focal_loss_backward(
    loss: Loss, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None
) -> torch.Tensor:
    return _backward(loss, _focal_slopes, 6, grad, x, target, *others)
