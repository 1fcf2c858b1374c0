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
    def _exp2(x):
        return tl.exp2(x)

    @triton.jit
    def _reciprocal(x):
        return 1.0 / x

else:

    @triton.jit
    def _exp2(x):
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def _reciprocal(x):
        if x.dtype == tl.float64:
            return 1.0 / x
        else:
            return tl.inline_asm_elementwise(
                "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )


@triton.jit
def exp_neg(x, PRECISE: tl.constexpr):
    """exp(-x); where PRECISE, within a few ulp all the way down: one float32 log2(e) would be 63 ulp off at x = 87."""
    if x.dtype == tl.float64:
        return tl.exp(-x)
    elif PRECISE:
        # Finite from here on: inf - inf in the remainder would be NaN.
        x = tl.clamp(x, -FAR, FAR, propagate_nan=tl.PropagateNan.ALL)
        high = x * -LOG2_E_HIGH
        rest = tl.fma(x, -LOG2_E_HIGH, -high)
        rest = tl.fma(x, -LOG2_E_LOW, rest)
        # Adding rest to high before exp2 would round it away again.
        return _exp2(high) * tl.fma(rest, LN_2, 1.0)
    else:
        return _exp2(x * -LOG2_E)


@triton.jit
def sigmoid(x, PRECISE: tl.constexpr):
    return _reciprocal(1.0 + exp_neg(x, PRECISE))


@triton.jit
def dsigmoid_from_output(grad, s, PRECISE: tl.constexpr):
    """grad * s * (1 - s), from the s that forward computed."""
    return grad * tl.fma(-s, s, s)


@triton.jit
def dsigmoid_from_input(grad, x, PRECISE: tl.constexpr):
    """grad * e / (1 + e)^2 with e = exp(-|x|): no difference of nearly equal numbers anywhere."""
    e = exp_neg(tl.abs(x), PRECISE)
    r = _reciprocal(1.0 + e)
    return grad * (e * r * r)
