"""Exact arithmetic on integers and floats: one rounding, in any mode."""

from functools import reduce

import numpy as np

from ..fault import Fault
from ..rounding import encode, fma, mode_of, two_product, two_sum
from ..values import SIGNED, UNSIGNED, flush
from .table import instruction

ROUNDING = "rn rz rm rp"
MIXED = ("add", "sub", "fma")  # may take a narrower type than they give, as add.f32.bf16


def calculate(machine, ins, active, function, operands=2, exact=None):
    """Write ``function`` of the operands' numbers, rounded and clamped as the instruction says.

    ``function`` is for rounding to nearest. For other modes, ``exact`` takes doubles and gives the result in two parts.
    """
    to, source, modifiers = ins.types[0], ins.types[-1], ins.modifiers
    forms = 2 if ins.name in MIXED else 1
    if len(ins.operands) != operands + 1 or len(ins.types) > forms or ("sat" in modifiers and not to.is_float):
        raise Fault("form not modelled")
    types = [source] if operands == 1 else [source] * (operands - 1) + [to]
    values = [machine.numbers(operand, ty, modifiers) for operand, ty in zip(ins.operands[1:], types, strict=True)]
    mode, error = mode_of(modifiers), 0.0
    if mode == "rn":
        result = function(*values)
    elif exact is None or (operands == 3 and to.element == "f64"):
        raise Fault(f"rounding not modelled: {mode}")
    else:
        result, error = exact(*[value.astype(np.float64) for value in values])
    if "relu" in modifiers:
        result = np.where(np.isnan(result), result, np.clip(result, 0, None)).astype(result.dtype)
    elif "sat" in modifiers:
        result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
    bits = encode(result, to, mode, error)
    machine.write(ins.operands[0], flush(bits, to) if "ftz" in modifiers else bits, active)


def _exact_sum(ins):
    """A sum in two parts. Rounded down, what cancels is -0 (IEEE 754)."""

    def exact(a, b):
        total, error = two_sum(a, b)
        if mode_of(ins.modifiers) == "rm":
            total = np.where((total == 0) & (np.signbit(a) != np.signbit(b)), -0.0, total)
        return total, error

    return exact


@instruction("add", ROUNDING + " ftz sat cc")
def add(machine, ins, active):
    if "cc" in ins.modifiers:
        add_with_carry(machine, ins, active)
    else:
        calculate(machine, ins, active, np.add, exact=_exact_sum(ins))


@instruction("addc", "cc")
def add_with_carry(machine, ins, active):
    a, b = (machine.read(operand, ins.types[0].width) for operand in ins.operands[1:])
    _carry(machine, ins, active, a, b)


def _carry(machine, ins, active, a, b):
    """The sum of two 32-bit words: names that end in c add the carry of the instruction before, .cc sets it."""
    takes, gives = ins.name.endswith("c"), "cc" in ins.modifiers
    if a.itemsize > 4 or (takes and machine.carry is None):
        raise Fault("carry not modelled")
    total = a.astype(np.uint64) + b
    if takes:
        total = total + machine.carry
    if gives:
        before = np.uint64(0) if machine.carry is None else machine.carry
        machine.carry = np.where(active, total >> np.uint64(32), before)
    machine.write(ins.operands[0], total.astype(np.uint32), active)


@instruction("sub", ROUNDING + " ftz sat")
def subtract(machine, ins, active):
    calculate(machine, ins, active, np.subtract, exact=lambda a, b: _exact_sum(ins)(a, -b))


@instruction("mul", ROUNDING + " ftz sat lo hi wide")
def multiply(machine, ins, active):
    def exact(a, b):
        return two_product(a, b) if ins.types[0].element == "f64" else (a * b, 0.0)

    if ins.types[0].is_float:
        calculate(machine, ins, active, np.multiply, exact=exact)
    else:
        machine.write(ins.operands[0], _product(machine, ins), active)


@instruction("mad madc", "lo hi wide cc")
def multiply_and_add(machine, ins, active):
    if ins.types[0].is_float:
        raise Fault("form not modelled")
    product = _product(machine, ins)
    addend = machine.read(ins.operands[3], product.itemsize)
    if "cc" in ins.modifiers or ins.name == "madc":
        _carry(machine, ins, active, product, addend)
    elif "hi" in ins.modifiers:
        raise Fault("form not modelled")
    else:
        machine.write(ins.operands[0], product + addend, active)


def _product(machine, ins):
    """The low half, the high half or all of a product of integers."""
    ty = ins.types[0]
    width = ty.width
    a, b = (machine.numbers(operand, ty) for operand in ins.operands[1:3])
    if "lo" in ins.modifiers:
        return (a * b).view(UNSIGNED[width])
    if width == 8:
        if "hi" not in ins.modifiers:
            raise Fault("form not modelled")
        return _high_word(a.view(np.uint64), b.view(np.uint64), ty.is_signed)
    twice = (SIGNED if ty.is_signed else UNSIGNED)[2 * width]
    product = (a.astype(twice) * b.astype(twice)).view(UNSIGNED[2 * width])
    if "wide" in ins.modifiers:
        return product
    return (product >> product.dtype.type(8 * width)).astype(UNSIGNED[width])


def _high_word(a, b, signed):
    """The high 64 bits of a product of 64-bit words, by halves."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    middle = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    high = (a >> half) * (b >> half) + (middle >> half) + ((a & low) * (b >> half) + (middle & low) >> half)
    if signed:
        zero, sign = np.uint64(0), np.uint64(63)
        high = high - np.where(a >> sign, b, zero) - np.where(b >> sign, a, zero)
    return high


@instruction("fma", ROUNDING + " ftz sat relu")
def multiply_add(machine, ins, active):
    calculate(machine, ins, active, fma, operands=3, exact=lambda a, b, c: _exact_sum(ins)(a * b, c))


@instruction("neg", "ftz")
def negate(machine, ins, active):
    calculate(machine, ins, active, np.negative, operands=1)


@instruction("abs", "ftz")
def absolute(machine, ins, active):
    calculate(machine, ins, active, np.abs, operands=1)


@instruction("copysign")
def copysign(machine, ins, active):
    calculate(machine, ins, active, lambda a, b: np.copysign(b, a))


@instruction("min", "ftz NaN xorsign abs")
def minimum(machine, ins, active):
    _extreme(machine, ins, active, np.minimum, np.fmin, zero_is_negative=True)


@instruction("max", "ftz NaN xorsign abs")
def maximum(machine, ins, active):
    _extreme(machine, ins, active, np.maximum, np.fmax, zero_is_negative=False)


def _extreme(machine, ins, active, with_nan, without_nan, zero_is_negative):
    """``zero_is_negative``: whether -0 or +0 wins where both are there."""
    modifiers, floats = ins.modifiers, ins.types[0].is_float

    def function(*values):
        flip = reduce(np.logical_xor, map(np.signbit, values)) if "xorsign" in modifiers else None
        if "abs" in modifiers:
            values = [np.abs(value) for value in values]
        result = reduce(with_nan if not floats or "NaN" in modifiers else without_nan, values)
        if floats and (result == 0).any():
            wins = [(value == 0) & (np.signbit(value) == zero_is_negative) for value in values]
            negative = reduce(np.logical_or, wins) == zero_is_negative
            result = np.where(result == 0, np.copysign(result, np.where(negative, -1, 1).astype(result.dtype)), result)
        return result if flip is None else np.where(flip, -result, result)

    calculate(machine, ins, active, function, operands=max(2, len(ins.operands) - 1))


@instruction("div", "rn approx full ftz")
def divide(machine, ins, active):
    approximate = ins.modifiers & {"full", "approx"}

    def close(a, b):
        quotient = machine.device.approximation.by_ulps(a.astype(np.float64) / b, 2)
        if "full" in ins.modifiers:
            return quotient
        return np.where((np.abs(b) > 2.0**126) & np.isfinite(b), a * np.float32(0), quotient)

    if not ins.types[0].is_float:
        calculate(machine, ins, active, lambda a, b: _quotient(a, b)[0])
    else:
        calculate(machine, ins, active, close if approximate else np.divide)


@instruction("rem")
def remainder(machine, ins, active):
    calculate(machine, ins, active, lambda a, b: _quotient(a, b)[1])


def _quotient(a, b):
    """The quotient, truncated as in C, and the remainder; by zero all ones and ``a``, as GPUs give."""
    zero = b == 0
    quotient = a // np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "i":
        quotient = quotient + ((a - quotient * b != 0) & ((a < 0) != (b < 0)))
    quotient = np.where(zero, ~np.zeros_like(a), quotient).astype(a.dtype)
    return quotient, np.where(zero, a, a - quotient * b)
