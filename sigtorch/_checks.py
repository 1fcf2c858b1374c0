"""Every error a user can meet, each one line that quotes what was seen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

BACKENDS = ("auto", "triton", "aten")
SAVES = ("output", "input")


def backend(name: object, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where}: unknown backend {name!r}, expected one of {_listed(BACKENDS)}")
    return str(name)


def save(value: object, where: str) -> None:
    if value not in SAVES:
        raise ValueError(f"{where}: unknown save={value!r}, expected one of {_listed(SAVES)}")


def tensors(where: str, **arguments: Any) -> None:
    """Tensors, or what overrides torch functions and so passes for one."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) and not hasattr(type(value), "__torch_function__"):
            raise TypeError(f"{where}: {name} must be a Tensor, got {type(value).__name__}")


def triton_missing(why: str) -> RuntimeError:
    return RuntimeError(f"backend 'triton' was asked for, but triton cannot be imported: {why}")


def triton_dtype(dtype: torch.dtype, taken: Collection[torch.dtype]) -> TypeError:
    return TypeError(f"backend 'triton' takes {_listed(sorted(map(str, taken)))}, got {dtype}")


def triton_device(device: torch.device) -> ValueError:
    hint = "; set TRITON_INTERPRET=1 before the import to interpret kernels" if device.type == "cpu" else ""
    return ValueError(f"backend 'triton' cannot reach a tensor on {device}{hint}")


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(n) if "." not in n else n for n in names)
