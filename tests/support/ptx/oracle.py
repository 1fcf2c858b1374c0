"""Oracles for the engine's own tests: results of instructions in Python's integers and fractions, and inputs."""

import decimal
from fractions import Fraction
from math import floor

import numpy as np

from support.ptx.running import NUMBERS, bits_of, bits_type, numbers

# Bits of the significand, and the exponents of the smallest and of the largest normal number
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}


def round_exact(exact, name, mode="rn"):
    """A Fraction, not 0, rounded to a type of floats; the result is a Python float."""
    precision, lowest, highest = FORMATS[name]
    size, sign = abs(exact), 1 if exact > 0 else -1
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    quantum = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    whole = floor(size / quantum)
    rest = size / quantum - whole
    away = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2),
        "rz": False,
        "rm": rest and sign < 0,
        "rp": rest and sign > 0,
    }[mode]
    rounded = (whole + bool(away)) * quantum
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** highest
    if rounded > largest:
        infinite = mode == "rn" or mode == ("rp" if sign > 0 else "rm")
        return sign * (float("inf") if infinite else float(largest))
    return sign * float(rounded)


def exactly(function, name, mode="rn"):
    """An oracle: ``function`` of floats, without an error but for one rounding to the type ``name``."""

    def one(*values):
        if all(np.isfinite(values)):
            exact = function(*map(Fraction, map(float, values)))
            return round_exact(exact, name, mode) if exact else zero(*values)
        return float(function(*map(np.float64, values)))

    def zero(*values):
        """Returns a zero with its sign, which depends on the mode where numbers cancel."""
        rounding = decimal.ROUND_FLOOR if mode == "rm" else decimal.ROUND_HALF_EVEN
        with decimal.localcontext(decimal.Context(prec=2000, rounding=rounding)):
            return float(function(*map(decimal.Decimal, map(float, values))))

    def oracle(*arrays):
        with np.errstate(all="ignore"):
            return np.array([one(*values) for values in zip(*arrays)])

    return oracle


def _integers(name, random):
    """Every pair of what is special, then whatever."""
    bits = 8 * NUMBERS[name].itemsize
    half, top = 2 ** (bits - 1), 2**bits
    edges = [0, 1, 2, 3, 5, 7, 31, 32, 33, 63, half - 1, half, half + 1, top - 3, top - 2, top - 1]
    rest = [int.from_bytes(random.bytes(bits // 8), "little") >> int(random.integers(bits)) for _ in range(256)]
    return np.array(edges, bits_type(name)), np.array(rest, bits_type(name))


def _floats(name, random):
    precision, lowest, highest = FORMATS[name]
    ulp, tiny, largest = 2.0 ** (1 - precision), 2.0**lowest, (2 - 2.0 ** (1 - precision)) * 2.0**highest
    edges = [0.0, -0.0, 1, -1, 1.5, -2.75, 1 + ulp, 1 - ulp / 2, -3, 0.125, tiny, -tiny * ulp, tiny * (1 - ulp)]
    edges += [largest, -np.inf, np.nan]
    rest = random.standard_normal(256) * 2.0 ** random.integers(-4, 4, 256)
    rest = np.array([round_exact(Fraction(value), name) for value in rest])
    return bits_of(np.array(edges), name), bits_of(rest, name)


def sample(kind, place, seed=0):
    """512 values, as bits, for the operand number ``place``.

    ``kind`` is a type; ``f32~`` are floats of ordinary size only, and ``u32<70`` are small integers.
    """
    random = np.random.default_rng([seed, place])
    name, _, below = kind.rstrip("~").partition("<")
    if below:
        return bits_of(np.tile(random.permutation(int(below)), 512)[:512], name)
    edges, rest = (_floats if name in FORMATS else _integers)(name, random)
    if kind.endswith("~"):
        return np.concatenate([rest, random.permutation(rest)])
    pairs = np.repeat(edges, 16) if place % 2 else np.tile(edges, 16)
    return np.concatenate([random.permutation(pairs) if place == 2 else pairs, rest])


def as_operands(bits, name):
    """Bits as an oracle takes them: floats as numbers, integers as Python's."""
    values = numbers(bits, name)
    return values if name in FORMATS else values.astype(object)
