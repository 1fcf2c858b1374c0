"""Scalar pairs: what one element costs, forward and backward, written once for every kernel.

Each function takes float32 or float64 values and a trailing ``PRECISE``: false where the values came from a half type,
whose rounding hides the last bits of a float32 exponential; true where those bits are part of the result.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_HIGH = tl.constexpr(1.4426950216293335)  # float32(log2 e)
LOG2_E_LOW = tl.constexpr(1.9259629911266175e-08)  # what that leaves over
LN_2 = tl.constexpr(0.6931471805599453)
SMALL = tl.constexpr(2.0**-126)  # the smallest normal float32
# Minimax on [0, 1/9], to 5e-9: 2 atanh(y) = y * (2 + z * (C1 + C2 z + C3 z^2 + C4 z^3)) with z = y^2.
C1 = tl.constexpr(0.66666416)
C2 = tl.constexpr(0.40021534)
C3 = tl.constexpr(0.28001678)
C4 = tl.constexpr(0.28012665)
FAR = tl.constexpr(200.0)  # exp(-200) is 0 and exp(200) inf in float32: nothing beyond changes a result

if triton.knobs.runtime.interpret:  # the interpreter takes no inline assembly

    @triton.jit
    def exp2(x):
        return tl.exp2(x)

    @triton.jit
    def reciprocal(x):
        return 1.0 / x

    @triton.jit
    def fma(x, y, z):
        """With one rounding, which Triton 3.4's interpreter does not give: float64 holds a product of float32 exactly."""
        if x.dtype == tl.float32:
            return (x.to(tl.float64) * y + z).to(tl.float32)
        else:
            return tl.fma(x, y, z)

    @triton.jit
    def widened(x, WIDE: tl.constexpr):
        return x.to(WIDE)

    @triton.jit
    def rounded(x, dtype: tl.constexpr):
        """x.to(dtype), to the nearest: the interpreter itself truncates to bfloat16."""
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = tl.where(x == x, nearest.to(tl.uint32).to(tl.float32, bitcast=True), x)
        return x.to(dtype)

else:
    fma = tl.fma

    @triton.jit
    def exp2(x):
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def reciprocal(x):
        if x.dtype == tl.float64:
            return 1.0 / x
        else:
            return tl.inline_asm_elementwise(
                "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )

    @triton.jit
    def widened(x, WIDE: tl.constexpr):
        """x.to(WIDE); two instructions a pair of bfloat16, where the compiler's cast takes three."""
        if x.dtype == tl.bfloat16:  # never beside float64
            return tl.inline_asm_elementwise(
                "{ .reg .b32 low, high; shl.b32 low, $2, 16; and.b32 high, $2, 0xffff0000;"
                " mov.b32 $0, low; mov.b32 $1, high; }",
                "=f,=f,r",
                [x],
                dtype=tl.float32,
                is_pure=True,
                pack=2,
            )
        else:
            return x.to(WIDE)

    @triton.jit
    def rounded(x, dtype: tl.constexpr):
        """x.to(dtype), to the nearest."""
        return x.to(dtype)


@triton.jit
def exp_neg(x, PRECISE: tl.constexpr):
    """exp(-x); where PRECISE, within a few ulp all the way down: one float32 log2(e) would be 63 ulp off at x = 87."""
    if x.dtype == tl.float64:
        return tl.exp(-x)
    elif PRECISE:
        # Finite from here on: inf - inf in the remainder would be NaN.
        x = tl.clamp(x, -FAR, FAR, propagate_nan=tl.PropagateNan.ALL)
        high = x * -LOG2_E_HIGH
        rest = fma(x, -LOG2_E_HIGH, -high)
        rest = fma(x, -LOG2_E_LOW, rest)
        # Adding rest to high before exp2 would round it away again.
        return exp2(high) * fma(rest, LN_2, 1.0)
    else:
        return exp2(x * -LOG2_E)


@triton.jit
def sigmoid(x, PRECISE: tl.constexpr):
    return reciprocal(1.0 + exp_neg(x, PRECISE))


@triton.jit
def dsigmoid_from_output(grad, s, PRECISE: tl.constexpr):
    """Gives grad * s * (1 - s), from the s that forward computed."""
    return grad * fma(-s, s, s)


@triton.jit
def dsigmoid_from_input(grad, x, PRECISE: tl.constexpr):
    """Gives grad * e / (1 + e)^2 with e = exp(-|x|): no difference of nearly equal numbers anywhere."""
    e = exp_neg(tl.abs(x), PRECISE)
    r = reciprocal(1.0 + e)
    return grad * (e * r * r)


@triton.jit
def _sigmoid_and_rest(x, PRECISE: tl.constexpr):
    """Gives s and 1 - s, without a difference, for their product: below x = -88 both are 0."""
    e = exp_neg(x, PRECISE)
    s = reciprocal(1.0 + e)
    return s, tl.minimum(e, 3.4e38) * s  # inf * 0 would be NaN


@triton.jit
def sigmoid_gate(x, gate, PRECISE: tl.constexpr):
    return sigmoid(gate, PRECISE) * x


@triton.jit
def sigmoid_gate_residual(x, gate, residual, PRECISE: tl.constexpr):
    return fma(sigmoid(gate, PRECISE), x, residual)


@triton.jit
def dsigmoid_gate(grad, x, gate, PRECISE: tl.constexpr):
    """Gradients of x and gate."""
    s, rest = _sigmoid_and_rest(gate, PRECISE)
    grad_x = grad * s
    return grad_x, grad_x * x * rest


@triton.jit
def swiglu(gate, up, PRECISE: tl.constexpr):
    return gate * sigmoid(gate, PRECISE) * up


@triton.jit
def dswiglu(grad, gate, up, PRECISE: tl.constexpr):
    """Gradients of gate and up; silu' = s + gate * s * (1 - s) = s * (1 + gate * (1 - s))."""
    if PRECISE:
        s, rest = _sigmoid_and_rest(gate, PRECISE)
    else:
        s = sigmoid(gate, PRECISE)
        rest = 1.0 - s  # what cancels here is nothing beside the 1 below, once that is rounded to a half type
    grad_s = grad * s
    return grad_s * up * fma(gate, rest, 1.0), grad_s * gate


@triton.jit
def _both_sides(x, PRECISE: tl.constexpr):
    """Gives s and 1 - s, each exact to its last bits for every x."""
    e = exp_neg(tl.abs(x), PRECISE)
    near = reciprocal(1.0 + e)
    far = e * near
    return tl.where(x < 0, far, near), tl.where(x < 0, near, far)


@triton.jit
def sigmoid_lerp(x, y, gate, PRECISE: tl.constexpr):
    s, rest = _both_sides(gate, PRECISE)
    return fma(s, x, rest * y)


@triton.jit
def dsigmoid_lerp(grad, x, y, gate, PRECISE: tl.constexpr):
    """Gradients of x, y and gate."""
    s, rest = _both_sides(gate, PRECISE)
    grad_x = grad * s
    return grad_x, grad * rest, grad_x * rest * (x - y)


# The losses: what one logit costs against its target, and the gradient of that. A target t is the share of the positive
# class and 1 - t that of the negative one; with e = exp(-|x|), every sum is of terms that do not cancel for t in [0, 1].


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
    """Weights of softplus(-x) and softplus(x); keep is what smoothing leaves of the target, and 1 compiles to nothing."""
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
def _counted(x, near, far, pos_weight):
    """The shares in the cross-entropy, where the positive class may count for more, and their sum."""
    if pos_weight is None:
        return near, far, 1.0
    else:
        near, far = tl.where(x >= 0, pos_weight * near, near), tl.where(x >= 0, far, pos_weight * far)
        return near, far, near + far


@triton.jit
def focal(divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    near = tl.where(x >= 0, t, 1.0 - t)  # the share of the class that the logit is for
    far = tl.where(x >= 0, 1.0 - t, t)
    q = fma(near, e, far) * reciprocal(1.0 + e)
    near, far, all = _counted(x, near, far, pos_weight)
    cross_entropy = fma(far, tl.abs(x), all * _log1p(e))
    factor = weight * (1.0 / divisor) * fma(pos, t, neg * (1.0 - t))
    return factor * (_power(q, gamma, sign, PRECISE) * cross_entropy)


@triton.jit
def dfocal(grad, divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    r = reciprocal(1.0 + e)
    near = tl.where(x >= 0, t, 1.0 - t)
    far = tl.where(x >= 0, 1.0 - t, t)
    sum_ = fma(near, e, far)
    q = sum_ * r
    # sigmoid(x) sigmoid(-x) / q, where e cancels if nothing else is in q.
    ratio = tl.where(far == 0, r, e * r) * reciprocal(tl.where(far == 0, near, sum_))
    near, far, all = _counted(x, near, far, pos_weight)
    cross_entropy = fma(far, tl.abs(x), all * _log1p(e))
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
def focal_of_mask(divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    return focal(divisor, x, _mask(t), weight, pos, neg, gamma, sign, pos_weight, PRECISE)


@triton.jit
def dfocal_of_mask(grad, divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    return dfocal(grad, divisor, x, _mask(t), weight, pos, neg, gamma, sign, pos_weight, PRECISE)


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
    divisor, x, index, column, background, classes, weight, pos, neg, gamma, sign, pos_weight=None,
    PRECISE: tl.constexpr = True,
):  # fmt: skip
    t = _share(index, column, background, classes)
    return focal(divisor, x, t, weight, pos, neg, gamma, sign, pos_weight, PRECISE)


@triton.jit
def dfocal_of_class(
    grad, divisor, x, index, column, background, classes, weight, pos, neg, gamma, sign, pos_weight=None,
    PRECISE: tl.constexpr = True,
):  # fmt: skip
    t = _share(index, column, background, classes)
    return dfocal(grad, divisor, x, t, weight, pos, neg, gamma, sign, pos_weight, PRECISE)


# A chunk of logits, all of them negatives; an infinite one marks a positive, which is no pair whatever the scale.


@triton.jit
def _scored(x, scale, bias):
    return tl.where(x == float("-inf"), x, fma(x, tl.cast(scale, x.dtype), bias))


@triton.jit
def negative(x, scale, bias, PRECISE: tl.constexpr):
    z = _scored(x, scale, bias)
    return tl.maximum(z, 0.0) + _log1p(exp_neg(tl.abs(z), PRECISE))


@triton.jit
def dnegative(x, scale, bias, PRECISE: tl.constexpr):
    """The gradient, then the loss."""
    z = _scored(x, scale, bias)
    e = exp_neg(tl.abs(z), PRECISE)
    r = reciprocal(1.0 + e)
    return tl.where(z < 0, e * r, r), tl.maximum(z, 0.0) + _log1p(e)
