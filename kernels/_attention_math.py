"""Scalar functions of sigmoid attention: weights of scores, and products of tiles."""

import triton
import triton.language as tl

from sigtorch.kernels._math import exp2, reciprocal, rounded

LARGEST = tl.constexpr(126.0)  # an exponent whose power of two is finite, and so is its reciprocal
GROUPS = ((0, 1, 4, 5), (2, 3, 6, 7))


def _grouped_assembly() -> str:
    """Returns 1 / (1 + 2^t) of eight values, by one reciprocal for four of them.

    Four neighbours in one row of a tensor core's result share it, so that a NaN stays in its row: of eight registers, 0, 1, 4
    and 5 are of one row. Exponents stop at 30, for a product of four must be finite: 0f41F00000. ``min`` alone would
    swallow a NaN.
    """
    lines = [".reg .f32 a, b, c, d, p, q, r;"]
    for group in GROUPS:
        for name, i in zip("abcd", group):  # noqa: B905, four of each
            lines.append(f"min.NaN.f32 {name}, ${8 + i}, 0f41F00000; ex2.approx.ftz.f32 {name}, {name};")
            lines.append(f"add.f32 {name}, {name}, 0f3F800000;")
        lines.append("mul.f32 p, a, b; mul.f32 q, c, d; mul.f32 r, p, q; rcp.approx.ftz.f32 r, r;")
        lines.append("mul.f32 q, r, q; mul.f32 p, r, p;")
        for i, (reciprocal_of_pair, other) in zip(group, ("qb", "qa", "pd", "pc")):  # noqa: B905, four of each
            lines.append(f"mul.f32 ${i}, {reciprocal_of_pair}, {other};")
    return "{ " + " ".join(lines) + " }"


GROUPED = tl.constexpr(_grouped_assembly())
GROUPED_REGISTERS = tl.constexpr(",".join(["=f"] * 8 + ["f"] * 8))

if triton.knobs.runtime.interpret:  # which takes no assembly, and multiplies the bits of bfloat16

    def steps(start, stop, step):
        """Counts as tl.range, whose bounds are no numbers to some releases with some of NumPy."""
        while start < stop:
            yield start
            start += step

    @triton.jit
    def grouped_weights(t):
        return reciprocal(1.0 + exp2(tl.minimum(t, 30.0, propagate_nan=tl.PropagateNan.ALL)))

    @triton.jit
    def dot(a, b, c, TF32: tl.constexpr):
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c)

else:
    steps = tl.range

    @triton.jit
    def grouped_weights(t):
        """Returns 1 / (1 + 2^t), within 1.3e-6, and not below 2^-30."""
        return tl.inline_asm_elementwise(GROUPED, GROUPED_REGISTERS, [t], dtype=tl.float32, is_pure=True, pack=8)

    @triton.jit
    def dot(a, b, c, TF32: tl.constexpr):
        return tl.dot(a, b, c, input_precision="tf32" if TF32 else "ieee")


@triton.jit
def weights(t, GROUPED_RECIPROCAL: tl.constexpr):
    """Returns the sigmoid p of -t ln 2, and 1 - p, of which a difference would leave nothing where p is nearly 1."""
    if GROUPED_RECIPROCAL:
        p = grouped_weights(t)
        return p, 1.0 - p
    else:
        e = exp2(tl.minimum(t, LARGEST, propagate_nan=tl.PropagateNan.ALL))
        p = reciprocal(1.0 + e)
        return p, e * p


@triton.jit
def slopes_of_scores(p, rest, slope_of_weight, GROUPED_RECIPROCAL: tl.constexpr):
    """Returns the gradients of scores: sigma' = p (1 - p)."""
    slope = p * slope_of_weight
    if GROUPED_RECIPROCAL:
        return slope - p * slope  # an instruction less than a product with 1 - p
    else:
        return slope * rest


@triton.jit
def product_of_weights(weight, tile, total, TF32: tl.constexpr):
    """Returns total + weight @ tile, with the weights in the tile's dtype."""
    return dot(rounded(weight, tile.dtype), tile, total, TF32)
