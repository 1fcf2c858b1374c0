"""A device that executes PTX on CPU tensors, and counts what it does. It knows nothing of Triton; see ``driver``."""

import itertools
from collections import Counter

import numpy as np

from .approximation import Approximation
from .fault import Fault
from .machine import Machine
from .memory import GlobalMemory
from .syntax import read

THREADS_AT_A_TIME = 16384
BYTES_OF_REGISTERS = 2**25  # of all these threads, about
MOST_CTAS = (2**31 - 1, 65535, 65535)  # of a grid's axes


class Device:
    """``ulps`` scales the errors of approximate instructions, which ``seed`` draws.

    ``loads`` and ``stores`` are bytes of global memory, ``count`` instructions by name, once a CTA. Where ``programs`` is
    a list of (x, y, z), only these CTAs run; -1 is the last one of an axis.
    """

    def __init__(self, ulps=1, seed=0):
        self.approximation = Approximation(ulps, seed)
        self.loads = self.stores = 0
        self.count = Counter()
        self.programs = None
        self.registered = []

    def register(self, tensor):
        """Let kernels at a tensor that they reach by an address in memory, from here on."""
        self.registered.append(tensor)

    def execute(self, text, arguments, tensors, grid=(1, 1, 1), shared_bytes=0):
        """Run the kernel of a PTX text. ``arguments`` are integers, the bits of each; ``tensors`` what it may access."""
        if any(not 0 <= ctas <= most for ctas, most in zip(grid, MOST_CTAS, strict=True)):
            raise Fault(f"grid {grid} is outside of what CUDA takes")
        program = read(text)
        if not 0 <= len(program.parameters) - len(arguments) <= 2:  # Triton adds up to two, pointers to scratch memory
            raise Fault(f"{len(arguments)} arguments for {len(program.parameters)} parameters")
        arguments = dict(itertools.zip_longest(program.parameters, arguments, fillvalue=0))
        memory = GlobalMemory(_buffers([*tensors, *self.registered], program.tables))
        ctas = iter(self._chosen(grid))
        at_a_time = self._ctas_at_a_time(program)
        with np.errstate(all="ignore"):
            while some := list(itertools.islice(ctas, at_a_time)):
                Machine(self, memory, program, arguments, some, grid, shared_bytes).run()

    def _chosen(self, grid):
        if self.programs is None:
            x, y, z = map(range, grid)
            return ((i, j, k) for k in z for j in y for i in x)
        return sorted(
            {tuple(n + i if i < 0 else i for n, i in zip(grid, program, strict=True)) for program in self.programs}
        )

    def _ctas_at_a_time(self, program):
        if program.communicates:
            return 1
        bytes_of_a_cta = 8 * max(len(program.widths), 1) * program.threads
        return max(1, min(THREADS_AT_A_TIME // program.threads, BYTES_OF_REGISTERS // bytes_of_a_cta))


def _buffers(tensors, tables):
    """Sizes in bytes by address."""
    buffers = {}
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise Fault(f"tensor on {tensor.device}")
        if tensor.numel():
            last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
            size = (last + 1) * tensor.element_size()
            buffers[tensor.data_ptr()] = max(size, buffers.get(tensor.data_ptr(), 0))
    return buffers | {table.ctypes.data: table.nbytes for table in tables}
