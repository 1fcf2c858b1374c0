"""Results of instructions on floats: against fractions, rounded once, and NumPy's own floats."""

import numpy as np
import pytest
from support.ptx.oracle import exactly
from support.ptx.rows import Row, check, rows
from support.ptx.running import bits_of, numbers, run


def flushed(function):
    """NumPy's float32 with subnormal operands and results made zeros."""

    def flush(a):
        return np.where(np.abs(a) < 2.0**-126, np.copysign(np.float32(0), a), a)

    return lambda *operands: flush(function(*map(flush, operands)))


def clamped(function):
    """Clamps to [0, 1], and NaN to 0."""
    return lambda *operands: np.nan_to_num(np.clip(function(*operands), 0, 1))


def not_negative(function):
    return lambda *operands: np.maximum(function(*operands), 0)


def propagating(function):
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, function(a, b))


def below_zero_first(a, b):
    """The lesser, -0 before +0, and a number before NaN."""
    lesser = (a < b) | ((a == b) & np.signbit(a)) | np.isnan(b)
    return np.where(lesser, a, b)


def above_zero_first(a, b):
    return -below_zero_first(-a, -b)


def with_product_of_signs(function):
    return lambda a, b: function(np.abs(a), np.abs(b)) * np.sign(a) * np.sign(b)


def add(a, b):
    return a + b


def sub(a, b):
    return a - b


def mul(a, b):
    return a * b


def fma(a, b, c):
    return a * b + c


def in_mode(code, types, operands, function):
    """Exact rows, in every rounding mode; doubles of ordinary size, where the engine's arithmetic is exact."""
    return [
        Row(f"{code}.{mode}.{t}", " ".join([f"{t}~" if t == "f64" else t] * operands), t, exactly(function, t, mode))
        for mode in ("rn", "rz", "rm", "rp")
        for t in types.split()
    ]


FLOATS = [
    *rows("add.{t}", "f16 f32 f64", "{t} {t}", "{t}", add),
    *rows("sub.{t}", "f16 f32 f64", "{t} {t}", "{t}", sub),
    *rows("mul.{t}", "f16 f32 f64", "{t} {t}", "{t}", mul),
    *in_mode("add", "f32 f64", 2, add),
    *in_mode("sub", "f32 f64", 2, sub),
    *in_mode("mul", "f32 f64", 2, mul),
    *in_mode("fma", "f32", 3, fma),
    *(Row(f"fma.rn.{t}", f"{t}~ {t}~ {t}~", t, exactly(fma, t)) for t in ("f16", "bf16", "f64")),
    *(Row(f"{f.__name__}.rn.bf16", "bf16 bf16", "bf16", exactly(f, "bf16")) for f in (add, sub, mul)),
    *(Row(f"fma.rn.relu.{t}", f"{t}~ {t}~ {t}~", t, not_negative(exactly(fma, t))) for t in ("f16", "bf16")),
    Row("fma.rn.f16x2", "f16x2~ f16x2~ f16x2~", "f16x2", exactly(fma, "f16")),
    Row("fma.rn.f32x2", "f32x2~ f32x2~ f32x2~", "f32x2", exactly(fma, "f32")),
    Row("add.rn.bf16x2", "bf16x2 bf16x2", "bf16x2", exactly(add, "bf16")),
    Row("add.f32.bf16", "bf16 f32", "f32", exactly(add, "f32")),
    *(Row(f"{f.__name__}.ftz.f32", "f32 f32", "f32", flushed(f)) for f in (add, sub, mul)),
    *(Row(f"{f.__name__}.sat.f32", "f32 f32", "f32", clamped(f)) for f in (add, sub, mul)),
    Row("fma.rn.ftz.f32", "f32 f32 f32", "f32", flushed(exactly(fma, "f32"))),
    Row("fma.rn.sat.f32", "f32~ f32~ f32~", "f32", clamped(exactly(fma, "f32"))),
    Row("div.rn.ftz.f32", "f32 f32", "f32", flushed(np.divide)),
    Row("rcp.rn.ftz.f32", "f32", "f32", flushed(np.reciprocal)),
    Row("sqrt.rn.ftz.f32", "f32", "f32", flushed(np.sqrt)),
    Row("min.ftz.f32", "f32 f32", "f32", flushed(below_zero_first)),
    Row("max.ftz.f32", "f32 f32", "f32", flushed(above_zero_first)),
    Row("neg.ftz.f32", "f32", "f32", flushed(np.negative)),
    Row("abs.ftz.f32", "f32", "f32", flushed(np.abs)),
    *rows("div.rn.{t}", "f32 f64", "{t} {t}", "{t}", np.divide),
    *rows("rcp.rn.{t}", "f32 f64", "{t}", "{t}", np.reciprocal),
    *rows("sqrt.rn.{t}", "f32 f64", "{t}", "{t}", np.sqrt),
    *rows("min.{t}", "f16 bf16 f32 f64", "{t} {t}", "{t}", below_zero_first),
    *rows("max.{t}", "f16 bf16 f32 f64", "{t} {t}", "{t}", above_zero_first),
    *rows("min.NaN.{t}", "f16 bf16 f32", "{t} {t}", "{t}", propagating(below_zero_first)),
    *rows("max.NaN.{t}", "f16 bf16 f32", "{t} {t}", "{t}", propagating(above_zero_first)),
    Row("min.xorsign.abs.f32", "f32~ f32~", "f32", with_product_of_signs(np.minimum)),
    Row("max.xorsign.abs.f32", "f32~ f32~", "f32", with_product_of_signs(np.maximum)),
    *rows("neg.{t}", "f16 bf16 f32 f64", "{t}", "{t}", np.negative),
    *rows("abs.{t}", "f16 bf16 f32 f64", "{t}", "{t}", np.abs),
    *rows("copysign.{t}", "f32 f64", "{t} {t}", "{t}", lambda a, b: np.copysign(b, a)),
]


@pytest.mark.parametrize("row", FLOATS, ids=str)
def test_floats(row):
    check(row)


def test_a_sum_just_off_a_tie():
    """The sum of 261/256, halfway between two bfloat16, and 2^-30: to float32 first, it would be rounded twice."""
    a, b, c = (bits_of(np.full(128, value), "bf16") for value in (9 / 16, 29 / 16, 2.0**-30))
    given = numbers(run("fma.rn.bf16 %d, %a, %b, %c;", [a, b, c], np.uint16), "bf16")
    assert (given == 262 / 256).all()


def test_maximum_of_three():
    """PTX 8.8, which not every ptxas knows."""
    a, b, c = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)
    given = run("max.f32 %d, %a, %b, %c;", [a, b, c], np.float32, assembled=False)
    np.testing.assert_array_equal(given, np.maximum(np.maximum(a, b), c))
