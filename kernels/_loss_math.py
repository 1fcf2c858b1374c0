"""Scalar functions of the losses: gradient and loss of one logit, how a target is read, and what a pass returns.

A loss is one function of a logit x and its target t, with the loss' own operands, that returns the gradient and the loss.
t weighs the positive class, 1 - t the negative one. With e = exp(-|x|), no sum cancels for t in [0, 1]. A pass that needs one
of the two drops the other, and the compiler all that led there.
"""

import triton
import triton.language as tl

from sigtorch.kernels._math import (
    exact_sigmoid_and_complement,
    exp2,
    exp_neg,
    fma,
    log1p,
    minus_log1m,
    reciprocal,
)

SMALL = tl.constexpr(2.0**-126)  # the smallest normal float32


# What a pass returns. Operands: incoming gradient, divisor, logit, four of the target, weight, and those of the loss alone.


@triton.jit
def value(grad, divisor, x, target, column, background, classes, weight, operands, LOSS, TARGET, PRECISE: tl.constexpr):
    """Returns the loss, weighted and divided."""
    t = TARGET(target, column, background, classes).to(x.dtype)
    _, loss = LOSS(x, t, *operands, PRECISE=PRECISE)
    return weight * (1.0 / divisor) * loss


@triton.jit
def gradient(
    grad, divisor, x, target, column, background, classes, weight, operands, LOSS, TARGET, PRECISE: tl.constexpr
):
    """Returns the gradient of x, weighted and divided, times the incoming one."""
    t = TARGET(target, column, background, classes).to(x.dtype)
    slope, _ = LOSS(x, t, *operands, PRECISE=PRECISE)
    return grad * (1.0 / divisor) * weight * slope


@triton.jit
def gradient_and_value(
    grad, divisor, x, target, column, background, classes, weight, operands, LOSS, TARGET, PRECISE: tl.constexpr
):
    """Returns the gradient of x, weighted and divided, and the loss, weighted but not divided: its sum is."""
    t = TARGET(target, column, background, classes).to(x.dtype)
    slope, loss = LOSS(x, t, *operands, PRECISE=PRECISE)
    return (1.0 / divisor) * weight * slope, weight * loss


@triton.jit
def terms(grad, divisor, x, target, column, background, classes, weight, operands, LOSS, TARGET, PRECISE: tl.constexpr):
    """Returns what LOSS sums up: a tuple, of a loss whose gradient needs all sums."""
    t = TARGET(target, column, background, classes).to(x.dtype)
    return LOSS(x, t, *operands, PRECISE=PRECISE)


# How a target is read. column is the index of x among the classes. Only a class index uses the last three.


@triton.jit
def dense(target, column, background, classes):
    return target


@triton.jit
def mask(target, column, background, classes):
    """Returns a uint8 target that is 0 or 1; any other gives NaN."""
    return tl.where(target <= 1, target, float("nan"))


@triton.jit
def class_index(target, column, background, classes):
    """Returns 1 in the column that a class index names, else 0; background and ``classes`` name none, others give NaN."""
    t = tl.where((target == column) & (target != background), 1.0, 0.0)
    known = ((target >= 0) & (target <= classes)) | (target == background)
    return tl.where(known, t, float("nan"))


# The losses.


@triton.jit
def _smoothed(t, keep):
    """Returns t with label smoothing 1 - keep."""
    return fma(t, keep, 0.5 * (1.0 - keep))


@triton.jit
def bce(x, t, pos_weight, keep, PRECISE: tl.constexpr):
    """Returns the gradient and the loss, positive * softplus(-x) + negative * softplus(x).

    keep is 1 minus the label smoothing, and keep = 1 compiles away.
    """
    e = exp_neg(tl.abs(x), PRECISE)
    negative = 1.0 - t
    if t.dtype == tl.float64:  # noqa: SIM114, Triton's `or` is of two constexprs or of two tensors
        t, negative = _smoothed(t, keep), _smoothed(negative, keep)
    elif keep != 1.0:
        t, negative = _smoothed(t, keep), _smoothed(negative, keep)
    positive = pos_weight * t
    far = tl.where(x >= 0, negative, positive) * tl.abs(x)
    slope = tl.where(x >= 0, fma(-positive, e, negative), fma(negative, e, -positive))
    return slope * reciprocal(1.0 + e), fma(positive + negative, log1p(e), far)


@triton.jit
def focal(x, t, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    """Returns the gradient and the loss, (pos * t + neg * (1 - t)) * q ** gamma * bce with q = t * (1 - s) + (1 - t) * s.

    In the gradient, q' = (1 - 2t) * s * (1 - s), and bce' is the slope.
    """
    e = exp_neg(tl.abs(x), PRECISE)
    r = reciprocal(1.0 + e)
    near = tl.where(x >= 0, t, 1.0 - t)  # the weight of the class that the sign of x predicts
    far = tl.where(x >= 0, 1.0 - t, t)
    sum_ = fma(near, e, far)
    q = sum_ * r
    # sigmoid(x) * sigmoid(-x) / q; e cancels if it is a factor of q.
    ratio = tl.where(far == 0, r, e * r) * reciprocal(tl.where(far == 0, near, sum_))
    near, far, both = _apply_pos_weight(x, near, far, pos_weight)
    cross_entropy = fma(far, tl.abs(x), both * log1p(e))
    slope = tl.where(x >= 0, fma(-near, e, far), fma(near, e, -far)) * r
    slope = fma(gamma * (1.0 - 2.0 * t) * ratio, cross_entropy, slope)
    factor = fma(pos, t, neg * (1.0 - t)) * _signed_power(q, gamma, sign, PRECISE)
    return factor * slope, factor * cross_entropy


@triton.jit
def _apply_pos_weight(x, near, far, pos_weight):
    """Returns the weights near and far with the positive class weighted, and their sum."""
    if pos_weight is None:
        return near, far, 1.0
    else:
        near, far = tl.where(x >= 0, pos_weight * near, near), tl.where(x >= 0, far, pos_weight * far)
        return near, far, near + far


@triton.jit
def quality_focal(x, t, beta, PRECISE: tl.constexpr):
    """Returns the gradient and the loss, |d| ** beta * bce with d = s - t.

    In the gradient, d' = s * (1 - s), and bce' is d.
    """
    d, cross_entropy = bce(x, t, 1, 1, PRECISE)
    s, rest = exact_sigmoid_and_complement(x, PRECISE)
    slope = fma(beta * _ratio(s * rest, d), cross_entropy, d)
    factor = tl.where(d == 0, tl.where(beta == 0, 1.0, 0.0), _power(d, beta, PRECISE))
    return factor * slope, factor * cross_entropy


@triton.jit
def varifocal(x, t, alpha, gamma, PRECISE: tl.constexpr):
    """Returns the gradient and the loss, weight * bce: the weight is t where t > 0, else alpha * s ** gamma.

    The weight has no gradient.
    """
    d, cross_entropy = bce(x, t, 1, 1, PRECISE)
    s, _ = exact_sigmoid_and_complement(x, PRECISE)
    scale = tl.where(t > 0, t, alpha)
    # Before the power, whose branch holds what comes after in registers.
    d *= scale
    cross_entropy *= scale
    power = _power(tl.where(t > 0, 1.0, s), gamma, PRECISE)
    return d * power, cross_entropy * power


@triton.jit
def asymmetric(x, t, gamma_pos, gamma_neg, clip=None, PRECISE: tl.constexpr = True):
    """Returns the gradient and the loss, q ** gamma * (-t * log(s) - (1 - t) * log(1 - m)) with m = max(s - clip, 0).

    q = t * (1 - s) + (1 - t) * m, and gamma is gamma_pos * t + gamma_neg * (1 - t). clip=None is 0.
    """
    s, rest = exact_sigmoid_and_complement(x, PRECISE)
    slope = s * rest
    log_e = log1p(exp_neg(tl.abs(x), PRECISE))
    positive = tl.maximum(-x, 0.0) + log_e  # -log(s), whose slope is -rest
    if clip is None:
        m, rise = s, slope
        negative, negative_slope = tl.maximum(x, 0.0) + log_e, s
    else:
        m, others = tl.maximum(s - clip, 0.0), rest + clip
        rise = tl.where(s > clip, slope, 0.0)
        negative, negative_slope = minus_log1m(m, others), rise * reciprocal(others)
    away = 1.0 - t
    q = fma(t, rest, away * m)
    gamma = fma(gamma_pos, t, gamma_neg * away)
    factor = tl.where(q < 0, float("nan"), _power_of_each(q, gamma, PRECISE))
    cross_entropy = fma(t, positive, away * negative)
    ratio = _ratio(fma(away, rise, -t * slope), q)
    slope = fma(gamma * ratio, cross_entropy, fma(away, negative_slope, -t * rest))
    return factor * slope, factor * cross_entropy


# The dice loss of a row, apart / (apart + 2 * overlap + smooth): each of its sums has terms that do not cancel for t in [0, 1].


@triton.jit
def dice_terms(x, t, PRECISE: tl.constexpr):
    """Returns the terms of apart and of overlap."""
    s, rest = exact_sigmoid_and_complement(x, PRECISE)
    return fma(s, 1.0 - t, rest * t), s * t


@triton.jit
def dice_and_bce_terms(x, t, PRECISE: tl.constexpr):
    """Returns the same, and the binary cross-entropy."""
    apart, overlap = dice_terms(x, t, PRECISE)
    _, cross_entropy = bce(x, t, 1, 1, PRECISE)
    return apart, overlap, cross_entropy


@triton.jit
def dice(x, t, apart, overlap, smooth, bce_share=None, PRECISE: tl.constexpr = True):
    """Returns the gradient of a row's loss, and no loss; bce_share is the weight of an element's binary cross-entropy.

    The loss is 1 - similarity, and similarity is (2 * overlap + smooth) / union.
    """
    s, rest = exact_sigmoid_and_complement(x, PRECISE)
    both = fma(overlap, 2.0, smooth)
    inverse = reciprocal(apart + both)
    slope = s * rest * fma(both, inverse, -2.0 * t) * inverse
    if bce_share is not None:
        d, _ = bce(x, t, 1, 1, PRECISE)
        slope = fma(bce_share, d, slope)
    return slope, 0.0


@triton.jit
def _ratio(part, whole):
    """Returns part / whole; 0 if the whole is so small that its inverse is not finite."""
    if whole.dtype == tl.float64:
        whole = tl.where(tl.abs(whole) < 1e-300, float("inf"), whole)
    else:
        whole = tl.where(tl.abs(whole) < SMALL, float("inf"), whole)
    return part * reciprocal(whole)


@triton.jit
def _signed_power(q, gamma, sign, PRECISE: tl.constexpr):
    """Returns q ** gamma; for a negative q, from a target outside of [0, 1], |q| ** gamma times sign."""
    p = _power(q, gamma, PRECISE)
    return tl.where(q < 0, p * sign, p)


@triton.jit
def _power(q, gamma, PRECISE: tl.constexpr):
    """Returns |q| ** gamma for a gamma that all elements share."""
    if q.dtype == tl.float64:
        p = _power_of_each(q, gamma, PRECISE)
    elif gamma == 2.0:  # all threads take the same branch
        p = q * q
    else:
        p = _power_of_each(q, gamma, PRECISE)
    return p


@triton.jit
def _power_of_each(q, gamma, PRECISE: tl.constexpr):
    """Returns |q| ** gamma for a gamma of each element; a tiny power for q = 0, or 1 if gamma is 0."""
    if q.dtype == tl.float64:
        return tl.exp(gamma * tl.log(tl.maximum(tl.abs(q), 1e-300)))
    else:
        # Mantissa and exponent apart: one approximate log2 of both has too large a relative error at q = 1e-15.
        bits = tl.maximum(tl.abs(q), SMALL).to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) - 127).to(tl.float32)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        high = gamma * exponent
        low = fma(gamma, exponent, -high) + gamma * tl.log2(mantissa)
        return exp2(high) * exp2(low) if PRECISE else exp2(high + low)
