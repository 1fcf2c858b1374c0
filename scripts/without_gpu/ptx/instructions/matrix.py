"""Products of small matrices, by a warp (mma) or by four (wgmma): summed in doubles, and rounded once to float32.

A tensor core sums in its own order, in which no two architectures agree, so no result has the bits of a GPU's.
"""

import numpy as np

from ..fault import Fault
from ..values import TYPES, decode
from .table import instruction
from .warp import require_whole_warps

LANE = np.arange(32)
ROW, COLUMN = LANE >> 2, LANE & 3  # of a lane's first element in a matrix of 8 rows, whose columns are pairs
TF32_BITS = np.uint32(0xFFFFE000)  # of a float32, those that count
WARPGROUP = 128
KINDS = {"bf16": ("bf16", 2), "f16": ("f16", 2), "tf32": ("f32", 4)}  # how elements are read, and their bytes


def _places(rows, columns, registers, packed):
    """The row and the column of each element of each register of each lane: two arrays (32, registers, packed)."""
    return tuple(np.broadcast_to(places, (32, registers, packed)) for places in (rows, columns))


def _places_of_left(k, packed):
    """The places of the 16 x k matrix, in four registers."""
    register, element = np.arange(4)[None, :, None], np.arange(packed)
    rows = ROW[:, None, None] + 8 * (register & 1)
    return _places(rows, packed * COLUMN[:, None, None] + k // 2 * (register >> 1) + element, 4, packed)


def _places_of_right(k, packed):
    """The places of the k x 8 matrix, in two registers."""
    register, element = np.arange(2)[None, :, None], np.arange(packed)
    rows = packed * COLUMN[:, None, None] + k // 2 * register + element
    return _places(rows, ROW[:, None, None], 2, packed)


def _places_of_sum():
    """The places of the 16 x 8 sum, in four registers."""
    register = np.arange(4)[None, :, None]
    return _places(ROW[:, None, None] + 8 * (register >> 1), 2 * COLUMN[:, None, None] + (register & 1), 4, 1)


SUM_ROWS, SUM_COLUMNS = (places[..., 0] for places in _places_of_sum())


def _kind(ins, k, sums):
    """The kind of the factors of an instruction that names ``sums`` matrices of float32 beside them."""
    named = [ty.element for ty in ins.types]  # tf32 is no type of registers
    factors = ["tf32"] * 2 if "tf32" in ins.modifiers else [e for e in named if e != "f32"]
    if named.count("f32") != sums or len(factors) != 2 or factors[0] != factors[1]:
        raise Fault(f"instruction not modelled: {ins.text}")
    if KINDS.get(factors[0], (0, 0))[1] * k != 32:
        raise Fault(f"instruction not modelled: {ins.text}")
    return factors[0]


def _decoded(bits, kind):
    """The elements in bits, as doubles, side by side along the last axis."""
    name, _ = KINDS.get(kind, ("f32", 4))
    bits = bits & TF32_BITS if kind == "tf32" else bits
    return decode(np.ascontiguousarray(bits), TYPES[name]).astype(np.float64)


def _in_registers(machine, registers, kind, places, shape):
    """The matrices (warps, rows, columns) that the registers of each warp hold."""
    rows, columns = places
    bits = np.stack([machine.read(register, 4) for register in registers], 1)
    matrices = np.zeros((machine.size // 32, *shape))
    matrices[:, rows, columns] = _decoded(bits, kind).reshape(-1, *rows.shape)
    return matrices


@instruction("mma", "sync aligned m16n8k16 m16n8k8 row col tf32")
def multiply_by_warp(machine, ins, active):
    """Computes d = a b + c, with a of 16 rows and b of 8 columns."""
    require_whole_warps(active)
    d, a, b, c = ins.operands
    k = 16 if "m16n8k16" in ins.modifiers else 8
    kind = _kind(ins, k, sums=2)
    packed = 1 if kind == "tf32" else 2
    left = _in_registers(machine, a, kind, _places_of_left(k, packed), (16, k))
    right = _in_registers(machine, b, kind, _places_of_right(k, packed), (k, 8))
    before = _in_registers(machine, c, "f32", _places_of_sum(), (16, 8))
    total = (left @ right + before).astype(np.float32)
    values = total[:, SUM_ROWS, SUM_COLUMNS].reshape(-1, 4).view(np.uint32)
    for i, register in enumerate(d):
        machine.write(register, np.ascontiguousarray(values[:, i]), active)


# Warpgroups, whose operands may be in shared memory, where a descriptor tells.

# By a descriptor's mode: the bytes of a row, and which of the bits from 7 on are mixed into those from 4 on.
SWIZZLES = {1: (128, 7), 2: (64, 3), 3: (32, 1)}
_SHAPES = " ".join(f"m64n{n}k{k}" for n in range(8, 257, 8) for k in (8, 16))


def _in_shared(machine, descriptor, rows, k, kind, across, groups):
    """The matrices (warpgroups, rows, k) that a descriptor tells of; ``across`` where rows are neighbours in memory, not k."""
    _, size = KINDS[kind]
    bits = machine.read(descriptor, 8)[::WARPGROUP][groups].astype(np.int64)
    start, lead, stride = (((bits >> at & 0x3FFF) << 4)[:, None, None] for at in (0, 16, 32))
    modes = np.unique(bits >> 62 & 3)
    if len(modes) > 1 or not modes[0] or (bits >> 49 & 7).any():
        raise Fault("matrix descriptor not modelled")
    width, mix = SWIZZLES[int(modes[0])]
    r, c = np.arange(rows)[:, None], np.arange(k)[None, :]
    if across:
        per = width // size
        offset = r // per * lead + c // 8 * stride + c % 8 * width + r % per * size
    else:
        offset = r // 8 * stride + r % 8 * width + c * size
    address = start + offset
    address = address ^ (address >> 7 & mix) << 4
    return _decoded(_read_shared(machine, address, size, groups), kind)


def _read_shared(machine, address, size, groups):
    memory, threads = machine.memories["shared"], machine.threads[::WARPGROUP][groups]
    if memory.outside(address, size) is not None:
        raise Fault("matrix outside of shared memory")
    flat = address.reshape(len(threads), -1)
    positions = memory.positions(flat.T, threads).T.reshape(address.shape) // size
    dtype = {2: np.uint16, 4: np.uint32}[size]
    if (memory.written.view(dtype)[positions] != np.iinfo(dtype).max).any():
        raise Fault("shared memory read before written, by a matrix instruction")
    return memory.data.view(dtype)[positions]


@instruction("wgmma", "mma_async fence commit_group wait_group sync aligned tf32 " + _SHAPES)
def multiply_by_warpgroup(machine, ins, active):
    """Computes d = a b, or d += a b: at once, so that nothing waits."""
    if "mma_async" not in ins.modifiers:
        return
    threads = active.reshape(-1, WARPGROUP)
    groups = threads.any(1)
    if (groups != threads.all(1)).any():
        raise Fault("a warpgroup's threads are parted at an instruction they must do together")
    d, a, b, keep, *options = ins.operands
    (shape,) = (m for m in ins.modifiers if m.startswith("m64"))
    n, k = map(int, shape[4:].split("k"))
    kind = _kind(ins, k, sums=1)
    if options[:2] != ["1", "1"]:  # factors with another sign
        raise Fault(f"instruction not modelled: {ins.text}")
    *left_across, right_across = [option == "1" for option in options[2:]] or [False, False]
    if isinstance(a, tuple):
        places = _places_of_left(k, 1 if kind == "tf32" else 2)
        left = _in_registers(machine, a, kind, places, (16, k)).reshape(-1, 64, k)[groups]
    else:
        left = _in_shared(machine, a, 64, k, kind, any(left_across), groups)
    right = _in_shared(machine, b, n, k, kind, right_across, groups)
    total = np.zeros((len(groups), 64, n))
    total[groups] = left @ right.swapaxes(1, 2)
    _add_to_registers(machine, d, machine.predicate(keep), total, active)


def _add_to_registers(machine, registers, kept, total, active):
    """Writes the matrices (warpgroups, 64, n), added to what the registers hold where ``kept``."""
    n = total.shape[2]
    tiles = total.reshape(-1, 4, 16, n // 8, 8)[:, :, SUM_ROWS, :, SUM_COLUMNS]  # (32, 4, warpgroups, warps, n / 8)
    values = tiles.transpose(2, 3, 0, 4, 1).reshape(machine.size, n // 2)
    for i, register in enumerate(registers):
        before = np.where(kept, machine.read(register, 4).view(np.float32), 0.0) if kept.any() else 0.0
        machine.write(register, (values[:, i] + before).astype(np.float32).view(np.uint32), active)
