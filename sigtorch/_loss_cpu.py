"""The losses' passes over CPU tensors: cache-sized chunks, PyTorch's operators, buffers that every chunk uses again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch

from sigtorch._loss_formulas import Loss

CHUNK = 262_144  # elements; smaller ones lose to the cost of starting threads
FAR = 50.0  # where softplus' derivative is 1 in float64 too

Chunk = tuple[Any, ...]
Values = Callable[..., torch.Tensor]


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
    loss: Loss, buffers: int, x: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None
) -> Iterator[Chunk]:
    """Chunks of x and of the target, in the dtype to compute in, and of the others; then the buffers in that shape."""
    wide, indexed = loss.wide(x), loss.indexed(target)
    target = target.unsqueeze(-1) if indexed else target
    size = min(x.numel(), max(CHUNK, x.shape[-1] if indexed else 0))
    memory = torch.empty(buffers + 2, size, dtype=wide)
    for x_, t_, *others_ in _chunks(
        (x, target, *(t if t is None or not t.dim() else t.expand(x.shape) for t in others)), indexed
    ):
        widened, t, *b = (m[: x_.numel()].view(x_.shape) for m in memory)
        if indexed:
            column = (t_ >= 0) & (t_ < x_.shape[-1]) & (t_ != loss.background_index)
            t.zero_().scatter_(-1, torch.where(column, t_, 0), column.to(wide))
        else:
            t = t_ if t_.dtype == wide else t.copy_(t_)
        yield x_ if x_.dtype == wide else widened.copy_(x_), t, *others_, b


def _ends(x: torch.Tensor, pos_weight: torch.Tensor | None, b: list[torch.Tensor]) -> None:
    """Into b[0] and b[1]: the cross-entropy at t = 0 and at t = 1, softplus(x) and softplus(-x)."""
    torch.abs(x, out=b[2])
    torch.ops.aten.log_sigmoid_forward.output(b[2], output=b[2], buffer=b[1])  # -log1p(exp(-|x|))
    torch.clamp_min(x, 0, out=b[0])
    torch.sub(b[0], x, out=b[1])
    b[0].sub_(b[2])
    b[1].sub_(b[2])
    if pos_weight is not None:
        b[1].mul_(pos_weight)


def _between(t: torch.Tensor, smoothing: float, b: list[torch.Tensor]) -> torch.Tensor:
    """Into b[0]: the value at t on the line from b[0] to b[1], both ends exact; smoothing moves it to the middle."""
    if smoothing:
        torch.add(b[0], b[1], out=b[2]).mul_(smoothing / 2)
    torch.lerp(b[0], b[1], t, out=b[0])
    return b[0].mul_(1 - smoothing).add_(b[2]) if smoothing else b[0]


def _forward(loss: Loss, values: Values, buffers: int, divisor: Any, x: torch.Tensor, *others: Any) -> torch.Tensor:
    """Every chunk's values, weighted: written into the result, or summed in float64."""
    out = torch.empty_like(x, dtype=loss.dtype) if loss.reduction == "none" else None
    total = torch.zeros((), dtype=torch.float64)
    for x_, t, weight, other, out_, b in _each(loss, buffers, x, *others, out):
        value = values(loss, x_, t, other, b)
        if weight is not None:
            value.mul_(weight)
        if out_ is not None:
            out_.copy_(value if divisor is None else value.div_(divisor))
            continue
        part = value.sum()
        total += part if part.isfinite() else value.sum(dtype=torch.float64)
    return (total if divisor is None else total / divisor).to(loss.dtype) if out is None else out


def _backward(
    loss: Loss, slopes: Values, buffers: int, divisor: Any, grad: torch.Tensor, x: torch.Tensor, *others: Any
) -> torch.Tensor:
    """Every chunk's slopes, weighted and times the incoming gradient."""
    grad_x = torch.empty_like(x)
    if loss.reduction != "none" and divisor is not None:
        grad, divisor = grad.to(loss.wide(x)) / divisor, None
    for x_, t, weight, other, grad_, out, b in _each(loss, buffers, x, *others, grad, grad_x):
        slope = slopes(loss, x_, t, other, b)
        if weight is not None:
            slope.mul_(weight)
        if divisor is not None:
            slope.div_(divisor)
        if out.dtype == slope.dtype == grad_.dtype:
            torch.mul(slope, grad_, out=out)
        else:
            out.copy_(slope.mul_(grad_))
    return grad_x


def _bce_values(loss: Loss, x: torch.Tensor, t: torch.Tensor, pos_weight: Any, b: list[torch.Tensor]) -> torch.Tensor:
    _ends(x, pos_weight, b)
    return _between(t, loss.label_smoothing, b)


def _bce_slopes(loss: Loss, x: torch.Tensor, t: torch.Tensor, pos_weight: Any, b: list[torch.Tensor]) -> torch.Tensor:
    one = x.new_ones(()).expand(x.shape)
    torch.ops.aten.softplus_backward.grad_input(one, x, 1, FAR, grad_input=b[0])  # sigmoid(x)
    torch.ops.aten.softplus_backward.grad_input(-one, x, -1, FAR, grad_input=b[1])  # -sigmoid(-x)
    if pos_weight is not None:
        b[1].mul_(pos_weight)
    return _between(t, loss.label_smoothing, b)


def _focal_factor(loss: Loss, t: torch.Tensor, q: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
    """The power q ** gamma times the share of alpha, in q's place."""
    q.pow_(loss.gamma)
    if loss.alpha >= 0:
        ends = q.new_tensor([1 - loss.alpha, loss.alpha])
        q.mul_(torch.lerp(ends[0], ends[1], t, out=spare))
    return q


def _focal_values(loss: Loss, x: torch.Tensor, t: torch.Tensor, _: Any, b: list[torch.Tensor]) -> torch.Tensor:
    _ends(x, None, b)
    cross_entropy = _between(t, 0.0, b)
    torch.sigmoid(x, out=b[1])
    torch.neg(x, out=b[2]).sigmoid_()
    torch.lerp(b[1], b[2], t, out=b[1])
    return cross_entropy.mul_(_focal_factor(loss, t, b[1], b[2]))


def _focal_slopes(loss: Loss, x: torch.Tensor, t: torch.Tensor, _: Any, b: list[torch.Tensor]) -> torch.Tensor:
    """With s = sigmoid(x): (gamma (1 - 2t) (s (1-s) / q) cross_entropy + slope of that) q ** gamma."""
    _ends(x, None, b)
    cross_entropy = _between(t, 0.0, b)
    torch.sigmoid(x, out=b[1])
    torch.neg(x, out=b[2]).sigmoid_()
    q = torch.lerp(b[1], b[2], t, out=b[3])
    torch.mul(t, -2 * loss.gamma, out=b[4]).add_(loss.gamma)
    torch.mul(b[1], b[2], out=b[5])
    # Not 0 / 0: where q is 0 to the last bit, so is the loss.
    b[4].mul_(b[5]).div_(torch.add(q, torch.finfo(q.dtype).tiny, out=b[5]))
    cross_entropy.mul_(b[4]).add_(torch.lerp(b[1], b[2].neg_(), t, out=b[1]))
    return cross_entropy.mul_(_focal_factor(loss, t, q, b[5]))


def _divisor(loss: Loss, x: torch.Tensor, normalizer: torch.Tensor | None) -> Any:
    if loss.reduction == "mean":
        return x.numel()
    return loss.normalizer if normalizer is None else normalizer


def binary_cross_entropy_with_logits_forward(
    loss: Loss, x: Any, target: Any, weight: Any, pos_weight: Any
) -> torch.Tensor:
    return _forward(loss, _bce_values, 3, _divisor(loss, x, None), x, target, weight, pos_weight)


def binary_cross_entropy_with_logits_backward(
    loss: Loss, grad: torch.Tensor, x: Any, target: Any, weight: Any, pos_weight: Any
) -> torch.Tensor:
    return _backward(loss, _bce_slopes, 3, _divisor(loss, x, None), grad, x, target, weight, pos_weight)


def sigmoid_focal_loss_forward(loss: Loss, x: Any, target: Any, weight: Any, normalizer: Any) -> torch.Tensor:
    return _forward(loss, _focal_values, 3, _divisor(loss, x, normalizer), x, target, weight, None)


def sigmoid_focal_loss_backward(
    loss: Loss, grad: torch.Tensor, x: Any, target: Any, weight: Any, normalizer: Any
) -> torch.Tensor:
    return _backward(loss, _focal_slopes, 6, _divisor(loss, x, normalizer), grad, x, target, weight, None)
