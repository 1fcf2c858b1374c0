"""Triton's own driver, launcher and caches over a libcuda that does nothing: what a launch costs the host, without a GPU.

Kernels are compiled for the architecture and never run, so results are uninitialised memory; all that happens up to the
launch is what it is with a GPU. It needs a C compiler, and works with Triton 3.4 to 3.9.

    from without_gpu import standin

    standin.install(90)                       # before the first launch
    with sigtorch.use_backend("triton"):
        sigtorch.sigmoid(torch.empty(64))     # CPU tensors
    standin.launches()                        # how many there were

By hand with ``PYTHONPATH=scripts``. PyTorch, too, takes the stand-in for a GPU's driver: use CPU tensors only.
"""

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.driver import driver


class StandIn(CudaDriver):
    """Triton's driver for NVIDIA GPUs; what it would ask PyTorch about the device is answered here."""

    def __init__(self, arch: int) -> None:
        super().__init__()
        self.arch = arch
        self.get_device_capability = lambda device=0: divmod(arch, 10)
        self.get_current_stream = lambda device: 0
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def install(arch: int = 90) -> None:
    """Make every launch from here on one for ``arch`` (90 for sm_90)."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: the interpreter launches nothing")
    _libcuda()
    driver.set_active(StandIn(arch))


def launches() -> int:
    """Counts the kernels launched in this process."""
    return _libcuda().standin_launches()


@functools.cache
def _libcuda() -> ctypes.CDLL:
    """Builds the stand-in and loads it where Triton's launchers find it."""
    if torch.cuda.is_available():
        raise RuntimeError("there is a GPU: its own driver is loaded, and nothing stands in for it")
    folder = tempfile.mkdtemp(prefix="standin.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # till then launchers are linked against it
    library = Path(folder, "libcuda.so.1")
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source], check=True)
    library.with_name("libcuda.so").symlink_to(library.name)
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    loaded.standin_launches.restype = ctypes.c_long
    return loaded
