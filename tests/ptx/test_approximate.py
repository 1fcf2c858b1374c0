"""Approximate instructions err, within NVIDIA's bounds, and always alike for the same operand."""

import numpy as np
import pytest
from support.ptx.running import bits_of, numbers, run
from without_gpu.ptx.device import Device

# Opcode, type, the function, and the error that the PTX ISA manual allows: in units in the last place from the nearest
# number, relative to the result, or absolute
TABLE = [
    ("ex2.approx", "f32", np.exp2, "ulps", 2),
    ("ex2.approx.ftz", "f32", np.exp2, "ulps", 2),
    ("rcp.approx", "f32", np.reciprocal, "ulps", 1),
    ("div.approx", "f32", np.divide, "ulps", 2),
    ("div.full", "f32", np.divide, "ulps", 2),
    ("rsqrt.approx", "f32", lambda a: 1 / np.sqrt(a), "relative", 2**-22.9),
    ("sqrt.approx", "f32", np.sqrt, "relative", 2**-23),
    ("tanh.approx", "f32", np.tanh, "relative", 2**-11),
    ("lg2.approx", "f32", np.log2, "absolute", 2**-22),  # of operands between 0.5 and 2
    ("sin.approx", "f32", np.sin, "absolute", 2**-20.5),
    ("cos.approx", "f32", np.cos, "absolute", 2**-20.5),
    ("ex2.approx", "f16", np.exp2, "relative", 2**-9.9),
    ("ex2.approx.ftz", "bf16", np.exp2, "relative", 2**-7),
    ("tanh.approx", "f16", np.tanh, "absolute", 2**-10.987),
    ("tanh.approx", "bf16", np.tanh, "absolute", 2**-8),
    ("rsqrt.approx", "f64", lambda a: 1 / np.sqrt(a), "relative", 2**-52),
]
every_row = pytest.mark.parametrize(
    ("opcode", "ty", "function", "unit", "bound"), TABLE, ids=[f"{row[0]}.{row[1]}" for row in TABLE]
)


def operands(opcode, ty):
    values = np.random.default_rng(0).uniform(0.5, 2, (2, 4096))
    bits = [bits_of(row, ty) for row in values]
    return bits if opcode.startswith("div") else bits[:1]


def result(opcode, ty, bits, **options):
    places = ", ".join(f"%{name}" for name in "ab"[: len(bits)])
    device = Device(**options)
    return numbers(run(f"{opcode}.{ty} %d, {places};", bits, bits[0].dtype, device=device), ty).astype(np.float64)


@every_row
def test_errors_reach_into_the_bounds(opcode, ty, function, unit, bound):
    bits = operands(opcode, ty)
    exact = function(*[numbers(b, ty).astype(np.float64) for b in bits])
    given = result(opcode, ty, bits)
    if unit == "ulps":
        nearest = exact.astype(np.float32)
        share = np.abs(given - nearest) / np.spacing(np.abs(nearest)) / bound
    else:
        share = np.abs(given - exact) / (bound * np.abs(exact) if unit == "relative" else bound)
    assert share.max() <= 1
    assert share.max() > 0.4  # no bound is there for nothing


@every_row
def test_errors_are_alike_for_the_same_operand(opcode, ty, function, unit, bound):
    bits = operands(opcode, ty)
    forward, backward = result(opcode, ty, bits), result(opcode, ty, [b[::-1] for b in bits])
    np.testing.assert_array_equal(forward, backward[::-1])


@pytest.mark.parametrize("opcode", ["ex2.approx", "rcp.approx", "lg2.approx"])
def test_errors_can_be_chosen(opcode):
    bits = operands(opcode, "f32")
    function = {"ex2.approx": np.exp2, "rcp.approx": np.reciprocal, "lg2.approx": np.log2}[opcode]
    exact = function(bits[0].view(np.float32).astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(result(opcode, "f32", bits, ulps=0), exact)
    assert (result(opcode, "f32", bits, seed=1) != result(opcode, "f32", bits, seed=2)).any()


@pytest.mark.parametrize(("opcode", "function"), [("ex2.approx", np.exp2), ("rcp.approx", np.reciprocal)])
def test_powers_of_two_are_exact(opcode, function):
    whole = np.arange(-64, 64, dtype=np.float32)
    given = whole if opcode == "ex2.approx" else np.exp2(whole)
    np.testing.assert_array_equal(result(opcode, "f32", [given.view(np.uint32)]), function(given))


def test_the_high_half_of_a_double():
    bits = operands("rcp", "f64")
    given = run("rcp.approx.ftz.f64 %d, %a;", bits, np.uint64)
    assert not (given & np.uint64(0xFFFFFFFF)).any()
    np.testing.assert_allclose(given.view(np.float64), 1 / bits[0].view(np.float64), rtol=2.0**-20)


@pytest.mark.parametrize("opcode", ["div.approx", "div.full"])
def test_a_large_divisor(opcode):
    """Between 2^126 and 2^128 div.approx gives zero, div.full does not."""
    a, b = np.full(128, 2.0**100, np.float32), np.full(128, 2.0**127, np.float32)
    given = run(f"{opcode}.f32 %d, %a, %b;", [a.view(np.uint32), b.view(np.uint32)], np.float32)
    assert given[0] == (0 if opcode == "div.approx" else 2.0**-27)
