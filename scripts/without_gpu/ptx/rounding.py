"""Numbers to bits, rounded once, and the exact arithmetic that takes.

Sums and products that double precision cannot hold are kept in two parts, the rounded value and its error.
"""

import numpy as np

from .fault import Fault
from .values import FLOATS, SIGNED, UNSIGNED

MODES = ("rz", "rm", "rp")  # towards zero, down, up; all else is rn, to nearest
_CANONICAL_NAN = np.uint16(0x7FFF)  # of both 16-bit types


def mode_of(modifiers):
    """The rounding mode that an instruction's modifiers name."""
    return next((mode for mode in MODES if mode in modifiers), "rn")


def encode(numbers, ty, mode="rn", error=0.0):
    """``numbers`` + ``error``, rounded to ``ty``, as registers' bits; the elements of a packed type side by side."""
    if not ty.is_float:
        bits = numbers.astype(ty.integer)
    elif ty.element == "bf16":
        bits = _to_bfloat16(numbers, mode)
    else:
        bits = _to_float(numbers, FLOATS[ty.element], mode, error)
    return bits.view(UNSIGNED[ty.width])


def _to_float(numbers, dtype, mode, error):
    rounded = numbers.astype(dtype)
    if mode != "rn":
        excess = np.where(rounded == numbers, -error, rounded.astype(np.float64) - numbers)
        negative = np.signbit(numbers)
        too_high = (excess > 0) & ((mode == "rm") | ((mode == "rz") & ~negative))
        too_low = (excess < 0) & ((mode == "rp") | ((mode == "rz") & negative))
        next_one = np.nextafter(rounded, np.where(excess > 0, -np.inf, np.inf).astype(dtype))
        rounded = np.where(too_high | too_low, next_one, rounded)
    elif dtype is np.float16:
        return np.where(np.isnan(numbers), _CANONICAL_NAN, rounded.view(np.uint16))
    return rounded


def _to_bfloat16(numbers, mode):
    if mode == "rn":
        single = numbers.astype(np.float32)
        if numbers.dtype != np.float32:
            single = to_odd(single, numbers - single)
        return float32_to_bfloat16(single)
    if mode == "rz" and numbers.dtype == np.float32:
        return np.where(np.isnan(numbers), _CANONICAL_NAN, numbers.view(np.uint32) >> 16).astype(np.uint16)
    raise Fault(f"rounding not modelled: {mode}")


def float32_to_bfloat16(numbers):
    """The bits of ``numbers`` rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), _CANONICAL_NAN, rounded)


def to_odd(nearest, error):
    """``nearest`` + ``error`` rounded to odd, so that rounding the result again, to fewer bits, rounds only once."""
    bits = nearest.view(SIGNED[nearest.itemsize])
    step = np.where((error < 0) == np.signbit(nearest), 1, -1).astype(bits.dtype)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(nearest)
    return np.where(inexact, bits + step, bits).view(nearest.dtype)


def two_sum(a, b):
    """The sum, rounded, and what rounding lost (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def two_product(a, b):
    """The product of doubles, rounded, and what rounding lost (Dekker)."""
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    product = a * b
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _split(a):
    """A double in two halves whose products are exact."""
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high


def fma(a, b, c):
    """The value a * b + c, in doubles, such that rounding it to the operands' type is the only rounding."""
    if c.dtype == np.float64:
        return _fma_double(a, b, c)
    product, c = a.astype(np.float64) * b, c.astype(np.float64)  # exact: at most 48 bits
    total = product + c
    if (total.view(np.uint64) & np.uint64(0xFFFFFFF)).all():  # far from a tie of the narrower type
        return total
    return to_odd(*two_sum(product, c))


def _fma_double(a, b, c):
    """Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008."""
    product, product_error = two_product(a, b)
    low, low_error = two_sum(c, product_error)
    high, high_error = two_sum(product, low)
    result = high + to_odd(*two_sum(low_error, high_error))
    return np.where(np.isfinite(result), result, a * b + c)
