"""Loads and stores, alone or by matrices, and copies from global to shared memory."""

import numpy as np

from ..fault import Fault
from ..values import UNSIGNED
from .table import instruction
from .warp import require_whole_warps

SCOPES = "global shared shared::cta local weak volatile relaxed acquire release acq_rel cta cluster gpu sys"


def space_of(ins):
    """The memory that an instruction accesses: global, unless it names another."""
    if ins.modifiers & {"shared", "shared::cta"}:
        return "shared"
    return "local" if "local" in ins.modifiers else "global"


def traffic(machine, access, width):
    """Bytes of global memory that an access of ``width`` bytes moves: each once per instruction and CTA."""
    if access.memory is not machine.memories["global"]:
        return 0
    positions = access.positions
    if len(positions) > 1 and not (positions[1:] > positions[:-1]).all():
        positions = np.unique(positions + (machine.cta[access.threads] << 48))
    return width * len(positions)


@instruction("ld", SCOPES + " param nc ca cg cs lu cv")
def load(machine, ins, active):
    destinations, address = ins.operands
    destinations = destinations if isinstance(destinations, tuple) else (destinations,)
    ty = ins.types[-1]
    if "param" in ins.modifiers:
        _load_parameter(machine, ins, active, destinations, address)
        return
    width = ty.width * len(destinations)
    access = machine.access(address, active, width, space_of(ins))
    machine.device.loads += traffic(machine, access, width)
    for i, register in enumerate(destinations):
        machine.check_written(access, ty.width, i * ty.width)
        machine.write(register, machine.spread(access.load(ty.integer, i), access.threads), active)


def _load_parameter(machine, ins, active, destinations, address):
    if address.base not in machine.arguments or address.offset or len(destinations) > 1:
        raise Fault("parameter not modelled")
    ty = ins.types[-1]
    value = machine.arguments[address.base] & ((1 << 8 * ty.width) - 1)
    machine.write(destinations[0], np.full(machine.size, value, UNSIGNED[ty.width]).view(ty.integer), active)


@instruction("st", SCOPES + " wb cg cs wt")
def store(machine, ins, active):
    address, sources = ins.operands
    sources = sources if isinstance(sources, tuple) else (sources,)
    width = ins.types[-1].width
    access = machine.access(address, active, width * len(sources), space_of(ins))
    machine.device.stores += traffic(machine, access, width * len(sources))
    for i, source in enumerate(sources):
        access.store(machine.read(source, width)[access.threads], i)


@instruction("cp", "async ca cg shared global shared::cta commit_group wait_group wait_all")
def copy_async(machine, ins, active):
    """cp.async [shared], [global], bytes, and how many of them are read: all or none, which gives zeros.

    The copy is done at once, so nothing waits.
    """
    if ins.modifiers & {"wait_group", "commit_group", "wait_all"}:
        return
    to, source, size, *read = ins.operands
    size = int(size, 0)
    read = machine.read(read[0], 4) if read else np.full(machine.size, size, np.uint32)
    if ((read != 0) & (read != size) & active).any():
        raise Fault("part of a cp.async not modelled")
    target = machine.access(to, active, size, "shared")
    octets, readers = np.zeros((machine.size, size), np.uint8), active & (read == size)
    if readers.any():
        access = machine.access(source, machine.everyone if readers.all() else readers, size, "global")
        machine.device.loads += traffic(machine, access, size)
        for i in range(size):
            octets[access.threads, i] = access.load(np.uint8, i)
    for i in range(size):
        target.store(octets[target.threads, i], i)


@instruction("ldmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def load_matrices(machine, ins, active):
    """Up to four 8x8 matrices of 16 bits: lane 4 * row + i holds elements 2 * i and 2 * i + 1 of a row of each."""
    destinations, address = ins.operands
    access = _rows(machine, ins, active, address, len(destinations))
    for i in range(8):
        machine.check_written(access, 2, 2 * i)
    rows = np.stack([access.load(np.uint16, i) for i in range(8)], 1)
    matrices = rows.reshape(-1, len(destinations), 8, 8)
    if "trans" in ins.modifiers:
        matrices = matrices.swapaxes(2, 3)
    values = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, len(destinations), 32)
    threads = machine.threads if active is machine.everyone else np.flatnonzero(active)
    for i, register in enumerate(destinations):
        machine.write(register, machine.spread(values[:, i].ravel(), threads), active)


@instruction("stmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def store_matrices(machine, ins, active):
    """The opposite of ldmatrix."""
    address, sources = ins.operands
    access = _rows(machine, ins, active, address, len(sources))
    values = np.stack([machine.read(source, 4)[active].reshape(-1, 32) for source in sources], 1)
    matrices = values.view(np.uint16).reshape(-1, len(sources), 8, 8)
    if "trans" in ins.modifiers:
        matrices = matrices.swapaxes(2, 3)
    rows = matrices.reshape(-1, 8)
    for i in range(8):
        access.store(np.ascontiguousarray(rows[:, i]), i)


def _rows(machine, ins, active, address, matrices):
    """The rows of 16 bytes that lanes 0-7 give for the first matrix, 8-15 for the second, and so on."""
    require_whole_warps(active)
    if [ty.element for ty in ins.types] != ["b16"]:
        raise Fault("matrix access not modelled")
    givers = active & (machine.lane < 8 * matrices)
    return machine.access(address, machine.everyone if givers.all() else givers, 16, "shared")
