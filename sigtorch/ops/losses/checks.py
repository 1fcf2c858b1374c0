"""Every error a user of the losses can meet, each one line that quotes what was seen."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from sigtorch import _backend, _checks

REDUCTIONS = ("none", "mean", "sum")
MASKS = (torch.bool, torch.uint8)


def right(input: Any, target: Any, reduction: Any, *weights: Any) -> bool:
    """Whether these are what most calls give, and right: what follows explains what is not, or looks closer."""
    if type(reduction) is not str or reduction not in REDUCTIONS:
        return False
    if type(input) not in _backend.PLAIN_TYPES or type(target) not in _backend.PLAIN_TYPES:
        return False
    if input.dtype not in _checks.FLOATS or target.device != input.device:
        return False
    for w in weights:
        if w is not None:
            return False
    if target.dtype == torch.int64:
        return input.dim() > 0 and target.shape == input.shape[:-1] and input.shape[-1] >= 2
    return target.shape == input.shape and (target.dtype in _checks.FLOATS or target.dtype in MASKS)


def right_numbers(alpha: Any, gamma: Any, background_index: Any, normalizer: Any, reduction: Any) -> bool:
    """The same of a focal loss' numbers."""
    if type(alpha) is not float or not 0 <= alpha <= 1 or type(gamma) is not float or not 0 <= gamma < math.inf:
        return False
    if type(background_index) is not int or not -(2**63) <= background_index < 2**63:
        return False
    return normalizer is None or (type(normalizer) is float and 0 < normalizer < math.inf and reduction != "mean")


def tensors(where: str, **arguments: Any) -> None:
    """Tensors alone, whatever else overrides torch functions knows nothing of these; and all of them where the first is."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            raise _checks.no_tensor(where, name, value)
    if torch.compiler.is_compiling():
        return
    first, *others = arguments.values()  # the logits are where the loss is
    if not all(reaches(t, first) for t in others):
        raise _checks.several_devices(where, **arguments)


def pytorch_takes(input: Any, target: Any, weight: Any, reduction: Any, pos_weight: Any) -> bool:
    """Whether PyTorch's own loss would take these, too: all else is left to that, for its own answer or error."""
    if not isinstance(input, torch.Tensor) or not isinstance(target, torch.Tensor):
        return False
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        return False
    if not input.is_floating_point() or not target.is_floating_point() or target.shape != input.shape:
        return False
    for t in (target, weight, pos_weight):
        if t is None:
            continue
        if not isinstance(t, torch.Tensor) or t.is_complex() or not fits(t, input) or not reaches(t, input):
            return False
    return True


def torchvision_takes(alpha: Any, gamma: Any) -> bool:
    """Whether these mean to torchvision what they mean here: it takes any number, and tensors."""
    numbers = isinstance(alpha, (int, float)) and isinstance(gamma, (int, float))
    return numbers and (0 <= alpha <= 1 or alpha == -1) and 0 <= gamma < float("inf")


def reduction(value: object, where: str) -> None:
    _checks.choice(where, "reduction", value, REDUCTIONS)


def legacy(where: str, size_average: object, reduce: object) -> None:
    if size_average is not None or reduce is not None:
        raise ValueError(
            f"{where}: size_average={size_average!r} and reduce={reduce!r} are not supported, give a reduction instead"
        )


def label_smoothing(value: Any, where: str) -> None:
    _checks.number(where, label_smoothing=value)
    if _readable(value) and not 0 <= value <= 1:
        raise ValueError(f"{where}: label_smoothing must lie in [0, 1], got {value!r}")


def focal(alpha: Any, gamma: Any, background_index: Any, where: str) -> int:
    """Gives background_index as Python's number."""
    _checks.number(where, alpha=alpha, gamma=gamma)
    background_index = _checks.whole(where, "background_index", background_index)
    if _readable(alpha) and not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"{where}: alpha must lie in [0, 1], or be -1 for no weighting, got {alpha!r}")
    if _readable(gamma) and not 0 <= gamma <= sys.float_info.max:
        raise ValueError(f"{where}: gamma must be finite and at least 0, got {gamma!r}")
    _fits(where, "background_index", background_index)
    return background_index


def _fits(where: str, name: str, index: int) -> None:
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"{where}: {name} must fit into 64 bits, got {index}")


def ignore_index(value: Any, where: str) -> int | None:
    """Gives it as Python's number, where there is one."""
    if value is None:
        return None
    value = _checks.whole(where, "ignore_index", value)
    _fits(where, "ignore_index", value)
    return int(value)


def apart(where: str, target: torch.Tensor, background_index: int, ignore_index: int | None) -> None:
    if target.dtype == torch.int64 and background_index == ignore_index:
        raise ValueError(f"{where}: background_index and ignore_index must differ, got {ignore_index} for both")


def ignorable(value: int | None, dtype: torch.dtype) -> int | None:
    """The number, if a target of this dtype can be that."""
    if value is None or dtype == torch.int64:
        return value
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        digits = round(1 - math.log2(info.eps))
        held = abs(value) <= info.max and value % 2 ** max(0, value.bit_length() - digits) == 0
    else:
        held = 0 <= value <= (1 if dtype == torch.bool else 255)
    return value if held else None


def normalizer(value: Any, reduction: str, where: str) -> None:
    if value is None:
        return
    _checks.number(where, normalizer=value)
    if reduction == "mean":
        raise ValueError(f"{where}: normalizer={value!r} cannot divide reduction='mean', which divides by the count")
    if isinstance(value, torch.Tensor):
        if not looked_at(value):
            return
        value = value.item()
    # Of a number that is being traced, a compiler can be asked no more than this.
    if not value > 0 or (not torch.compiler.is_compiling() and value > sys.float_info.max):
        raise ValueError(f"{where}: normalizer must be positive and finite, got {value}")


def _readable(value: Any) -> bool:
    """Whether a number's value can be looked at: not a tensor's that is transformed, traced, or has none."""
    return not isinstance(value, torch.Tensor) or _backend.readable(value)


def class_dim(value: Any, where: str, name: str, x: Any) -> int:
    """Gives it as Python's number, at least 0, or -1 for the last dimension."""
    value = int(_checks.whole(where, "class_dim", value))
    dims = x.dim() if isinstance(x, torch.Tensor) else 0
    if not -max(dims, 1) <= value < max(dims, 1):
        raise ValueError(f"{where}: class_dim={value} is not one of {name}, whose shape is {tuple(x.shape)}")
    value %= max(dims, 1)
    return -1 if value >= dims - 1 else value


def target(where: str, names: tuple[str, str], x: torch.Tensor, target: torch.Tensor, class_dim: int) -> None:
    _checks.floating(where, names[0], x)
    if target.dtype == torch.int64:
        if not x.dim() or target.shape != x.shape[:class_dim] + x.shape[class_dim:][1:]:
            which = "last dimension" if class_dim == -1 else f"class_dim={class_dim}"
            raise ValueError(
                f"{where}: class indices for {names[0]} of shape {tuple(x.shape)} must lack its {which}, "
                f"got {names[1]} of shape {tuple(target.shape)}; for 0 or 1 an element give {names[1]}.to({names[0]}.dtype)"
            )
        if x.shape[class_dim] < 2:  # of one class, the index 0 would be the positive and 1 no class: labels upside down
            raise ValueError(
                f"{where}: class indices need two classes or more, got {names[0]} of shape {tuple(x.shape)}; "
                f"for 0 or 1 a row give {names[1]}.unsqueeze({class_dim}).to({names[0]}.dtype)"
            )
        return
    if target.dtype not in _checks.FLOATS and target.dtype not in MASKS:
        raise TypeError(
            f"{where}: {names[1]} must be floating point of 16 bits or more, bool, uint8 or int64 class indices, "
            f"got {target.dtype}"
        )
    if target.shape != x.shape:
        raise ValueError(
            f"{where}: {names[1]} must have the shape of {names[0]}, {tuple(x.shape)}, got {tuple(target.shape)}"
        )


def mask(where: str, name: str, target: torch.Tensor, ignore_index: int | None) -> None:
    """Refuses a uint8 above 1, where that can be seen for nothing: images store masks of 0 and 255."""
    if not target.numel() or not looked_at(target):
        return
    highest = int(target.max())
    if highest > 1 and highest == ignore_index:
        highest = int(target.masked_fill(target == ignore_index, 0).max())
    if highest > 1:
        raise ValueError(
            f"{where}: {name} of torch.uint8 holds {highest}, expected 0 and 1; give {name} > 0 for a mask"
            + (f", or ignore_index={highest}" if ignore_index is None else "")
        )


def looked_at(t: torch.Tensor) -> bool:
    """Whether t's values can be seen for nothing: on a device, looking would stall; traced, there is nothing to look at."""
    return t.device.type == "cpu" and _backend.readable(t)


def classes(
    where: str, name: str, target: torch.Tensor, count: int, background_index: int, ignore_index: int | None, none: str
) -> None:
    """Refuses an index out of range, where that can be seen for nothing; none is how a caller says "no class"."""
    if not target.numel() or not looked_at(target):
        return
    low, high = (int(v) for v in target.aminmax())
    if low >= 0 and high <= count:
        return
    wrong = target[((target < 0) | (target > count)) & (target != background_index)]
    if ignore_index is not None:
        wrong = wrong[wrong != ignore_index]
    if wrong.numel():
        index = int(wrong[0])
        advice = (
            f"; ignore_index={index} leaves it out" if ignore_index is None else f", or ignore_index={ignore_index}"
        )
        raise ValueError(
            f"{where}: {name} holds class {index}, expected 0 to {count - 1}, or {count} or {none} for no class{advice}"
        )


def broadcasts(where: str, x: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    for name, t in tensors.items():
        if t is None:
            continue
        if t.is_complex():
            raise TypeError(f"{where}: {name} must be real, got {t.dtype}")
        if t.is_floating_point():
            _checks.floating(where, name, t)
        if not fits(t, x):
            raise ValueError(f"{where}: {name} of shape {tuple(t.shape)} does not broadcast to {tuple(x.shape)}")


def reaches(t: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether t is where x is; a 0-d CPU tensor goes anywhere."""
    return t.device == x.device or (not t.dim() and t.device.type == "cpu")


def fits(t: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether t broadcasts to the shape of x."""
    fitting = t.dim() <= x.dim()
    for i in range(1, min(t.dim(), x.dim()) + 1):  # a plain loop: Dynamo in torch 2.8 inlines neither any() nor zip()
        fitting = fitting and t.shape[-i] in (x.shape[-i], 1)
    return fitting
