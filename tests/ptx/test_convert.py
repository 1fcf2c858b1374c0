"""Results of conversions and comparisons: against fractions, rounded once, Python's integers and PyTorch's 8-bit floats."""

import math
import operator

import numpy as np
import pytest
import torch
from support.ptx.oracle import exactly
from support.ptx.rows import Row, check, elementwise


def same(a):
    return a


def to_float(code, types, output):
    """From other floats, or from integers, with one rounding."""
    return [Row(f"{code}.{t}", t, output, exactly(same, output)) for t in types.split()]


def to_integer(function, output, of_nan=0):
    """A whole number, clamped to the type's range."""
    bits = int(output[1:])
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if output[0] == "s" else (0, 2**bits - 1)

    def one(value):
        if math.isnan(value):
            return of_nan
        if math.isinf(value):
            return highest if value > 0 else lowest
        return min(max(int(function(float(value))), lowest), highest)

    return np.frompyfunc(one, 1, 1)


def from_integer(name, mode="rn"):
    return lambda a: exactly(same, name, mode)(a.astype(np.float64))


def side_by_side(function):
    """Two operands, the low half first."""
    return lambda a, b: function(np.stack([a, b], 1).ravel())


def narrowed(dtype):
    """Rounds to PyTorch's 8-bit floats, at most the largest."""
    largest = torch.finfo(dtype).max
    return side_by_side(lambda a: torch.from_numpy(a).clamp(-largest, largest).to(dtype).float().numpy())


def widened(dtype):
    """From pairs of PyTorch's 8-bit floats."""
    return lambda a: torch.from_numpy(a.astype(np.uint16).view(np.uint8)).view(dtype).float().numpy()


def extended(bits):
    """The low bits, sign-extended."""
    return elementwise(lambda a: (a & (1 << bits) - 1) - (a >> bits - 1 & 1) * (1 << bits))


FLOATS = [
    *to_float("cvt.rn.f16", "f32 f64", "f16"),
    *to_float("cvt.rn.bf16", "f32", "bf16"),
    *to_float("cvt.rn.f32", "f64", "f32"),
    *to_float("cvt.f32", "f16 bf16", "f32"),
    *to_float("cvt.f64", "f16 f32", "f64"),
    *(Row(f"cvt.{mode}.f16.f32", "f32", "f16", exactly(same, "f16", mode)) for mode in ("rz", "rm", "rp")),
    *(Row(f"cvt.{mode}.f32.f64", "f64", "f32", exactly(same, "f32", mode)) for mode in ("rz", "rm", "rp")),
    Row("cvt.rz.bf16.f32", "f32", "bf16", exactly(same, "bf16", "rz")),
    Row("cvt.rn.relu.f16.f32", "f32", "f16", lambda a: np.where(a < 0, 0, exactly(same, "f16")(a))),
    Row("cvt.ftz.f64.f32", "f32", "f64", lambda a: np.where(np.abs(a) < 2.0**-126, np.copysign(0, a), a)),
    Row("cvt.sat.f32.f32", "f32", "f32", lambda a: np.nan_to_num(np.clip(a, 0, 1))),
    Row("cvt.rni.f32.f32", "f32", "f32", np.rint),
    Row("cvt.rmi.f64.f64", "f64", "f64", np.floor),
    Row("cvt.rn.f32.s32", "s32", "f32", from_integer("f32")),
    Row("cvt.rz.f32.u32", "u32", "f32", from_integer("f32", "rz")),
    Row("cvt.rp.f32.u32", "u32", "f32", from_integer("f32", "rp")),
    Row("cvt.rn.f32.u64", "u64", "f32", lambda a: a.astype(np.uint64).astype(np.float32)),
    Row("cvt.rn.f64.s64", "s64", "f64", lambda a: a.astype(np.float64)),
    Row("cvt.rn.f16.s16", "s16", "f16", from_integer("f16")),
    Row("cvt.rn.f16x2.f32 %d, %b, %a;", "f32 f32", "f16x2", side_by_side(exactly(same, "f16"))),
    Row("cvt.rn.bf16x2.f32 %d, %b, %a;", "f32 f32", "bf16x2", side_by_side(exactly(same, "bf16"))),
    Row("cvt.rn.satfinite.e4m3x2.f32 %d, %b, %a;", "f32 f32", "e4m3x2", narrowed(torch.float8_e4m3fn)),
    Row("cvt.rn.satfinite.e5m2x2.f32 %d, %b, %a;", "f32 f32", "e5m2x2", narrowed(torch.float8_e5m2)),
    Row("cvt.rn.f16x2.e4m3x2", "u16", "f16x2", widened(torch.float8_e4m3fn)),
    Row("cvt.rn.f16x2.e5m2x2", "u16", "f16x2", widened(torch.float8_e5m2)),
]
INTEGERS = [
    Row("cvt.rni.s32.f32", "f32", "s32", to_integer(round, "s32")),
    Row("cvt.rzi.s32.f32", "f32", "s32", to_integer(math.trunc, "s32")),
    Row("cvt.rzi.u32.f32", "f32", "u32", to_integer(math.trunc, "u32")),
    Row("cvt.rmi.s32.f32", "f32", "s32", to_integer(math.floor, "s32")),
    Row("cvt.rpi.s16.f16", "f16", "s16", to_integer(math.ceil, "s16")),
    Row("cvt.rzi.s64.f32", "f32", "s64", to_integer(math.trunc, "s64", of_nan=1 << 63)),
    Row("cvt.rzi.s32.f64", "f64", "s32", to_integer(math.trunc, "s32", of_nan=1 << 31)),
    Row("cvt.s64.s32", "s32", "s64", same),
    Row("cvt.u64.u32", "u32", "u64", same),
    Row("cvt.u16.u32", "u32", "u16", same),
    Row("cvt.s32.s8", "u32", "s32", extended(8)),
    Row("cvt.sat.s16.s32", "s32", "s16", elementwise(lambda a: min(max(a, -(2**15)), 2**15 - 1))),
    Row("cvt.sat.u8.s32", "s32", "u16", elementwise(lambda a: min(max(a, 0), 255))),
]


def compared(comparison, ty, inputs=None):
    """1 or 0, by setp and selp."""
    lines = f"setp.{comparison}.{ty} %p0, %a, %b; selp.b32 %d, 1, 0, %p0;"
    return lines, inputs or f"{ty} {ty}", "u32"


def unordered(function):
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


ORDER = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
TWO = "setp.{0} %p0|%p1, %a, %b; selp.b32 %r0, 1, 0, %p0; selp.b32 %r1, 2, 0, %p1; or.b32 %d, %r0, %r1;"
COMBINED = "setp.ne.s32 %p1, %b, 0; setp.lt.{0}.s32 %p0, %a, %b, %p1; selp.b32 %d, 1, 0, %p0;"
COMPARISONS = [
    *(Row(*compared(name, t), function) for name, function in ORDER.items() for t in ("s32", "u32", "s64", "u16")),
    *(Row(*compared(name, "u32"), function) for name, function in UNSIGNED.items()),
    *(
        Row(*compared(name, t), function)
        for name, function in ORDER.items()
        if name != "ne"
        for t in ("f32", "f64", "f16")
    ),
    *(Row(*compared("ne", t), lambda a, b: (a < b) | (a > b)) for t in ("f32", "bf16")),
    *(Row(*compared(f"{name}u", "f32"), unordered(function)) for name, function in ORDER.items()),
    Row(*compared("nan", "f32"), lambda a, b: np.isnan(a) | np.isnan(b)),
    Row(*compared("num", "f32"), lambda a, b: ~(np.isnan(a) | np.isnan(b))),
    Row(
        *compared("eq.ftz", "f32"),
        lambda a, b: np.where(abs(a) < 2.0**-126, 0, a) == np.where(abs(b) < 2.0**-126, 0, b),
    ),
    Row(TWO.format("gt.s32"), "s32 s32", "u32", elementwise(lambda a, b: 1 if a > b else 2)),
    Row(TWO.format("gt.f16x2"), "f16x2 f16x2", "u32", lambda a, b: (a > b).reshape(-1, 2) @ [1, 2]),
    Row(COMBINED.format("and"), "s32 s32", "u32", lambda a, b: (a < b) & (b != 0)),
    Row(COMBINED.format("or"), "s32 s32", "u32", lambda a, b: (a < b) | (b != 0)),
    Row(COMBINED.format("xor"), "s32 s32", "u32", lambda a, b: (a < b) ^ (b != 0)),
    Row("set.lt.u32.f32", "f32 f32", "u32", lambda a, b: (a < b) * 0xFFFFFFFF),
    Row("set.ge.f32.s32", "s32 s32", "f32", lambda a, b: (a >= b) * 1.0),
    Row("set.lt.f16x2.f16x2", "f16x2 f16x2", "f16x2", lambda a, b: (a < b) * 1.0),
    Row(
        "setp.lt.s32 %p0, %a, %b; selp.b64 %d, %c, 5, !%p0;",
        "s32 s32 u64",
        "u64",
        lambda a, b, c: np.where(a < b, 5, c),
    ),
    Row(
        "setp.lt.s32 %p0, %a, %b; not.pred %p1, %p0; mov.pred %p2, %p1; selp.b32 %d, 1, 0, %p2;",
        "s32 s32",
        "u32",
        operator.ge,
    ),
]


@pytest.mark.parametrize("row", [*FLOATS, *INTEGERS], ids=str)
def test_conversions(row):
    check(row)


@pytest.mark.parametrize("row", COMPARISONS, ids=str)
def test_comparisons(row):
    check(row)
