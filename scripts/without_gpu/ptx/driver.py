"""The driver that Triton launches its kernels by: compiled for an NVIDIA GPU as usual, then executed as PTX on the CPU."""

import functools
import itertools
import re

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

from ..machine_code import Launch
from .device import Device
from .fault import Fault
from .rounding import float32_to_bfloat16

# Multiprocessors, and bytes of shared memory that a CTA may have; a GPU of each architecture
CHIPS = {
    80: (108, 166912),
    86: (84, 101376),
    89: (128, 101376),
    90: (132, 232448),
    100: (148, 232448),
    103: (148, 232448),
    120: (188, 101376),
}
FLOATS = {"fp64": np.float64, "fp32": np.float32, "f32": np.float32, "fp16": np.float16}
_numbers = itertools.count()


class Gpu(Device):
    """A ``Device`` behind the interface of Triton's drivers.

    ``launches`` is what ran, in order; ``seen`` are the kernels compiled, with ``asm["ptx"]`` and ``asm["cubin"]``.
    """

    def __init__(self, arch=90, ulps=1, seed=0):
        super().__init__(ulps, seed)
        if arch not in CHIPS:
            raise Fault(f"architecture not known: {arch}; there are {', '.join(map(str, CHIPS))}")
        self.target = GPUTarget("cuda", arch, 32)
        self.launches, self.seen = [], []
        self.utils = self  # of Triton's driver: the functions of its C module
        self.launcher_cls = self._launcher
        self._number = next(_numbers)  # Triton caches kernels by device: each Gpu compiles its own

    # What Triton asks of a driver

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self._number

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_capability(self, device=None):
        return divmod(self.target.arch, 10)

    def get_device_properties(self, device=None):
        multiprocessors, shared = CHIPS[self.target.arch]
        return {
            "max_shared_mem": shared,
            "max_num_regs": 65536,
            "multiprocessor_count": multiprocessors,
            "warpSize": 32,
            "sm_clock_rate": 1755000,
            "mem_clock_rate": 2619000,
            "mem_bus_width": 5120,
        }

    def load_binary(self, name, kernel, shared, device):
        most_threads = 1024
        return name, name, 0, 0, most_threads

    def unload_module(self, module):
        pass

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_benchmarker(self):
        """Serves triton.autotune: no time is modelled, so the first configuration wins."""
        return lambda function, quantiles, **options: [0.0] * len(quantiles)

    # Launching

    def _launcher(self, source, metadata):
        return Launcher(self, next(kernel for kernel in reversed(self.seen) if kernel.metadata is metadata))

    def launch(self, kernel, grid, arguments):
        self.launches.append(Launch(kernel, grid))
        if grid[0] * grid[1] * grid[2] >= 2**31:
            raise Fault(f"grid {grid}: Triton's launcher counts its programs in an int")
        metadata = kernel.metadata
        if getattr(metadata, "num_ctas", 1) != 1 or getattr(metadata, "global_scratch_size", 0):
            raise Fault("clusters and global scratch memory are not modelled")
        values, tensors = [], []
        for ty, argument in zip(kernel.src.signature.values(), arguments, strict=True):
            _pass(ty, argument, values, tensors)
        self.execute(kernel.asm["ptx"], values, tensors, grid, metadata.shared)


class Launcher:
    """Two floors, as Triton's own has them: one in Python, and what that calls."""

    def __init__(self, gpu, kernel):
        self.gpu, self.kernel = gpu, kernel

    def __call__(
        self, gridX, gridY, gridZ, stream, function,
        kernel_metadata, launch_metadata, launch_enter_hook, launch_exit_hook, *arguments,
    ):  # fmt: skip
        self.launch(gridX, gridY, gridZ, stream, function, arguments)

    def launch(self, gridX, gridY, gridZ, stream, function, arguments):
        self.gpu.launch(self.kernel, (gridX, gridY, gridZ), arguments)


def _pass(ty, argument, values, tensors):
    """Append an argument's bits, by its type in the signature, and the tensor that it is; tuples are passed flat."""
    if isinstance(ty, tuple):
        for inner, part in zip(ty, argument, strict=True):
            _pass(inner, part, values, tensors)
    elif ty[0] == "*":
        if not isinstance(argument, torch.Tensor):
            argument = getattr(argument, "base", argument)  # of triton.reinterpret
        if isinstance(argument, torch.Tensor):
            tensors.append(argument)
            argument = argument.data_ptr()
        values.append(int(argument or 0))
    elif ty in FLOATS:
        bits = np.array(argument, FLOATS[ty])
        values.append(int(bits.view(f"u{bits.itemsize}")))
    elif ty == "bf16":
        values.append(int(float32_to_bfloat16(np.array([argument], np.float32))[0]))
    elif re.fullmatch(r"[iu]\d+", ty):
        values.append(int(argument))
    elif ty != "constexpr":
        raise Fault(f"argument not modelled: {ty}")


def install(arch=90, ulps=1, seed=0):
    """Make every launch from here on one for ``arch`` (90 for sm_90), executed on the CPU; returns its ``Gpu``."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: the interpreter compiles nothing that could be executed")
    gpu = Gpu(arch, ulps, seed)
    _collect_kernels()
    triton.runtime.driver.set_active(gpu)
    return gpu


@functools.cache
def _collect_kernels():
    """From here on the active Gpu sees every kernel that Triton compiles: launchers are given no more than metadata."""
    init = CompiledKernel.__init__

    @functools.wraps(init)
    def collecting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        gpu = triton.runtime.driver.active
        if isinstance(gpu, Gpu):
            gpu.seen.append(self)

    CompiledKernel.__init__ = collecting
