"""Logic, shifts and fields of bits."""

import numpy as np

from ..fault import Fault
from ..values import SIGNED, UNSIGNED
from .table import instruction

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}


@instruction("and or xor not")
def logic(machine, ins, active):
    ty, (destination, *operands) = ins.types[0], ins.operands
    values = [machine.read(o, ty.width) if ty.width else machine.predicate(o) for o in operands]
    machine.write(destination, LOGIC[ins.name](*values), active)


@instruction("shl")
def shift_left(machine, ins, active):
    width = ins.types[0].width
    a, count = machine.read(ins.operands[1], width), machine.read(ins.operands[2], 4)
    shifted = a << (count & (8 * width - 1)).astype(UNSIGNED[width])
    machine.write(ins.operands[0], np.where(count < 8 * width, shifted, UNSIGNED[width](0)), active)


@instruction("shr")
def shift_right(machine, ins, active):
    ty = ins.types[0]
    a, count = machine.numbers(ins.operands[1], ty), machine.read(ins.operands[2], 4)
    shifted = a >> np.minimum(count, 8 * ty.width - 1).astype(a.dtype)
    if not ty.is_signed:
        shifted = np.where(count < 8 * ty.width, shifted, a.dtype.type(0))
    machine.write(ins.operands[0], shifted, active)


@instruction("shf", "l r wrap clamp")
def funnel_shift(machine, ins, active):
    """32 bits out of two registers, the second the high half."""
    low, high, count = (machine.read(operand, 4).astype(np.uint64) for operand in ins.operands[1:4])
    count = count & np.uint64(31) if "wrap" in ins.modifiers else np.minimum(count, np.uint64(32))
    both = high << np.uint64(32) | low
    shifted = both << count >> np.uint64(32) if "l" in ins.modifiers else both >> count
    machine.write(ins.operands[0], shifted.astype(np.uint32), active)


@instruction("bfe")
def extract_field(machine, ins, active):
    """``length`` bits from ``start``, extended by zeros or by the sign."""
    ty = ins.types[0]
    a = machine.numbers(ins.operands[1], ty).astype(np.int64 if ty.is_signed else np.uint64)
    start, length = (machine.read(operand, 4).astype(np.int64) & 255 for operand in ins.operands[2:4])
    shifted = a >> np.minimum(start, 63).astype(a.dtype)
    if not ty.is_signed:
        shifted = np.where(start > 63, a.dtype.type(0), shifted)
    unused = (64 - np.clip(length, 1, 64)).astype(a.dtype)
    field = np.where(length == 0, a.dtype.type(0), shifted << unused >> unused)
    machine.write(ins.operands[0], field.astype((SIGNED if ty.is_signed else UNSIGNED)[ty.width]), active)


@instruction("bfi")
def insert_field(machine, ins, active):
    width = ins.types[0].width
    field, into = (machine.read(operand, width).astype(np.uint64) for operand in ins.operands[1:3])
    start, length = (machine.read(operand, 4).astype(np.uint64) & np.uint64(255) for operand in ins.operands[3:5])
    if (start + length > 63)[active].any():
        raise Fault("form not modelled")
    mask = (np.uint64(1) << length) - np.uint64(1) << start
    machine.write(ins.operands[0], (into & ~mask | field << start & mask).astype(UNSIGNED[width]), active)


@instruction("lop3")
def logic_of_three(machine, ins, active):
    """Any logic function of three bits: the last operand is its table of truth."""
    a, b, c = (machine.read(operand, 4) for operand in ins.operands[1:4])
    table, result = int(ins.operands[4], 0), np.zeros(machine.size, np.uint32)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    machine.write(ins.operands[0], result, active)


def _unpacked(machine, ins, lowest_first=True):
    """The first operand's bits, a row a thread."""
    octets = machine.read(ins.operands[1], ins.types[0].width).view(np.uint8).reshape(machine.size, -1)
    if lowest_first:
        return np.unpackbits(octets, axis=1, bitorder="little")
    return np.unpackbits(octets[:, ::-1], axis=1)


@instruction("popc")
def count_ones(machine, ins, active):
    machine.write(ins.operands[0], _unpacked(machine, ins).sum(1, dtype=np.uint32), active)


@instruction("clz")
def count_leading_zeros(machine, ins, active):
    bits = _unpacked(machine, ins, lowest_first=False)
    zeros = np.where(bits.any(1), bits.argmax(1), bits.shape[1])
    machine.write(ins.operands[0], zeros.astype(np.uint32), active)


@instruction("brev")
def reverse(machine, ins, active):
    octets = np.packbits(_unpacked(machine, ins)[:, ::-1], axis=1, bitorder="little")
    machine.write(ins.operands[0], octets.view(UNSIGNED[ins.types[0].width]).ravel(), active)
