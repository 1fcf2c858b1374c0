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
