"""A pytest plugin that runs Triton's kernels as compiled PTX, on the CPU.

``pytest -p without_gpu.ptx.plugin --ptx-arch 90 -m kernels``
"""

import os

# Before anything imports Triton or asks PyTorch for a GPU
os.environ["TRITON_INTERPRET"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# The assembler has to take the PTX, and what it makes of it is not run: it need not take its time.
os.environ["DISABLE_PTXAS_OPT"] = "1"

from .driver import CHIPS, install


def pytest_addoption(parser):
    parser.addoption(
        "--ptx-arch", type=int, default=90, choices=CHIPS, help="compute capability to compile for, as 80, 90 or 100"
    )


def pytest_configure(config):
    config.ptx_gpu = install(config.getoption("--ptx-arch"))


def pytest_report_header(config):
    return f"kernels run as PTX for sm_{config.getoption('--ptx-arch')}, on the CPU"
