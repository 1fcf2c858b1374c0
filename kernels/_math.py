"""Scalar functions: the forward and backward formulas of each operation for one element, for all kernels.

Each function takes float32 or float64 values, and a trailing ``PRECISE``: false if results are rounded to a half type, which
hides the last bits of a float32 exponential.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_HIGH = tl.constexpr(1.4426950216293335)  # float32(log2 e)
LOG2_E_LOW = tl.constexpr(1.9259629911266175e-08)  # log2(e) - LOG2_E_HIGH
LN_2 = tl.constexpr(0.6931471805599453)
SMALL = tl.constexpr(2.0**-126)  # the smallest normal float32
# Minimax on [0, 1/9], within 5e-9: 2 atanh(y) = y * (2 + z * (C1 + C2 z + C3 z^2 + C4 z^3)) with z = y^2.
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
        """Returns x * y + z, rounded once: Triton 3.4's interpreter rounds twice, but float64 holds the product exactly."""
        if x.dtype == tl.float32:
            return (x.to(tl.float64) * y + z).to(tl.float32)
        else:
            return tl.fma(x, y, z)

    @triton.jit
    def widened(x, WIDE: tl.constexpr):
        return x.to(WIDE)

    @triton.jit
    def rounded(x, dtype: tl.constexpr):
        """Returns x.to(dtype), rounded to nearest: the interpreter's cast truncates to bfloat16."""
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
        """Returns x.to(WIDE), in two instructions per pair of bfloat16, where the compiler's cast takes three."""
        if x.dtype == tl.bfloat16:  # never beside float64
            return tl.inline_asm_elementwise(
                "{ .reg .b32 low, high; shl.b32 low, $2, 16; and.b32 high, $2, 0xffff0000;"
                " mov.b32 $0, low; mov.b32 $1, high; }",
                "=f,=f,r", [x], dtype=tl.float32, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            return x.to(WIDE)

    @triton.jit
    def rounded(x, dtype: tl.constexpr):
        """Returns x.to(dtype), rounded to nearest."""
        return x.to(dtype)


@triton.jit
def exp_neg(x, PRECISE: tl.constexpr):
    """Returns exp(-x); if PRECISE, within a few ulp for all x: one float32 as log2(e) would be 63 ulp off at x = 87."""
    if x.dtype == tl.float64:
        return tl.exp(-x)
    elif PRECISE:
        # Keeps x finite: inf - inf in the remainder would be NaN.
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
    """Returns grad * s * (1 - s), with s from forward."""
    return grad * fma(-s, s, s)


@triton.jit
def dsigmoid_from_input(grad, x, PRECISE: tl.constexpr):
    """Returns grad * e / (1 + e)^2 with e = exp(-|x|), which has no cancellation."""
    e = exp_neg(tl.abs(x), PRECISE)
    r = reciprocal(1.0 + e)
    return grad * (e * r * r)


@triton.jit
def _sigmoid_and_complement(x, PRECISE: tl.constexpr):
    """Returns s and 1 - s without cancellation, for use in their product: below x = -88 both are 0."""
    e = exp_neg(x, PRECISE)
    s = reciprocal(1.0 + e)
    return s, tl.minimum(e, 3.4e38) * s  # inf * 0 would be NaN


@triton.jit
def sigmoid_gate(x, gate, PRECISE: tl.constexpr):
    """Returns s * x with s = sigmoid(gate)."""
    return sigmoid(gate, PRECISE) * x


@triton.jit
def sigmoid_gate_residual(x, gate, residual, PRECISE: tl.constexpr):
    """Returns residual + s * x."""
    return fma(sigmoid(gate, PRECISE), x, residual)


@triton.jit
def dsigmoid_gate(grad, x, gate, PRECISE: tl.constexpr):
    """Returns the gradients of x and gate: grad * s and grad * x * s * (1 - s)."""
    s, rest = _sigmoid_and_complement(gate, PRECISE)
    grad_x = grad * s
    return grad_x, grad_x * x * rest


@triton.jit
def swiglu(gate, up, PRECISE: tl.constexpr):
    """Returns silu(gate) * up = gate * s * up."""
    return gate * sigmoid(gate, PRECISE) * up


@triton.jit
def dswiglu(grad, gate, up, PRECISE: tl.constexpr):
    """Returns the gradients of gate and up; silu' = s + gate * s * (1 - s) = s * (1 + gate * (1 - s))."""
    if PRECISE:
        s, rest = _sigmoid_and_complement(gate, PRECISE)
    else:
        s = sigmoid(gate, PRECISE)
        rest = 1.0 - s  # cancels, but is then added to 1 and rounded to a half type
    grad_s = grad * s
    return grad_s * up * fma(gate, rest, 1.0), grad_s * gate


@triton.jit
def _exact_sigmoid_and_complement(x, PRECISE: tl.constexpr):
    """Returns s and 1 - s, each within a few ulp for every x."""
    e = exp_neg(tl.abs(x), PRECISE)
    near = reciprocal(1.0 + e)
    far = e * near
    return tl.where(x < 0, far, near), tl.where(x < 0, near, far)


@triton.jit
def sigmoid_lerp(x, y, gate, PRECISE: tl.constexpr):
    """Returns s * x + (1 - s) * y."""
    s, rest = _exact_sigmoid_and_complement(gate, PRECISE)
    return fma(s, x, rest * y)


@triton.jit
def dsigmoid_lerp(grad, x, y, gate, PRECISE: tl.constexpr):
    """Returns the gradients of x, y and gate: grad * s, grad * (1 - s) and grad * (x - y) * s * (1 - s)."""
    s, rest = _exact_sigmoid_and_complement(gate, PRECISE)
    grad_x = grad * s
    return grad_x, grad * rest, grad_x * rest * (x - y)


# The losses of one logit x and its target t, and their gradients. t weighs the positive class, 1 - t the negative one.
# With e = exp(-|x|), no sum cancels for t in [0, 1].


@triton.jit
def _log1p(e):
    """Returns log(1 + e) for e in [0, 1], also where e is so small that 1 + e would lose its digits."""
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
    """Returns q ** gamma; for a negative q, from a target outside of [0, 1], |q| ** gamma times sign."""
    if q.dtype == tl.float64:
        p = tl.exp(gamma * tl.log(tl.maximum(tl.abs(q), 1e-300)))
    elif gamma == 2.0:  # all threads take the same branch
        p = q * q
    else:
        # Mantissa and exponent apart: one approximate log2 of both has too large a relative error at q = 1e-15.
        bits = tl.maximum(tl.abs(q), SMALL).to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) - 127).to(tl.float32)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        high = gamma * exponent
        low = fma(gamma, exponent, -high) + gamma * tl.log2(mantissa)
        p = exp2(high) * exp2(low) if PRECISE else exp2(high + low)
    return tl.where(q < 0, p * sign, p)


@triton.jit
def _target_of_class(index, column, background, classes):
    """Returns 1 in the column that a class index names, else 0; background and ``classes`` name none, others give NaN."""
    t = tl.where((index == column) & (index != background), 1.0, 0.0)
    known = ((index >= 0) & (index <= classes)) | (index == background)
    return tl.where(known, t, float("nan"))


@triton.jit
def _target_of_mask(t):
    """Returns a uint8 target that is 0 or 1; any other gives NaN."""
    return tl.where(t <= 1, t, float("nan"))


@triton.jit
def _smoothed(t, keep):
    """Returns t with label smoothing 1 - keep."""
    return fma(t, keep, 0.5 * (1.0 - keep))


@triton.jit
def _term_weights(t, pos_weight, keep):
    """Returns the weights of softplus(-x) and softplus(x); keep is 1 minus the label smoothing, and keep = 1 compiles away."""
    negative = 1.0 - t
    if t.dtype == tl.float64:  # noqa: SIM114, Triton's `or` is of two constexprs or of two tensors
        t, negative = _smoothed(t, keep), _smoothed(negative, keep)
    elif keep != 1.0:
        t, negative = _smoothed(t, keep), _smoothed(negative, keep)
    return pos_weight * t, negative


@triton.jit
def bce(divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    """Returns weight / divisor * (positive * softplus(-x) + negative * softplus(x))."""
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    positive, negative = _term_weights(t, pos_weight, keep)
    far = tl.where(x >= 0, negative, positive) * tl.abs(x)
    return weight * (1.0 / divisor) * fma(positive + negative, _log1p(e), far)


@triton.jit
def dbce(grad, divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    """Returns grad * weight / divisor * (negative * sigmoid(x) - positive * sigmoid(-x))."""
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    positive, negative = _term_weights(t, pos_weight, keep)
    slope = tl.where(x >= 0, fma(-positive, e, negative), fma(negative, e, -positive))
    return grad * (1.0 / divisor) * weight * (slope * reciprocal(1.0 + e))


@triton.jit
def _apply_pos_weight(x, near, far, pos_weight):
    """Returns the weights near and far with the positive class weighted, and their sum."""
    if pos_weight is None:
        return near, far, 1.0
    else:
        near, far = tl.where(x >= 0, pos_weight * near, near), tl.where(x >= 0, far, pos_weight * far)
        return near, far, near + far


@triton.jit
def focal(divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    """Returns weight / divisor * (pos * t + neg * (1 - t)) * q ** gamma * bce with q = t * (1 - s) + (1 - t) * s."""
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    near = tl.where(x >= 0, t, 1.0 - t)  # the weight of the class that the sign of x predicts
    far = tl.where(x >= 0, 1.0 - t, t)
    q = fma(near, e, far) * reciprocal(1.0 + e)
    near, far, both = _apply_pos_weight(x, near, far, pos_weight)
    cross_entropy = fma(far, tl.abs(x), both * _log1p(e))
    factor = weight * (1.0 / divisor) * fma(pos, t, neg * (1.0 - t))
    return factor * (_power(q, gamma, sign, PRECISE) * cross_entropy)


@triton.jit
def dfocal(grad, divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    """Returns grad times focal's derivative: q' = (1 - 2t) * s * (1 - s), and bce' is the slope."""
    t = t.to(x.dtype)
    e = exp_neg(tl.abs(x), PRECISE)
    r = reciprocal(1.0 + e)
    near = tl.where(x >= 0, t, 1.0 - t)
    far = tl.where(x >= 0, 1.0 - t, t)
    sum_ = fma(near, e, far)
    q = sum_ * r
    # sigmoid(x) * sigmoid(-x) / q; e cancels if it is a factor of q.
    ratio = tl.where(far == 0, r, e * r) * reciprocal(tl.where(far == 0, near, sum_))
    near, far, both = _apply_pos_weight(x, near, far, pos_weight)
    cross_entropy = fma(far, tl.abs(x), both * _log1p(e))
    slope = tl.where(x >= 0, fma(-near, e, far), fma(near, e, -far)) * r
    slope = fma(gamma * (1.0 - 2.0 * t) * ratio, cross_entropy, slope)
    factor = grad * (1.0 / divisor) * weight * fma(pos, t, neg * (1.0 - t))
    return factor * (_power(q, gamma, sign, PRECISE) * slope)


@triton.jit
def bce_of_mask(divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    return bce(divisor, x, _target_of_mask(t), weight, pos_weight, keep, PRECISE)


@triton.jit
def dbce_of_mask(grad, divisor, x, t, weight, pos_weight, keep, PRECISE: tl.constexpr):
    return dbce(grad, divisor, x, _target_of_mask(t), weight, pos_weight, keep, PRECISE)


@triton.jit
def focal_of_mask(divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    return focal(divisor, x, _target_of_mask(t), weight, pos, neg, gamma, sign, pos_weight, PRECISE)


@triton.jit
def dfocal_of_mask(grad, divisor, x, t, weight, pos, neg, gamma, sign, pos_weight=None, PRECISE: tl.constexpr = True):
    return dfocal(grad, divisor, x, _target_of_mask(t), weight, pos, neg, gamma, sign, pos_weight, PRECISE)


@triton.jit
def bce_of_class(divisor, x, index, column, background, classes, weight, pos_weight, keep, PRECISE: tl.constexpr):
    return bce(divisor, x, _target_of_class(index, column, background, classes), weight, pos_weight, keep, PRECISE)


@triton.jit
def dbce_of_class(
    grad, divisor, x, index, column, background, classes, weight, pos_weight, keep, PRECISE: tl.constexpr
):
    t = _target_of_class(index, column, background, classes)
    return dbce(grad, divisor, x, t, weight, pos_weight, keep, PRECISE)


@triton.jit
def focal_of_class(
    divisor, x, index, column, background, classes, weight, pos, neg, gamma, sign, pos_weight=None,
    PRECISE: tl.constexpr = True,
):  # fmt: skip
    t = _target_of_class(index, column, background, classes)
    return focal(divisor, x, t, weight, pos, neg, gamma, sign, pos_weight, PRECISE)


@triton.jit
def dfocal_of_class(
    grad, divisor, x, index, column, background, classes, weight, pos, neg, gamma, sign, pos_weight=None,
    PRECISE: tl.constexpr = True,
):  # fmt: skip
    t = _target_of_class(index, column, background, classes)
    return dfocal(grad, divisor, x, t, weight, pos, neg, gamma, sign, pos_weight, PRECISE)


# A pair of a chunk of logits.


@triton.jit
def pair(z, positive, PRECISE: tl.constexpr):
    """Returns the gradient and the loss of a logit: softplus(z), of a positive softplus(-z)."""
    e = exp_neg(tl.abs(z), PRECISE)
    r = reciprocal(1.0 + e)
    y = tl.where(positive, -z, z)
    slope = tl.where(y < 0, e * r, r)
    return tl.where(positive, -slope, slope), tl.maximum(y, 0.0) + _log1p(e)
