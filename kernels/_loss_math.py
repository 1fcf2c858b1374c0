"""Scalar functions of the losses: what one logit costs against its target, and the gradient of that.

Values are float32 or float64, ``PRECISE`` as in ``_math.py``. A target t is the share of the positive class and 1 - t
that of the negative one; with e = exp(-|x|), every sum here is of terms that do not cancel for shares in [0, 1].
"""

import triton
import triton.language as tl

from sigtorch.kernels._math import exp2, exp_neg, fma, reciprocal

SMALL = tl.constexpr(2.0**-126)  # the smallest normal float32
# Minimax on [0, 1/9], to 5e-9: 2 atanh(y) = y * (2 + z * (C1 + C2 z + C3 z^2 + C4 z^3)) with z = y^2.
C1 = tl.constexpr(0.66666416)
C2 = tl.constexpr(0.40021534)
C3 = tl.constexpr(0.28001678)
C4 = tl.constexpr(0.28012665)


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], relatively exact, which an approximate logarithm of 1 + e is not where e is small."""
    if e.dtype == tl.float64:
        u = 1.0 + e
        return tl.log(u) + (e - (u - 1.0)) / u
    else:
        y = e * reciprocal(2.0 + e)  # log(1 + e) = 2 atanh(e / (2 + e))
        z = y * y
        p = fma(z, fma(z, fma(z, C4, C3), C2), C1)
        return y * fma(z, p, 2.0)


@triton.jit
def _power(q, gamma, sign, PRECISE: tl.constexpr):
    """The power q ** gamma; a target outside of [0, 1] can make q negative, and sign is what that does to the power."""
    if q.dtype == tl.float64:
        p = tl.exp(gamma * tl.log(tl.maximum(tl.abs(q), 1e-300)))
    elif gamma == 2.0:  # a branch all threads take alike
        p = q * q
    else:
        # Mantissa and exponent apart: an approximate log2 of all is relatively too far off at q = 1e-15.
        bits = tl.maximum(tl.abs(q), SMALL).to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) - 127).to(tl.float32)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        high = gamma * exponent
        low = fma(gamma, exponent, -high) + gamma * tl.log2(mantissa)
        p = exp2(high) * exp2(low) if PRECISE else exp2(high + low)
    return tl.where(q < 0, p * sign, p)


@triton.jit
def _share(index, column, background, classes):
    """The target in a column, of a row's class: no class of those there are is background, any other an error."""
    t = tl.where((index == column) & (index != background), 1.0, 0.0)
    known = ((index >= 0) & (index <= classes)) | (index == background)
    return tl.where(known, t, float("nan"))


@triton.jit
def _mask(t):
    """The target of a uint8: 0 or 1, and anything else an error."""
    return tl.where(t <= 1, t, float("nan"))


@triton.jit
def _smoothed(t, keep):
    return fma(t, keep, 0.5 * (1.0 - keep))


@triton.jit
def _shares(t, pos_weight, keep):
    """Of softplus(-x) and softplus(x) in the loss, where smoothing keeps so much of the target; all is no instruction."""
    negative = 1.0 - t
    if t.dtype == tl.float64:  # noqa: SIM114, Triton's `or` is of two constexprs or of two tensors
        t, negative = _smoothed(t, keep), _smoothed(negative, keep)
    elif keep != 1.0:
        t, negative = _smoothed(t, keep), _smoothed(negative, keep)
    return pos_weight * t, negative


@triton.jit
def bce(divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    positive, negative = _shares(t, pos_weight, keep)
    far = tl.where(x >= 0, negative, positive) * tl.abs(x)
    return weight * (1.0 / divisor) * fma(positive + negative, _log1p(e), far)


@triton.jit
def dbce(grad, divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    positive, negative = _shares(t, pos_weight, keep)
    slope = tl.where(x >= 0, fma(-positive, e, negative), fma(negative, e, -positive))
    return grad * (1.0 / divisor) * weight * (slope * reciprocal(1.0 + e))


@triton.jit
def focal(divisor, x, t, weight, pos, neg, gamma, sign, PRECISE: tl.constexpr):
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    near = tl.where(x >= 0, t, 1.0 - t)  # the share of the class that the logit is for
    far = tl.where(x >= 0, 1.0 - t, t)
    q = fma(near, e, far) * reciprocal(1.0 + e)
    cross_entropy = fma(far, tl.abs(x), _log1p(e))
    factor = weight * (1.0 / divisor) * fma(pos, t, neg * (1.0 - t))
    return factor * (_power(q, gamma, sign, PRECISE) * cross_entropy)


@triton.jit
def dfocal(grad, divisor, x, t, weight, pos, neg, gamma, sign, PRECISE: tl.constexpr):
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    r = reciprocal(1.0 + e)
    near = tl.where(x >= 0, t, 1.0 - t)
    far = tl.where(x >= 0, 1.0 - t, t)
    sum_ = fma(near, e, far)
    q = sum_ * r
    cross_entropy = fma(far, tl.abs(x), _log1p(e))
    # sigmoid(x) sigmoid(-x) / q, where e cancels if nothing else is in q.
    ratio = tl.where(far == 0, r, e * r) * reciprocal(tl.where(far == 0, near, sum_))
    slope = tl.where(x >= 0, fma(-near, e, far), fma(near, e, -far)) * r
    slope = fma(gamma * (1.0 - 2.0 * t) * ratio, cross_entropy, slope)
    factor = grad * (1.0 / divisor) * weight * fma(pos, t, neg * (1.0 - t))
    return factor * (_power(q, gamma, sign, PRECISE) * slope)


@triton.jit
def bce_of_mask(divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    return bce(divisor, x, _mask(t), weight, pos_weight, keep, PRECISE)


@triton.jit
def dbce_of_mask(grad, divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    return dbce(grad, divisor, x, _mask(t), weight, pos_weight, keep, PRECISE)


@triton.jit
def focal_of_mask(divisor, x, t, weight, pos, neg, gamma, sign, PRECISE: tl.constexpr):
    return focal(divisor, x, _mask(t), weight, pos, neg, gamma, sign, PRECISE)


@triton.jit
def dfocal_of_mask(grad, divisor, x, t, weight, pos, neg, gamma, sign, PRECISE: tl.constexpr):
    return dfocal(grad, divisor, x, _mask(t), weight, pos, neg, gamma, sign, PRECISE)


@triton.jit
def bce_of_class(divisor, x, index, column, background, classes, weight, pos_weight, keep, PRECISE: tl.constexpr):
    return bce(divisor, x, _share(index, column, background, classes), weight, pos_weight, keep, PRECISE)


@triton.jit
def dbce_of_class(
    grad, divisor, x, index, column, background, classes, weight, pos_weight, keep, PRECISE: tl.constexpr
):
    t = _share(index, column, background, classes)
    return dbce(grad, divisor, x, t, weight, pos_weight, keep, PRECISE)


@triton.jit
def focal_of_class(
    divisor, x, index, column, background, classes, weight, pos, neg, gamma, sign, PRECISE: tl.constexpr
):
    t = _share(index, column, background, classes)
    return focal(divisor, x, t, weight, pos, neg, gamma, sign, PRECISE)


@triton.jit
def dfocal_of_class(
    grad, divisor, x, index, column, background, classes, weight, pos, neg, gamma, sign, PRECISE: tl.constexpr
):
    t = _share(index, column, background, classes)
    return dfocal(grad, divisor, x, t, weight, pos, neg, gamma, sign, PRECISE)
