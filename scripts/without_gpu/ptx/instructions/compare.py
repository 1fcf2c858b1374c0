"""Comparisons, and choices by them."""

import numpy as np

from ..rounding import encode
from ..values import SIGNED
from .table import instruction

COMPARISONS = {"eq": np.equal, "ne": np.not_equal}
COMPARISONS |= {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
COMPARISONS |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}  # of unsigned integers
UNORDERED = {f"{name}u": COMPARISONS[name] for name in ("eq", "ne", "lt", "le", "gt", "ge")}  # true of a NaN
COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
MODIFIERS = " ".join([*COMPARISONS, *UNORDERED, "num nan ftz"])


def _compare(machine, ins):
    """The truth values, of a packed type's elements side by side."""
    ty = ins.types[-1]
    a, b = (machine.numbers(operand, ty, ins.modifiers) for operand in ins.operands[1:3])
    (name,) = ins.modifiers - {"ftz"} - COMBINATIONS.keys()
    nan = np.isnan(a) | np.isnan(b) if ty.is_float else np.zeros(a.shape, bool)
    if name in ("num", "nan"):
        return nan if name == "nan" else ~nan
    if name in UNORDERED:
        return UNORDERED[name](a, b) | nan
    return COMPARISONS[name](a, b) & ~nan


@instruction("setp", f"{MODIFIERS} and or xor")
def set_predicate(machine, ins, active):
    """Two results, p|q: the comparison and its opposite, or those of a packed type's two elements."""
    truth = _compare(machine, ins)
    results = truth.reshape(-1, 2).T if ins.types[-1].count == 2 else (truth, ~truth)
    for register, result in zip(ins.destinations, results, strict=False):
        if len(ins.operands) > 3:
            (combination,) = ins.modifiers & COMBINATIONS.keys()
            result = COMBINATIONS[combination](result, machine.predicate(ins.operands[3]))
        machine.write(register, result.copy(), active)


@instruction("set", MODIFIERS)
def set_number(machine, ins, active):
    """1.0 or all ones where true."""
    truth, to = _compare(machine, ins), ins.types[0]
    numbers = truth.astype(np.float32) if to.is_float else -truth.astype(SIGNED[to.size])
    machine.write(ins.operands[0], encode(numbers, to), active)


@instruction("selp")
def select(machine, ins, active):
    a, b = (machine.read(operand, ins.types[0].width) for operand in ins.operands[1:3])
    machine.write(ins.operands[0], np.where(machine.predicate(ins.operands[3]), a, b), active)
