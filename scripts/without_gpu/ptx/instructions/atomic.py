"""Atomics: threads that meet at one address go one after the other."""

import numpy as np

from ..fault import Fault
from ..rounding import encode
from ..values import UNSIGNED, Type, decode
from .memory import SCOPES, space_of
from .table import instruction


def _arithmetic(function):
    return lambda old, value, new, ty: encode(function(decode(old, ty), decode(value, ty)), ty)


def _increment(old, value, new, ty):
    return np.where(old >= value, old.dtype.type(0), old + old.dtype.type(1))


def _decrement(old, value, new, ty):
    return np.where((old == 0) | (old > value), value, old - old.dtype.type(1))


# What a cell holds afterwards, of its bits before, the operand's, and those that cas writes.
OPERATIONS = {
    "add": _arithmetic(np.add),
    "min": _arithmetic(np.minimum),
    "max": _arithmetic(np.maximum),
    "and": lambda old, value, new, ty: old & value,
    "or": lambda old, value, new, ty: old | value,
    "xor": lambda old, value, new, ty: old ^ value,
    "exch": lambda old, value, new, ty: value,
    "cas": lambda old, value, new, ty: np.where(old == value, new, old),
    "inc": _increment,
    "dec": _decrement,
}


@instruction("atom", SCOPES + " noftz add min max and or xor exch cas inc dec")
@instruction("red", SCOPES + " noftz add min max and or xor inc dec")
def atomic(machine, ins, active):
    """Gives the value before; ``red`` has no destination, and gives nothing."""
    destinations, address, operands, *new = ins.operands if ins.name == "atom" else ("_", *ins.operands)
    destinations, operands = (x if isinstance(x, tuple) else (x,) for x in (destinations, operands))
    ty, (kind,) = ins.types[-1], ins.modifiers & OPERATIONS.keys()
    if ty.is_float and kind not in ("add", "exch"):
        raise Fault("atomic not modelled")
    width = ty.width * len(operands)
    access = machine.access(address, active, width, space_of(ins))
    for i in range(len(operands)):
        machine.check_written(access, ty.width, i * ty.width)
    if access.memory is machine.memories["global"]:
        machine.device.stores += width * len(access.threads)
        machine.device.loads += width * len(access.threads) if ins.name == "atom" else 0
    values = np.stack([machine.read(operand, ty.width)[access.threads] for operand in operands], 1)
    new = machine.read(new[0], ty.width)[access.threads] if new else None
    before = _in_turns(access, values.view(UNSIGNED[ty.size]), new, Type(ty.element, ty.size), OPERATIONS[kind])
    before = before.view(UNSIGNED[ty.width])
    for i, register in enumerate(destinations):
        machine.write(register, machine.spread(np.ascontiguousarray(before[:, i]), access.threads), active)


def _in_turns(access, values, new, ty, operation):
    """Applies the operation, a row of ``values`` a thread; returns what was there before."""
    cells = (access.positions[:, None] // ty.size + np.arange(values.shape[1])).ravel()
    memory, flat = access.memory.data.view(values.dtype), values.ravel()
    before, turns = np.empty_like(flat), _turns(cells)
    for turn in range(turns.max() + 1):
        now = np.flatnonzero(turns == turn)
        before[now] = memory[cells[now]]
        memory[cells[now]] = operation(before[now], flat[now], None if new is None else new[now], ty)
    return before.reshape(values.shape)


def _turns(cells):
    """Counts the accesses before each one to the same cell."""
    order, number = np.argsort(cells, kind="stable"), np.arange(len(cells))
    first = np.r_[True, np.diff(cells[order]) != 0]
    turns = np.empty_like(number)
    turns[order] = number - np.maximum.accumulate(np.where(first, number, 0))
    return turns
