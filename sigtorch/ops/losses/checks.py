"""Argument checks of the losses: each error is one line that quotes what was seen."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sigtorch import _checks, _eligible

if TYPE_CHECKING:
    from sigtorch.ops.losses.dice import Dice
    from sigtorch.ops.losses.loss import Factors, Loss

MASKS = (torch.bool, torch.uint8)


def is_common(input: Any, target: Any, reduction: Any, *weights: Any) -> bool:
    """Tells whether these are right, of the kinds that most calls give; all others are checked one by one."""
    if type(reduction) is not str or reduction not in _checks.REDUCTIONS:
        return False
    if type(input) not in _eligible.PLAIN_TYPES or type(target) not in _eligible.PLAIN_TYPES:
        return False
    if input.dtype not in _checks.FLOATS or target.device != input.device:
        return False
    for w in weights:
        if w is not None:
            return False
    if target.dtype == torch.int64:
        return input.dim() > 0 and target.shape == input.shape[:-1] and input.shape[-1] >= 2
    return target.shape == input.shape and (target.dtype in _checks.FLOATS or target.dtype in MASKS)


def are_common_numbers(alpha: Any, gamma: Any, background_index: Any, normalizer: Any, reduction: Any) -> bool:
    """Tells the same of a focal loss' numbers."""
    if type(alpha) is not float or not 0 <= alpha <= 1 or type(gamma) is not float or not 0 <= gamma < math.inf:
        return False
    if type(background_index) is not int or not -(2**63) <= background_index < 2**63:
        return False
    return normalizer is None or (type(normalizer) is float and 0 < normalizer < math.inf and reduction != "mean")


def pytorch_takes(input: Any, target: Any, weight: Any, reduction: Any, pos_weight: Any) -> bool:
    """Tells whether PyTorch's own loss takes these too; it gets all other calls, for its own answer or error."""
    if not isinstance(input, torch.Tensor) or not isinstance(target, torch.Tensor):
        return False
    if not isinstance(reduction, str) or reduction not in _checks.REDUCTIONS:
        return False
    if not input.is_floating_point() or not target.is_floating_point() or target.shape != input.shape:
        return False
    for t in (target, weight, pos_weight):
        if t is None:
            continue
        if not isinstance(t, torch.Tensor) or t.is_complex() or not broadcasts_to(t, input) or not goes_with(t, input):
            return False
    return True


def torchvision_takes(alpha: Any, gamma: Any) -> bool:
    """Tells whether these mean the same to torchvision, which takes any number, and tensors."""
    are_numbers = isinstance(alpha, (int, float)) and isinstance(gamma, (int, float))
    return are_numbers and (0 <= alpha <= 1 or alpha == -1) and 0 <= gamma < float("inf")


def check_reduction(where: str, value: object) -> None:
    _checks.check_choice(where, "reduction", value, _checks.REDUCTIONS)


def check_legacy(where: str, size_average: object, reduce: object) -> None:
    if size_average is not None or reduce is not None:
        seen = f"size_average={_checks.quoted(size_average)} and reduce={_checks.quoted(reduce)}"
        raise ValueError(f"{where}: {seen} are not supported, give a reduction instead")


def check_label_smoothing(where: str, value: Any) -> None:
    _checks.check_number(where, label_smoothing=value)
    if _has_known_value(value) and not 0 <= value <= 1:
        raise ValueError(f"{where}: label_smoothing must lie in [0, 1], got {value!r}")


def check_alpha_and_gamma(where: str, alpha: Any, gamma: Any) -> None:
    _checks.check_number(where, alpha=alpha, gamma=gamma)
    if _has_known_value(alpha) and not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"{where}: alpha must lie in [0, 1], or be -1 for no weighting, got {alpha!r}")
    if _has_known_value(gamma) and not _is_exponent(gamma):
        raise ValueError(f"{where}: gamma must be finite and at least 0, got {gamma!r}")


def check_setting(where: str, name: str, value: Any, below: float = math.inf) -> float:
    """Returns a finite number that is at least 0 and below a bound; no tensor, for nothing would differentiate it."""
    if isinstance(value, torch.Tensor):
        raise TypeError(f"{where}: {name} must be a Python number, got {type(value).__name__}; give {name}.item()")
    if type(value) is not float:
        _checks.check_number(where, **{name: value})
    if not _is_exponent(value) or not value < below:
        allowed = "finite and at least 0" if below == math.inf else f"at least 0 and below {below:g}"
        raise ValueError(f"{where}: {name} must be {allowed}, got {value!r}")
    return torch.sym_float(value)  # type: ignore[no-any-return]


def _is_exponent(value: Any) -> bool:
    """Tells whether a number is at least 0, and finite as a Python float; NumPy compares in the precision of its number."""
    return 0 <= value <= sys.float_info.max if isinstance(value, int) else 0 <= value < math.inf


def check_index(where: str, name: str, value: Any) -> int:
    """Returns it as a Python number."""
    index = int(_checks.check_whole(where, name, value))
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"{where}: {name} must fit into 64 bits, got {index}")
    return index


def check_indices_differ(where: str, target: torch.Tensor, background_index: int, ignore_index: int | None) -> None:
    if target.dtype == torch.int64 and background_index == ignore_index:
        raise ValueError(
            f"{where}: background_index and ignore_index must differ, got {ignore_index} for both; "
            "for class indices without a background give another background_index"
        )


def ignorable(value: int | None, dtype: torch.dtype) -> int | None:
    """Returns the number if a target of this dtype can hold it, else None."""
    if value is None or dtype == torch.int64:
        return value
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        digits = round(1 - math.log2(info.eps))
        can_hold = abs(value) <= info.max and value % 2 ** max(0, value.bit_length() - digits) == 0
    else:
        can_hold = 0 <= value <= (1 if dtype == torch.bool else 255)
    return value if can_hold else None


def check_normalizer(where: str, value: Any, reduction: str) -> None:
    if value is None:
        return
    _checks.check_number(where, normalizer=value)
    if reduction == "mean":
        raise ValueError(f"{where}: normalizer={value!r} cannot divide reduction='mean', which divides by the count")
    if isinstance(value, torch.Tensor):
        if not can_look_at(value):
            return
        value = value.item()
    # A compiler cannot answer more about a number that it traces.
    if not value > 0 or (not torch.compiler.is_compiling() and value > sys.float_info.max):
        raise ValueError(f"{where}: normalizer must be positive and finite, got {value}")


def _has_known_value(value: Any) -> bool:
    """Tells whether a number's value can be read: not that of a tensor that is transformed, traced, or without data."""
    return not isinstance(value, torch.Tensor) or _eligible.readable(value)


class Indices(NamedTuple):
    """The dimension of the classes, and the class indices with a meaning of their own."""

    dim: int = -1
    background_index: int = -1
    ignore_index: int | None = None


LAST_DIMENSION = Indices()


def check_call(
    where: str,
    both: dict[str, torch.Tensor],
    reduction: str,
    indices: Indices = LAST_DIMENSION,
    *,
    weight: torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
    **numbers: Any,
) -> Indices:
    """Checks the arguments that all losses take: both, the logits and the target by their names, and what goes with them.

    Returns the indices as Python numbers, ignore_index as None if no target can hold it.
    """
    check_reduction(where, reduction)
    background_index = check_index(where, "background_index", indices.background_index)
    ignore_index = indices.ignore_index
    if ignore_index is not None:
        ignore_index = check_index(where, "ignore_index", ignore_index)
    weights = {name: t for name, t in (("weight", weight), ("pos_weight", pos_weight)) if t is not None}
    scalars = {name: t for name, t in numbers.items() if isinstance(t, torch.Tensor)}
    _check_one_device(where, **both, **weights, **scalars)
    (input_name, input), (target_name, target) = both.items()
    dim = check_dim(where, indices.dim, input_name, input)
    check_target(where, (input_name, target_name), input, target, dim)
    check_broadcasts(where, input, **weights)
    check_indices_differ(where, target, background_index, ignore_index)
    return Indices(dim, background_index, ignorable(ignore_index, target.dtype))


def check_weights(where: str, **weights: Any) -> None:
    """Refuses a module's weight that is no tensor; None is none."""
    _checks.check_tensors(where, **{name: t for name, t in weights.items() if t is not None})


def _check_one_device(where: str, **arguments: Any) -> None:
    """Takes tensors alone, not other types that override torch functions, on the device of the first, the logits."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            raise _checks.error_no_tensor(where, name, value)
    if torch.compiler.is_compiling():
        return
    first, *others = arguments.values()
    if not all(goes_with(t, first) for t in others):
        raise _checks.error_several_devices(where, **arguments)


def check_dim(where: str, value: Any, name: str, x: Any) -> int:
    """Returns it as a Python number, at least 0, or -1 for the last dimension."""
    value = int(_checks.check_whole(where, "dim", value))
    dims = x.dim() if isinstance(x, torch.Tensor) else 0
    if not -max(dims, 1) <= value < max(dims, 1):
        raise ValueError(f"{where}: dim={value} is not one of {name}, whose shape is {tuple(x.shape)}")
    value %= max(dims, 1)
    return -1 if value >= dims - 1 else value


def check_target(where: str, names: tuple[str, str], x: torch.Tensor, target: torch.Tensor, dim: int) -> None:
    _checks.check_floating(where, names[0], x)
    if target.dtype == torch.int64:
        if not x.dim() or target.shape != x.shape[:dim] + x.shape[dim:][1:]:
            which = "last dimension" if dim == -1 else f"dim={dim}"
            raise ValueError(
                f"{where}: class indices for {names[0]} of shape {tuple(x.shape)} must lack its {which}, "
                f"got {names[1]} of shape {tuple(target.shape)}; for 0 or 1 an element give {names[1]}.to({names[0]}.dtype)"
            )
        if x.shape[dim] < 2:  # with one class, the index 0 would be the positive and 1 no class: labels upside down
            raise ValueError(
                f"{where}: class indices need two classes or more, got {names[0]} of shape {tuple(x.shape)}; "
                f"for 0 or 1 a row give {names[1]}.unsqueeze({dim}).to({names[0]}.dtype)"
            )
        return
    check_dense_target(where, names, x, target, "bool, uint8 or int64 class indices")


def check_dense_target(where: str, names: tuple[str, str], x: torch.Tensor, target: torch.Tensor, others: str) -> None:
    """Refuses other dtypes than floats and masks, and another shape than the logits'; others is what an error lists."""
    _checks.check_floating(where, names[0], x)
    if target.dtype not in _checks.FLOATS and target.dtype not in MASKS:
        raise TypeError(f"{where}: {names[1]} must be floating point of 16 bits or more, {others}, got {target.dtype}")
    if target.shape != x.shape:
        raise ValueError(
            f"{where}: {names[1]} must have the shape of {names[0]}, {tuple(x.shape)}, got {tuple(target.shape)}"
        )


def check_dense_call(where: str, both: dict[str, torch.Tensor], reduction: str) -> None:
    """Checks the arguments of a loss without class indices: both, the logits and the target by their names."""
    check_reduction(where, reduction)
    _check_one_device(where, **both)
    (input_name, input), (target_name, target) = both.items()
    if target.dtype == torch.int64:
        hint = f"{target_name}.to({input_name}.dtype)"
        if target.shape != input.shape:
            hint = (
                f"torch.nn.functional.one_hot of class indices, with its last dimension moved to {input_name}'s classes"
            )
        raise TypeError(f"{where}: {target_name} must be floating point, bool or uint8, got torch.int64; give {hint}")
    check_dense_target(where, (input_name, target_name), input, target, "bool or uint8")


def check_sums(where: str, sums: torch.Tensor, shape: list[int]) -> None:
    """Refuses sums that forward did not return for these arguments."""
    if list(sums.shape) != shape:
        raise ValueError(
            f"{where}: sums must be those that forward returned, of shape {shape}, got {tuple(sums.shape)}"
        )


def check_mask(loss: Loss | Dice, target: torch.Tensor) -> None:
    """Refuses a mask with a number above 1, where looking costs no wait: images store masks of 0 and 255."""
    if target.dtype != torch.uint8 or not target.numel() or not can_look_at(target):
        return
    name, highest = loss.target_name, int(target.max())
    if highest > 1 and highest == loss.ignore_index:
        highest = int(target.masked_fill(target == loss.ignore_index, 0).max())
    if highest > 1:
        raise ValueError(
            f"{loss.function}(): {name} of torch.uint8 holds {highest}, expected 0 and 1; give {name} > 0 for a mask"
            + (f", or ignore_index={highest}" if loss.takes_indices and loss.ignore_index is None else "")
        )


def check_operands(where: str, loss: Loss, x: torch.Tensor, target: torch.Tensor, factors: Factors) -> None:
    """Refuses what a public function refuses before it calls an operator, whose callers may be others."""
    check_reduction(where, loss.reduction)
    loss.check_numbers(where)
    check_target(where, (loss.input_name, loss.target_name), x, target, -1)
    check_broadcasts(where, x, weight=factors.weight, pos_weight=factors.pos_weight)
    if factors.normalizer is not None:
        _checks.check_number(where, normalizer=factors.normalizer)
        if loss.divisor is not None:
            raise ValueError(f"{where}: give normalizer or divisor, not both")


def error_mean_divided(where: str) -> ValueError:
    return ValueError(f"{where}: reduction='mean' divides by the count, not by a normalizer or divisor")


def error_no_count(where: str) -> ValueError:
    return ValueError(
        f"{where}: reduction='mean' with ignore_index takes the count that forward returned as its normalizer"
    )


def check_scaled(where: str, gradient: torch.Tensor, grad: torch.Tensor, count: torch.Tensor | None) -> None:
    """Checks what ``scale_loss_gradient_`` is given."""
    if not torch.ops.aten.is_non_overlapping_and_dense(gradient):
        raise ValueError(
            f"{where}: gradient must be dense, got strides {gradient.stride()} for {tuple(gradient.shape)}"
        )
    if gradient.requires_grad:
        raise ValueError(f"{where}: gradient is written to, and must not require a gradient itself")
    for name, t in (("grad", grad), ("count", count)):
        if t is None:
            continue
        if t.dim() or not t.is_floating_point():
            raise ValueError(f"{where}: {name} must be a floating scalar, got {t.dtype} of shape {tuple(t.shape)}")
        if t.device != gradient.device:
            raise ValueError(f"{where}: {name} must be on {gradient.device}, as gradient is, got {t.device}")


def check_values(loss: Loss, input: torch.Tensor, target: torch.Tensor) -> None:
    """Refuses a mask or a class index out of range, where looking costs no wait."""
    if target.dtype == torch.int64:
        check_classes(loss, target, input.shape[loss.dim])
    else:
        check_mask(loss, target)


def can_look_at(t: torch.Tensor) -> bool:
    """Tells whether t's values can be read without a wait: not on a device, and not where t is traced or transformed."""
    return t.device.type == "cpu" and _eligible.readable(t)


def check_classes(loss: Loss, target: torch.Tensor, count: int) -> None:
    """Refuses an index out of range, where looking costs no wait."""
    if not target.numel() or not can_look_at(target):
        return
    low, high = (int(v) for v in target.aminmax())
    if low >= 0 and high <= count:
        return
    wrong = target[((target < 0) | (target > count)) & (target != loss.background_index)]
    if loss.ignore_index is not None:
        wrong = wrong[wrong != loss.ignore_index]
    if wrong.numel():
        index = int(wrong[0])
        none, advice = f"{count} or {loss.background_index}", ""
        if loss.takes_indices:
            none = f"{count} or background_index={loss.background_index}"
            left_out = f"; ignore_index={index} leaves it out"
            advice = left_out if loss.ignore_index is None else f", or ignore_index={loss.ignore_index}"
        raise ValueError(
            f"{loss.function}(): {loss.target_name} holds class {index}, expected 0 to {count - 1}, "
            f"or {none} for no class{advice}"
        )


def check_broadcasts(where: str, x: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    for name, t in tensors.items():
        if t is None:
            continue
        if t.is_complex():
            raise TypeError(f"{where}: {name} must be real, got {t.dtype}")
        if t.is_floating_point():
            _checks.check_floating(where, name, t)
        if not broadcasts_to(t, x):
            raise ValueError(f"{where}: {name} of shape {tuple(t.shape)} does not broadcast to {tuple(x.shape)}")


def goes_with(t: torch.Tensor, x: torch.Tensor) -> bool:
    """Tells whether t is on the device of x, or a 0-d CPU tensor, which goes with any."""
    return t.device == x.device or (not t.dim() and t.device.type == "cpu")


def broadcasts_to(t: torch.Tensor, x: torch.Tensor) -> bool:
    """Tells whether t broadcasts to the shape of x."""
    fitting = t.dim() <= x.dim()
    for i in range(1, min(t.dim(), x.dim()) + 1):  # a plain loop: Dynamo in torch 2.8 inlines neither any() nor zip()
        fitting = fitting and t.shape[-i] in (x.shape[-i], 1)
    return fitting
