"""Runs a kernel: the threads of some CTAs in lockstep, a register being an array over all of them.

``Machine.run`` is the loop. Threads that part at a branch run one after the other, lowest address first, until they meet
again. What an instruction does is a function ``(machine, instruction, active)`` of ``instructions``, where ``active`` are
the threads that do it; here is what those functions work with: registers, addresses, and the flow of control.
"""

import re
from typing import NamedTuple

import numpy as np

from .fault import Fault
from .instructions import implementations
from .memory import OnChipMemory
from .syntax import Address
from .values import SIGNED, UNSIGNED, decode, flush

MAX_STEPS = 10_000_000
_DECIMAL = re.compile(r"-?\d+\.\d*(e-?\d+)?|-?\d+e-?\d+", re.IGNORECASE)
_INTEGER = re.compile(r"-?(0x[0-9a-f]+|[1-9]\d*|0)U?", re.IGNORECASE)


class Access(NamedTuple):
    """Bytes that threads access: where their bytes begin in ``memory.data``, and the threads' numbers. It has been checked."""

    memory: object
    positions: np.ndarray
    threads: np.ndarray

    def load(self, dtype, index=0):
        """The elements ``index`` elements after the positions."""
        return self.memory.data.view(dtype)[self.positions // np.dtype(dtype).itemsize + index]

    def store(self, values, index=0):
        cells = self.positions // values.itemsize + index
        self.memory.data.view(values.dtype)[cells] = values
        if self.memory.written is not None:
            self.memory.written.view(values.dtype)[cells] = ~values.dtype.type(0)


class Machine:
    """``ctas`` are their (x, y, z) in the grid, ``arguments`` the parameters' bits as integers.

    ``everyone`` is the one mask that is all true: functions may ask for it by identity, and skip work.
    """

    def __init__(self, device, memory, program, arguments, ctas, grid, shared_bytes):
        self.device, self.program, self.arguments, self.ctas = device, program, arguments, ctas
        self.functions = implementations(program)
        self.size = program.threads * len(ctas)
        self.threads = np.arange(self.size)
        self.everyone = np.ones(self.size, bool)
        self.cta = np.repeat(np.arange(len(ctas)), program.threads)
        self.memories = {
            "global": memory,
            "shared": OnChipMemory("shared", shared_bytes, len(ctas), self.cta, track=True),
            "local": OnChipMemory("local", program.local_bytes, self.size, self.threads),
        }
        self.registers = self._special_registers(grid)
        self.lane = self.registers["%laneid"]
        self.carry = None  # of add.cc
        self._constants = {}
        self.alive = self.everyone
        self.waiting = None  # threads at a barrier
        self.pc = 0  # where all threads are, or where those that run now are
        self.pcs = None  # where each thread is; None while all are at pc

    def _special_registers(self, grid):
        size, zero = self.program.threads, np.zeros(self.size, np.uint32)
        thread = np.tile(np.arange(size, dtype=np.uint32), len(self.ctas))
        registers = {"%tid.x": thread, "%tid.y": zero, "%tid.z": zero, "%laneid": thread & 31}
        registers |= {"%ntid.x": zero + np.uint32(size), "%ntid.y": zero + np.uint32(1), "%ntid.z": zero + np.uint32(1)}
        for axis, name in enumerate("xyz"):
            registers[f"%ctaid.{name}"] = np.repeat(np.array([cta[axis] for cta in self.ctas], np.uint32), size)
            registers[f"%nctaid.{name}"] = zero + np.uint32(grid[axis])
        return registers

    # Registers

    def read(self, operand, width):
        """The bits of a register, a number or a symbol, ``width`` bytes of them."""
        bits = self.registers.get(operand)
        if bits is not None:
            if bits.dtype == np.bool_:
                raise Fault(f"predicate as a number: {operand}")
            return bits if bits.itemsize == width else bits.astype(UNSIGNED[width])
        if operand in self.program.undefined:
            return self.undefined(width)
        if operand in self.program.widths or operand[0] == "%":
            raise Fault(f"register read before written: {operand}")
        if (operand, width) not in self._constants:
            self._constants[operand, width] = np.full(self.size, self._number(operand, width), UNSIGNED[width])
        return self._constants[operand, width]

    def _number(self, operand, width):
        if operand in self.program.symbols:
            return self.program.symbols[operand]
        if operand[:2] in ("0f", "0F", "0d", "0D"):  # the bits of a float or a double
            if len(operand) != 2 + 2 * width:
                raise Fault(f"literal of another width: {operand}")
            return int(operand[2:], 16)
        if _DECIMAL.fullmatch(operand):
            return np.array(float(operand), {4: np.float32, 8: np.float64}[width]).view(UNSIGNED[width])[()]
        if not _INTEGER.fullmatch(operand):
            raise Fault(f"operand not understood: {operand}")
        return int(operand.rstrip("uU"), 0) & ((1 << 8 * width) - 1)

    def numbers(self, operand, ty, modifiers=()):
        """An operand as numbers of type ``ty``, the elements of a packed one side by side."""
        bits = self.read(operand, ty.width)
        return decode(flush(bits, ty) if "ftz" in modifiers else bits, ty)

    def predicate(self, operand):
        if operand[0] == "!":
            return ~self.predicate(operand[1:])
        if operand in self.registers:
            return self.registers[operand]
        if operand in self.program.widths:
            raise Fault(f"predicate read before written: {operand}")
        return np.full(self.size, bool(int(operand, 0)))

    def write(self, register, value, active):
        """Write bits of any width, or truth values, where ``active``; signed integers are sign-extended."""
        if register == "_":
            return
        width = self.program.widths[register]
        if (width is None) != (value.dtype == np.bool_) or value.dtype.kind == "f":
            raise Fault(f"result of another kind than register {register}")
        if width is not None:
            if value.itemsize != width:
                value = value.astype((SIGNED if value.dtype.kind == "i" else UNSIGNED)[width])
            value = value.view(UNSIGNED[width])
        if active is not self.everyone:
            before = self.registers.get(register)
            value = np.where(active, value, self.undefined(width) if before is None else before)
        self.registers[register] = value

    def undefined(self, width):
        """All ones: NaN as a float, outside of every tensor as an address."""
        return self.everyone if width is None else np.full(self.size, (1 << 8 * width) - 1, UNSIGNED[width])

    # Memory

    def access(self, address, active, width, space):
        """The checked Access of ``width`` bytes by every active thread."""
        if not isinstance(address, Address):
            raise Fault(f"address not understood: {address}")
        threads = self.threads if active is self.everyone else np.flatnonzero(active)
        base = self.read(address.base, self.program.widths.get(address.base, 8))
        addresses = base.astype(np.int64)[threads] + address.offset
        over = addresses & (width - 1)
        if over.any():
            self._blame(f"misaligned access: width {width} at offset {over[over != 0][0]}", threads, over != 0)
        memory = self.memories[space]
        outside = memory.outside(addresses, width)
        if outside is not None:
            self._blame(memory.describe(int(addresses[outside][0]), width), threads, outside)
        return Access(memory, memory.positions(addresses, threads), threads)

    def check_written(self, access, width, offset=0):
        """Fault if some of the bytes are of shared memory and no thread wrote them."""
        if access.memory.written is None:
            return
        positions = access.positions + offset
        unwritten = access.memory.written.view(UNSIGNED[width])[positions // width] != (1 << 8 * width) - 1
        if unwritten.any():
            byte = positions[unwritten][0] % access.memory.stride
            self._blame(f"shared memory read before written: byte {byte}", access.threads, unwritten)

    def spread(self, values, threads):
        """Results of some threads among all threads."""
        if threads is self.threads:
            return values
        everywhere = np.zeros(self.size, values.dtype)
        everywhere[threads] = values
        return everywhere

    def _blame(self, what, threads, bad):
        thread = int(threads[np.flatnonzero(bad)[0]])
        program = self.ctas[thread // self.program.threads]
        raise Fault(f"{what}; program {program}, thread {thread % self.program.threads}")

    # Control

    def run(self):
        code, counts = self.program.code, self.device.count
        for _ in range(MAX_STEPS):
            here = self._gather()
            pc, instruction = self.pc, code[self.pc]
            ctas = len(self.ctas) if here is self.everyone else np.count_nonzero(self._per_cta(here).any(1))
            counts[instruction.name] += int(ctas)
            active = here
            if instruction.guard:
                active = here & self.predicate(instruction.guard)
                active = self.everyone if active.all() else active
            self._advance(here)
            if active is self.everyone or active.any():
                self._do(self.functions[pc], instruction, active)
            else:
                self.leave_undefined(instruction.destinations)
            if not self.alive.any():
                return
        raise Fault(f"too many steps ({self.program.name})")

    def _gather(self):
        """The threads that run next, all at pc: of those that do not wait, the ones at the lowest address."""
        if self.pcs is None:
            return self.alive
        ready = self.alive
        if self.waiting is not None:
            released = self._per_cta(self.waiting | ~self.alive).all(1)
            self.waiting = self.waiting & ~np.repeat(released, self.program.threads)
            ready = self.alive & ~self.waiting
            self.waiting = self.waiting if self.waiting.any() else None
        self.pc = int(self.pcs[ready].min())
        here = ready & (self.pcs == self.pc)
        if (here == self.alive).all():
            self.pcs = None
            return self.alive
        return here

    def _advance(self, here):
        if self.pcs is None:
            self.pc += 1
        else:
            self.pcs = np.where(here, self.pc + 1, self.pcs)

    def _do(self, function, instruction, active):
        try:
            function(self, instruction, active)
        except Exception as error:
            what = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
            raise Fault(f"{what} ({self.program.name}, at '{instruction.text}')") from error

    def leave_undefined(self, registers):
        for register in registers:
            if register in self.program.widths and register not in self.registers:
                self.registers[register] = self.undefined(self.program.widths[register])

    def _per_cta(self, mask):
        return mask.reshape(len(self.ctas), self.program.threads)

    def _part(self):
        """From here on each thread has its own pc."""
        if self.pcs is None:
            self.pcs = np.full(self.size, self.pc)

    def jump(self, active, label):
        target = self.program.labels[label]
        if self.pcs is None and (active is self.alive or (active == self.alive).all()):
            self.pc = target
        else:
            self._part()
            self.pcs = np.where(active, target, self.pcs)

    def exit(self, active):
        self.alive = self.alive & ~active

    def wait(self, active):
        """At the CTA's barrier until all of its threads are there or have left."""
        if self.pcs is None and active is self.alive:
            return
        self._part()
        self.waiting = active if self.waiting is None else self.waiting | active
