"""Instructions that move bits between registers, unchanged."""

import numpy as np

from ..values import UNSIGNED
from .table import ANY, instruction


@instruction("mov")
def move(machine, ins, active):
    """Moves one register to another, or to and from parts of it in braces."""
    (destination, source), width = ins.operands, ins.types[-1].width
    if not width:
        machine.write(destination, machine.predicate(source), active)
    elif isinstance(destination, tuple):
        parts = machine.read(source, width).view(UNSIGNED[width // len(destination)]).reshape(-1, len(destination))
        for i, register in enumerate(destination):
            machine.write(register, parts[:, i].copy(), active)
    elif isinstance(source, tuple):
        parts = [machine.read(part, width // len(source)) for part in source]
        machine.write(destination, np.stack(parts, 1).view(UNSIGNED[width]).ravel(), active)
    else:
        machine.write(destination, machine.read(source, width), active)


@instruction("cvta", "to global local shared")
def convert_address(machine, ins, active):
    """Addresses are the same in every space: an access names its own."""
    machine.write(ins.operands[0], machine.read(ins.operands[1], 8), active)


@instruction("prmt")
def permute_bytes(machine, ins, active):
    """Four of two registers' eight bytes; four bits of the selector each, the highest for the byte's sign alone."""
    a, b, selector = (machine.read(operand, 4) for operand in ins.operands[1:4])
    octets = np.stack([a, b], 1).view(np.uint8)
    selectors = selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)
    chosen = np.take_along_axis(octets, (selectors & 7).astype(np.intp), 1)
    chosen = np.where(selectors & 8, (chosen >> 7) * np.uint8(255), chosen)
    machine.write(ins.operands[0], chosen.view(np.uint32).ravel(), active)


@instruction("undef", ANY)
def undefine(machine, ins, active):
    """LLVM's implicit-def: any value does, and one that is there stays."""
    machine.leave_undefined(ins.operands)


@instruction("createpolicy", ANY)
def create_policy(machine, ins, active):
    """A hint for caches, which are not modelled."""
    machine.write(ins.operands[0], np.zeros(machine.size, np.uint64), active)
