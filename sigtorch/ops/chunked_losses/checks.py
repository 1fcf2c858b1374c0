"""Every error a user of these losses can meet, each one line that quotes what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sigtorch import _checks


def features(where: str, image: Any, text: Any) -> None:
    both = {"image_features": image, "text_features": text}
    floating(where, **both)
    if image.dim() != 2 or text.dim() != 2 or image.shape != text.shape:
        seen = ", ".join(f"{name} {tuple(t.shape)}" for name, t in both.items())
        raise ValueError(f"{where}: features must have one shape (n, d), got {seen}")
    if not image.shape[0]:
        raise ValueError(f"{where}: there are no pairs, got features of shape {tuple(image.shape)}")


def floating(where: str, **arguments: Any) -> None:
    """Tensors alone, on one device, of floating dtypes."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            raise _checks.no_tensor(where, name, value)
        if not value.is_floating_point():
            raise TypeError(f"{where}: {name} must be floating point, got {value.dtype}")
    _checks.one_device(where, **arguments)


def scalars(where: str, like: torch.Tensor, **arguments: Any) -> None:
    """Numbers, or tensors of one element; None for those that may be left out."""
    for name, value in arguments.items():
        if value is None and name != "logit_scale":
            continue
        if not isinstance(value, torch.Tensor):
            _checks.number(where, **{name: value})
            continue
        floating(where, **{name: value})
        if value.numel() != 1:
            raise ValueError(f"{where}: {name} must be a scalar, got shape {tuple(value.shape)}")
        if value.device != like.device and (value.dim() or value.device.type != "cpu"):
            raise _checks.several_devices(where, image_features=like, **{name: value})


def chunk_size(where: str, value: Any) -> int | None:
    if value is None:
        return None
    value = _checks.whole(where, "chunk_size", value)
    if value < 1:
        raise ValueError(f"{where}: chunk_size must be at least 1, got {value}")
    return int(value)


def group(where: str, value: Any) -> Any:
    """A process group that this process is in, or None for one of this process alone."""
    if value is None:
        return None
    distributed = torch.distributed
    if not distributed.is_available() or not isinstance(value, distributed.ProcessGroup):
        raise TypeError(f"{where}: group must be a ProcessGroup that this process is in, got {_checks.quoted(value)}")
    return value


def no_group(where: str) -> RuntimeError:
    return RuntimeError(
        f"{where}: group= takes plain tensors, and no compiled, traced or transformed code, nor the backend 'aten'"
    )


def uneven(op: str, seen: Sequence[tuple[int, int, torch.dtype]]) -> ValueError:
    listed = ", ".join(f"({n}, {d}) {dtype}" for n, d, dtype in seen)
    return ValueError(f"{op}(): every process of a group must give features of one shape and dtype, got {listed}")


def unequal(op: str, seen: Sequence[float]) -> ValueError:
    listed = ", ".join(f"{value:g}" for value in seen)
    return ValueError(f"{op}(): backward must get the same gradient in every process of a group, got {listed}")


def twice(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}(): its gradients are computed with the loss and cannot be differentiated again; "
        "sigtorch.use_backend('aten') gives a formula that can"
    )
