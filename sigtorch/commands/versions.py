"""``python -m sigtorch``: versions, and what runs where, as a bug report needs them."""

from __future__ import annotations

import argparse
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import sigtorch
from sigtorch import _backend, _checks

_DRIVER = Path("/proc/driver/nvidia/version")


def print_versions(options: argparse.Namespace) -> None:
    """Prints versions of what sigtorch runs on, and for each device whether kernels run there, or why not."""
    print("\n".join(f"{name:10} {value}" for name, value in (*_software(), *_devices())))


def _software() -> list[tuple[str, str]]:
    built_for = torch.version.cuda or torch.version.hip
    toolkit = f", {'CUDA' if torch.version.cuda else 'ROCm'} {built_for}" if built_for else ", no CUDA"
    return [
        ("sigtorch", sigtorch.__version__),
        ("torch", torch.__version__ + toolkit),
        ("triton", _installed("triton")),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("driver", _driver()),
        *((name, os.environ[name]) for name in ("SIGTORCH_BACKEND", "TRITON_INTERPRET") if name in os.environ),
    ]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    """Returns the release of NVIDIA's kernel driver."""
    found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text()) if _DRIVER.exists() else None
    return found.group() if found else "none of NVIDIA's"


def _devices() -> list[tuple[str, str]]:
    rows = [("cpu", f"{os.cpu_count()} cores: {_runner(torch.device('cpu'))}")]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        rows.append((f"cuda:{index}", f"{torch.cuda.get_device_name(device)}, {major}.{minor}: {_runner(device)}"))
    return rows


def _runner(device: torch.device) -> str:
    """Returns what runs float32 tensors of a device, and why, if these are not the kernels."""
    try:
        if sigtorch.backend_of(torch.ones(1, device=device)) == "triton":
            return "kernels"
    except (TypeError, ValueError, RuntimeError) as error:  # kernels are forced by the variable and do not run
        return _checks.in_a_line(error)
    obstacle = _backend.obstacle(device.index if device.type == "cuda" else -1)
    chosen = (
        "SIGTORCH_BACKEND is aten" if _backend.chosen() == "aten" else "kernels run there only where they are forced"
    )
    return f"PyTorch's operators ({chosen if obstacle is None else obstacle})"
