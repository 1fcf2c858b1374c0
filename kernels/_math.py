"""Scalar functions: the forward and backward formulas of each elementwise operation for one element, for all kernels.

Each function takes float32 or float64 values, and a trailing ``PRECISE``: false if results are rounded to a half type, which
hides the last bits of a float32 exponential.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_HIGH = tl.constexpr(1.4426950216293335)  # float32(log2 e)
LOG2_E_LOW = tl.constexpr(1.9259629911266175e-08)  # log2(e) - LOG2_E_HIGH
LN_2 = tl.constexpr(0.6931471805599453)
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


# Pairs of neighbours in one number, the first in its low bits: bfloat16 in int32, float16 in uint32, float32 in uint64.


@triton.jit
def unpacked(pair):
    """Returns both values of a pair, in float32."""
    if pair.dtype == tl.int32:
        low, high = pair << 16, pair & -65536
    elif pair.dtype == tl.uint32:
        low, high = pair.to(tl.uint16), (pair >> 16).to(tl.uint16)
        low, high = low.to(tl.float16, bitcast=True).to(tl.float32), high.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        low, high = pair.to(tl.uint32), (pair >> 32).to(tl.uint32)
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def packed(low, high, dtype: tl.constexpr):
    """Returns both values as a pair of this dtype, rounded to nearest."""
    if dtype == tl.uint64:
        low, high = low.to(tl.uint32, bitcast=True).to(tl.uint64), high.to(tl.uint32, bitcast=True).to(tl.uint64)
        return low | (high << 32)
    else:
        HALF: tl.constexpr = tl.bfloat16 if dtype == tl.int32 else tl.float16
        low, high = rounded(low, HALF).to(tl.uint16, bitcast=True), rounded(high, HALF).to(tl.uint16, bitcast=True)
        return (low.to(tl.uint32) | (high.to(tl.uint32) << 16)).to(dtype, bitcast=True)


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
def swiglu_variant(gate, up, weight, alpha, offset, PRECISE: tl.constexpr):
    """Returns gate * sigmoid(alpha * gate) * (up + offset) * weight."""
    return gate * sigmoid(alpha * gate, PRECISE) * (up + offset) * weight


@triton.jit
def dswiglu_variant(grad, gate, up, weight, alpha, offset, PRECISE: tl.constexpr):
    """Returns the gradients of gate, up and weight, and the product."""
    if PRECISE:
        s, rest = _sigmoid_and_complement(alpha * gate, PRECISE)
    else:
        s = sigmoid(alpha * gate, PRECISE)
        rest = 1.0 - s
    up += offset
    activated = s * gate  # before alpha, which may make gate infinite
    grad_gate = grad * weight * up * fma(alpha * rest, activated, s)
    return grad_gate, grad * weight * activated, grad * activated * up, activated * up * weight


@triton.jit
def swiglu_clamped(gate, up, weight, alpha, offset, limit, PRECISE: tl.constexpr):
    """Returns swiglu_variant() of gate, at most limit, and up, between -limit and limit."""
    gate, up = _clamped(gate, up, limit)
    return swiglu_variant(gate, up, weight, alpha, offset, PRECISE)


@triton.jit
def dswiglu_clamped(grad, gate, up, weight, alpha, offset, limit, PRECISE: tl.constexpr):
    """Returns the gradients of gate, up and weight, and the product. What is clamped, or NaN, gets a gradient of 0."""
    near_gate, near_up = _clamped(gate, up, limit)
    grad_gate, grad_up, grad_weight, product = dswiglu_variant(grad, near_gate, near_up, weight, alpha, offset, PRECISE)
    return tl.where(gate <= limit, grad_gate, 0.0), tl.where(tl.abs(up) <= limit, grad_up, 0.0), grad_weight, product


@triton.jit
def dswiglu_clamped_from_limit(grad, gate, up, weight, alpha, offset, limit, PRECISE: tl.constexpr):
    """Returns the same; what is at the limit gets 0, too."""
    near_gate, near_up = _clamped(gate, up, limit)
    grad_gate, grad_up, grad_weight, product = dswiglu_variant(grad, near_gate, near_up, weight, alpha, offset, PRECISE)
    return tl.where(gate < limit, grad_gate, 0.0), tl.where(tl.abs(up) < limit, grad_up, 0.0), grad_weight, product


@triton.jit
def _clamped(gate, up, limit):
    near_gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    near_up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
    return near_gate, tl.maximum(near_up, -limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exact_sigmoid_and_complement(x, PRECISE: tl.constexpr):
    """Returns s and 1 - s, each within a few ulp for every x."""
    e = exp_neg(tl.abs(x), PRECISE)
    near = reciprocal(1.0 + e)
    far = e * near
    return tl.where(x < 0, far, near), tl.where(x < 0, near, far)


@triton.jit
def sigmoid_lerp(x, y, gate, PRECISE: tl.constexpr):
    """Returns s * x + (1 - s) * y."""
    s, rest = exact_sigmoid_and_complement(gate, PRECISE)
    return fma(s, x, rest * y)


@triton.jit
def dsigmoid_lerp(grad, x, y, gate, PRECISE: tl.constexpr):
    """Returns the gradients of x, y and gate: grad * s, grad * (1 - s) and grad * (x - y) * s * (1 - s)."""
    s, rest = exact_sigmoid_and_complement(gate, PRECISE)
    grad_x = grad * s
    return grad_x, grad * rest, grad_x * rest * (x - y)


@triton.jit
def log1p(e):
    """Returns log(1 + e) for e in [0, 1], also where e is so small that 1 + e would lose its digits."""
    if e.dtype == tl.float64:
        u = 1.0 + e
        return tl.log(u) + (e - (u - 1.0)) / u
    else:
        return _twice_atanh(e * reciprocal(2.0 + e))


@triton.jit
def _twice_atanh(y):
    """Returns 2 atanh(y) for y in [0, 1/3]."""
    z = y * y
    p = fma(z, fma(z, fma(z, C4, C3), C2), C1)
    return y * fma(z, p, 2.0)


@triton.jit
def minus_log1m(m, rest):
    """Returns -log(1 - m) for m in [0, 1), also where m is so small that rest, which is 1 - m, has lost its digits."""
    if m.dtype == tl.float64:
        return tl.where(m > 0.5, -tl.log(rest), log1p(m / rest))
    else:
        # log2's error is relative to 1. -log(1 - m) = 2 atanh(m / (2 - m)).
        return tl.where(m > 0.5, -LN_2 * tl.log2(rest), _twice_atanh(m * reciprocal(2.0 - m)))


# A pair of a chunk of logits.


@triton.jit
def pair(z, positive, PRECISE: tl.constexpr):
    """Returns the gradient and the loss of a logit: softplus(z), of a positive softplus(-z)."""
    e = exp_neg(tl.abs(z), PRECISE)
    r = reciprocal(1.0 + e)
    y = tl.where(positive, -z, z)
    slope = tl.where(y < 0, e * r, r)
    return tl.where(positive, -slope, slope), tl.maximum(y, 0.0) + log1p(e)
