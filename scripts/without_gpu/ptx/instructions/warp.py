"""Instructions that the 32 threads of a warp execute together."""

import numpy as np

from ..fault import Fault
from ..rounding import encode
from .table import instruction

REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum}
REDUCTIONS |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
WITHOUT_NAN = {"min": np.fmin, "max": np.fmax}


def require_whole_warps(active):
    """Fault if some of a warp's threads are not there."""
    warps = active.reshape(-1, 32)
    if (warps.any(1) != warps.all(1)).any():
        raise Fault("a warp's threads are parted at an instruction they must do together")


def _require_full_mask(machine, active, mask):
    require_whole_warps(active)
    if (machine.read(mask, 4)[active] != 0xFFFFFFFF).any():
        raise Fault("part of a warp not modelled")


@instruction("shfl", "sync up down bfly idx")
def shuffle(machine, ins, active):
    """The value of another lane of the same segment; lanes that ask beyond it get their own, and a false predicate."""
    value, offset, clamp = (machine.read(operand, 4) for operand in ins.operands[1:4])
    (mode,) = ins.modifiers - {"sync"}
    lane, offset = machine.lane.astype(np.int64), offset.astype(np.int64) & 31
    segment, clamp = clamp.astype(np.int64) >> 8 & 31, clamp.astype(np.int64) & 31
    last = lane & segment | clamp & ~segment
    source = {
        "up": lane - offset,
        "down": lane + offset,
        "bfly": lane ^ offset,
        "idx": lane & segment | offset & ~segment,
    }[mode]
    inside = source >= last if mode == "up" else source <= last
    source = np.where(inside, source, lane) + (machine.threads & ~31)
    if active is not machine.everyone and not active[source[active]].all():
        raise Fault("shfl from a thread that is not there")
    for register, result in zip(ins.destinations, (value[source], inside), strict=False):
        machine.write(register, result, active)


@instruction("redux", "sync add min max and or xor abs NaN")
def reduce_warp(machine, ins, active):
    _require_full_mask(machine, active, ins.operands[2])
    ty, (kind,) = ins.types[0], ins.modifiers & REDUCTIONS.keys()
    values = machine.numbers(ins.operands[1], ty).reshape(-1, 32)
    if "abs" in ins.modifiers:
        values = np.abs(values)
    function = WITHOUT_NAN[kind] if ty.element == "f32" and "NaN" not in ins.modifiers else REDUCTIONS[kind]
    machine.write(ins.operands[0], np.repeat(encode(function.reduce(values, 1), ty), 32), active)


@instruction("vote", "sync all any uni ballot")
def vote(machine, ins, active):
    _require_full_mask(machine, active, ins.operands[2])
    votes = machine.predicate(ins.operands[1]).reshape(-1, 32)
    if "ballot" in ins.modifiers:
        result = (votes << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32)
    elif "any" in ins.modifiers:
        result = votes.any(1)
    elif "all" in ins.modifiers:
        result = votes.all(1)
    else:
        result = votes.all(1) | ~votes.any(1)
    machine.write(ins.operands[0], np.repeat(result, 32), active)
