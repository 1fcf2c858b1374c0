"""Results of instructions on integers and bits, against Python's own integers."""

import operator

import numpy as np
import pytest
from support.ptx.rows import Row, check, elementwise, rows


def quotient(a, b):
    """C's division; by zero a GPU gives all ones."""
    return (abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)) if b else -1


def remainder(a, b):
    return a - quotient(a, b) * b if b else a


def high_half_of(bits):
    return lambda a, b: a * b >> bits


def shl_of(bits):
    return elementwise(lambda a, count: a << count if count < bits else 0)


def shr_of(bits):
    return elementwise(lambda a, count: a >> min(count, 64))


def field(a, start, length):
    return (a >> start) & ((1 << length) - 1)


def signed_field(a, start, length):
    value = field(a, start, length)
    return value - (1 << length) if length and value >> (length - 1) else value


def leading_zeros_of(bits):
    return elementwise(lambda a: bits - a.bit_length())


def reversed_of(bits):
    return elementwise(lambda a: int(f"{a:0{bits}b}"[::-1], 2))


def permuted(a, b, selector):
    octets = (a | b << 32).to_bytes(8, "little")
    selectors = [selector >> 4 * i & 15 for i in range(4)]
    chosen = [octets[s & 7] for s in selectors]
    return int.from_bytes(bytes(255 * (c >> 7) if s & 8 else c for c, s in zip(chosen, selectors)), "little")


def long_carry(a, b):
    """The carries of (a, a) + (b, b), and the two words of the sum combined."""
    total = (a << 32 | a) + (b << 32 | b)
    return (total >> 64) << 32 | (total ^ total >> 32) & 0xFFFFFFFF


CARRY = """
    mov.b64 {%r0, %r1}, %a;
    mov.b64 {%r2, %r3}, %b;
    add.cc.u32 %r0, %r0, %r2;
    addc.u32 %r1, %r1, %r3;
    mov.b64 %d, {%r0, %r1};
"""
LONG_CARRY = """
    add.cc.u32 %r0, %a, %b;
    addc.cc.u32 %r1, %a, %b;
    addc.u32 %r2, 0, 0;
    xor.b32 %r1, %r1, %r0;
    mov.b64 %d, {%r1, %r2};
"""
WIDE_CARRY = """
    mad.lo.cc.u32 %r0, %a, %b, %c;
    madc.hi.u32 %r1, %a, %b, 7;
    mov.b64 %d, {%r0, %r1};
"""
INTEGER_TYPES = "s16 u16 s32 u32 s64 u64"
INTEGERS = [
    *rows("add.{t}", INTEGER_TYPES, "{t} {t}", "{t}", operator.add),
    *rows("sub.{t}", INTEGER_TYPES, "{t} {t}", "{t}", operator.sub),
    *rows("mul.lo.{t}", INTEGER_TYPES, "{t} {t}", "{t}", operator.mul),
    *rows("mul.hi.{t}", INTEGER_TYPES, "{t} {t}", "{t}", high_half_of),
    *rows("mul.wide.{t}", "s16 u16 s32 u32", "{t} {t}", "{twice}", operator.mul),
    *rows("mad.lo.{t}", "s32 u64", "{t} {t} {t}", "{t}", lambda a, b, c: a * b + c),
    *rows("mad.wide.{t}", "s32 u32", "{t} {t} {twice}", "{twice}", lambda a, b, c: a * b + c),
    *rows("div.{t}", INTEGER_TYPES, "{t} {t}", "{t}", elementwise(quotient)),
    *rows("rem.{t}", INTEGER_TYPES, "{t} {t}", "{t}", elementwise(remainder)),
    *rows("min.{t}", INTEGER_TYPES, "{t} {t}", "{t}", np.minimum),
    *rows("max.{t}", INTEGER_TYPES, "{t} {t}", "{t}", np.maximum),
    *rows("neg.{t}", "s32 s64", "{t}", "{t}", operator.neg),
    *rows("abs.{t}", "s32 s64", "{t}", "{t}", np.abs),
    *rows("and.b{bits}", "u16 u32 u64", "{t} {t}", "{t}", operator.and_),
    *rows("or.b{bits}", "u16 u32 u64", "{t} {t}", "{t}", operator.or_),
    *rows("xor.b{bits}", "u16 u32 u64", "{t} {t}", "{t}", operator.xor),
    *rows("not.b{bits}", "u16 u32 u64", "{t}", "{t}", operator.inv),
    *rows("shl.b{bits}", "u32 u64", "{t} u32<70", "{t}", shl_of),
    *rows("shr.{t}", "u16 u32 s32 u64 s64", "{t} u32<70", "{t}", shr_of),
    Row("shf.l.wrap.b32", "u32 u32 u32<70", "u32", lambda a, b, n: (b << 32 | a) << n % 32 >> 32),
    Row("shf.r.wrap.b32", "u32 u32 u32<70", "u32", lambda a, b, n: (b << 32 | a) >> n % 32),
    Row("shf.l.clamp.b32", "u32 u32 u32<70", "u32", lambda a, b, n: (b << 32 | a) << np.minimum(n, 32) >> 32),
    Row("shf.r.clamp.b32", "u32 u32 u32<70", "u32", lambda a, b, n: (b << 32 | a) >> np.minimum(n, 32)),
    *rows("bfe.{t}", "u32 u64", "{t} u32<70 u32<70", "{t}", elementwise(field)),
    *rows("bfe.{t}", "s32 s64", "{t} u32<70 u32<70", "{t}", elementwise(signed_field)),
    *rows("bfi.b{bits} %d, %a, %b, 5, 9;", "u32 u64", "{t} {t}", "{t}", lambda a, b: b & ~(511 << 5) | (a & 511) << 5),
    Row("lop3.b32 %d, %a, %b, %c, 0xCA;", "u32 u32 u32", "u32", lambda a, b, c: (a & b) | (~a & c)),
    *rows("popc.b{bits}", "u32 u64", "{t}", "u32", elementwise(lambda a: a.bit_count())),
    *rows("clz.b{bits}", "u32 u64", "{t}", "u32", leading_zeros_of),
    *rows("brev.b{bits}", "u32 u64", "{t}", "{t}", reversed_of),
    Row("prmt.b32", "u32 u32 u32", "u32", elementwise(permuted)),
    Row(CARRY, "u64 u64", "u64", operator.add),
    Row(LONG_CARRY, "u32 u32", "u64", elementwise(long_carry)),
    Row(WIDE_CARRY, "u32 u32 u32", "u64", lambda a, b, c: a * b + c + (7 << 32)),
]


@pytest.mark.parametrize("row", INTEGERS, ids=str)
def test_integers(row):
    check(row)
