"""Argument checks of these losses, ``check_``, and makers of their errors, ``error_``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._C._functorch import get_unwrapped, is_gradtrackingtensor

from sigtorch import _checks, _eligible


class CSR(NamedTuple):
    """Indices of a sparse matrix: row pointers, and the column of each positive."""

    crow: torch.Tensor
    col: torch.Tensor


def check_features(where: str, image: torch.Tensor, text: torch.Tensor) -> None:
    if image.dim() != 2 or text.dim() != 2 or not _same(image.shape, text.shape):
        seen = f"image_features {tuple(image.shape)}, text_features {tuple(text.shape)}"
        raise ValueError(f"{where}: features must have one shape (n, d), got {seen}")
    if not _some(image.shape[0]):
        raise ValueError(f"{where}: there are no pairs, got features of shape {tuple(image.shape)}")


def check_floating(where: str, **arguments: Any) -> None:
    """Refuses all but floating tensors on one device."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            raise _checks.error_no_tensor(where, name, value)
        _checks.check_floating(where, name, value)
    _checks.check_one_device(where, **arguments)


def check_dtensors(where: str, target: Sequence[torch.Tensor] = (), /, **arguments: Any) -> None:
    """Explains why a formula failed, if that is because of DTensors beside other tensors; 0-d tensors do not count."""
    given = {name: t for name, t in arguments.items() if isinstance(t, torch.Tensor)}
    every = [*given.values(), *target]
    plain = [t for t in every if not hasattr(t, "device_mesh")]
    if len(plain) < len(every) and (len(target) > 1 or any(t.dim() for t in plain)):
        seen = [f"{name} {type(t).__name__}" for name, t in given.items()]
        seen += [f"target {type(t).__name__}" for t in target]
        matrix = ", target too, as a bool matrix" if target else ""
        raise TypeError(f"{where}: a DTensor goes with DTensors alone{matrix}, got {', '.join(seen)}") from None


def check_scalar(where: str, like: torch.Tensor, name: str, value: Any) -> Any:
    """Returns a tensor of one element unchanged, and a number as a float, or as a symbol in a trace."""
    if not isinstance(value, torch.Tensor):
        _checks.check_number(where, **{name: value})
        try:
            return torch.sym_float(value)
        except OverflowError:
            raise ValueError(f"{where}: {name} must fit into a float, got {value}") from None
    check_floating(where, **{name: value})
    if not _same((value.numel(),), (1,)):
        raise ValueError(f"{where}: {name} must be a scalar, got shape {tuple(value.shape)}")
    if value.device != like.device and (value.dim() or value.device.type != "cpu"):
        raise _checks.error_several_devices(where, image_features=like, **{name: value})
    return value


def check_chunk_size(where: str, value: Any) -> int | None:
    if value is None:
        return None
    value = _checks.check_whole(where, "chunk_size", value)
    if isinstance(value, bool):
        raise TypeError(f"{where}: chunk_size must be a whole number, got bool")
    if value < 1:
        raise ValueError(f"{where}: chunk_size must be at least 1, got {value}")
    return int(value)


def check_group(where: str, value: object) -> None:
    """Refuses all but None and a process group that this process belongs to."""
    distributed = torch.distributed
    if value is None:
        return
    if not distributed.is_available() or not isinstance(value, distributed.ProcessGroup):
        raise TypeError(f"{where}: group must be a ProcessGroup that this process is in, got {_checks.quoted(value)}")


def error_group(where: str) -> RuntimeError:
    return RuntimeError(
        f"{where}: group= takes plain tensors, and no compiled, traced or transformed code, nor the backend 'aten'"
    )


def error_group_device(where: str, device: torch.device, of_group: Sequence[str]) -> ValueError:
    return ValueError(f"{where}: the group sends from {' and '.join(of_group)}, got tensors on {device}")


def error_refused(where: str, ranks: Sequence[int]) -> RuntimeError:
    named = "process" if len(ranks) == 1 else "processes"
    return RuntimeError(
        f"{where}: {named} {', '.join(map(str, ranks))} of the group refused the arguments, and says why"
    )


def error_disagreeing(where: str, seen: Sequence[str]) -> ValueError:
    return ValueError(
        f"{where}: every process of a group must give inputs of one shape, one dtype and one reduction, got {', '.join(seen)}"
    )


def error_other_inputs(where: str, rank: int) -> ValueError:
    return ValueError(f"{where}: every process of a group must give the same inputs, process {rank} has others than 0")


def error_no_labels(where: str) -> ValueError:
    return ValueError(f"{where}: there are no labels in any process of the group")


def error_weights_differentiated(where: str) -> RuntimeError:
    return RuntimeError(f"{where}: pos_weight gets no gradient in a group, got one that requires it")


def error_uneven(where: str, seen: Sequence[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]) -> ValueError:
    listed = ", ".join(f"{u} {dtype}" if u == v else f"{u} with {v} {dtype}" for u, v, dtype in seen)
    return ValueError(f"{where}: every process of a group must give features of one shape and dtype, got {listed}")


def error_unequal(op: str, seen: Sequence[float]) -> ValueError:
    listed = ", ".join(f"{value:g}" for value in seen)
    return ValueError(f"{op}(): backward must get the same gradient in every process of a group, got {listed}")


def error_taken(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}(): an earlier backward has taken the gradients; give that one retain_graph=True to call another"
    )


def error_no_target(op: str) -> ValueError:
    return ValueError(f"torch.ops.sigtorch.{op}: give either target, or crow_indices and col_indices")


def error_not_needed(op: str, name: str) -> RuntimeError:
    return RuntimeError(
        f"torch.ops.sigtorch.{op}: {name} is differentiated, but needs_grad has not asked for its gradient"
    )


def error_twice(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}(): its gradients are computed with the loss and cannot be differentiated again; "
        "under `with sigtorch.use_backend('aten'):` a formula runs that can"
    )


# Sizes, which are symbols in a trace: an export checks them at once, or when they are known; torch.jit.trace cannot.


def _same(sizes: Sequence[int], others: Sequence[int]) -> bool:
    return len(sizes) == len(others) and all(_holds(operator.eq, a, b) for a, b in zip(sizes, others, strict=True))


def _some(size: int) -> bool:
    return _holds(operator.gt, size, 0)


def _broadcasts(sizes: Sequence[int], to: Sequence[int]) -> bool:
    """Tells whether a shape of at most one dimension broadcasts."""
    if not sizes or torch._C._get_tracing_state() is not None:
        return len(sizes) <= 1
    return tuple(sizes) == (1,) or _same(sizes, to)


def _holds(compare: Callable[[Any, Any], Any], a: int, b: int) -> bool:
    if torch._C._get_tracing_state() is not None:
        return True
    holds = compare(a, b)
    if isinstance(holds, torch.SymBool):
        torch._check(holds)
        return True
    return holds


# Linear layers.


def check_layer(where: str, input: Any, weight: Any, bias: Any, pos_weight: Any, alone: bool = True) -> None:
    """Refuses what is no linear layer; if it is not alone, but has a share of the labels, it may have none."""
    given = {"input": input, "linear_weight": weight, "linear_bias": bias, "pos_weight": pos_weight}
    check_floating(
        where, **{name: t for name, t in given.items() if t is not None or name in ("input", "linear_weight")}
    )
    if input.dim() != 2 or weight.dim() != 2 or not _same(input.shape[1:], weight.shape[1:]):
        seen = f"input {tuple(input.shape)}, linear_weight {tuple(weight.shape)}"
        raise ValueError(f"{where}: input must have shape (N, D) and linear_weight (L, D), got {seen}")
    if not _some(input.shape[0]) or (alone and not _some(weight.shape[0])):
        seen = f"input {tuple(input.shape)}, linear_weight {tuple(weight.shape)}"
        raise ValueError(f"{where}: there are no samples or no labels, got {seen}")
    labels = weight.shape[:1]
    if bias is not None and not _same(bias.shape, labels):
        raise ValueError(f"{where}: linear_bias must have shape {tuple(labels)}, got {tuple(bias.shape)}")
    if pos_weight is not None and not _broadcasts(pos_weight.shape, labels):
        raise ValueError(
            f"{where}: pos_weight of shape {tuple(pos_weight.shape)} does not broadcast to {tuple(labels)}"
        )


def check_reduction(where: str, value: object) -> None:
    _checks.check_choice(where, "reduction", value, ("mean", "sum"))


def check_target(where: str, value: Any, input: torch.Tensor, labels: int) -> torch.Tensor | CSR:
    """Returns a bool matrix, or the indices of a CSR, whose values are not checked yet."""
    samples = input.shape[0]
    if isinstance(value, torch.Tensor) and value.layout == torch.sparse_csr:
        csr = _indices(where, value, samples, labels)
    elif isinstance(value, torch.Tensor):
        if value.dtype != torch.bool or value.layout != torch.strided:
            raise _error_target(where, f"{value.layout} of {value.dtype}")
        _check_matrix(where, value, samples, labels)
        _checks.check_one_device(where, input=input, target=value)
        return value
    elif isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(t, torch.Tensor) for t in value):
        csr = CSR(*value)
    else:
        raise _error_target(where, type(value).__name__)
    for name, t in zip(("crow_indices", "col_indices"), csr, strict=True):
        if t.dtype not in (torch.int32, torch.int64) or t.dim() != 1:
            raise TypeError(f"{where}: {name} must be one row of int32 or int64, got {t.dtype}, {tuple(t.shape)}")
    if not _same(csr.crow.shape, (samples + 1,)):
        raise ValueError(f"{where}: crow_indices must have {samples + 1} entries, got {len(csr.crow)}")
    _checks.check_one_device(where, input=input, crow_indices=csr.crow, col_indices=csr.col)
    return csr


def _indices(where: str, value: torch.Tensor, samples: int, labels: int) -> CSR:
    """Returns the indices of a CSR tensor, whose values are all 1."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise _error_csr(where)
    _check_matrix(where, value, samples, labels)
    try:
        crow, col, values = value.crow_indices(), value.col_indices(), value.values()
    except RuntimeError:  # under torch.func.grad and make_fx
        raise _error_csr(where) from None
    if values.requires_grad:
        raise ValueError(f"{where}: target gets no gradient, got a sparse CSR tensor that requires one")
    if readable(values) and not bool((values == 1).all()):
        raise ValueError(f"{where}: target must hold ones alone, got {values[values != 1][0]:g}")
    return CSR(crow, col)


def _error_csr(where: str) -> RuntimeError:
    return RuntimeError(
        f"{where}: exported, traced and transformed code takes no sparse CSR tensor; give its crow_indices() and "
        "col_indices() in a tuple"
    )


def readable(t: torch.Tensor) -> bool:
    """Tells whether a tensor's value can be read, also inside the wrapper that torch.func.grad puts around it."""
    while not torch.compiler.is_compiling() and is_gradtrackingtensor(t):
        t = get_unwrapped(t)
    return _eligible.readable(t)


def _error_target(where: str, seen: str) -> TypeError:
    return TypeError(
        f"{where}: target must be a bool matrix, a sparse CSR tensor or a tuple of its indices, got {seen}"
    )


def _check_matrix(where: str, value: torch.Tensor, samples: int, labels: int) -> None:
    if not _same(value.shape, (samples, labels)):
        raise ValueError(f"{where}: target must have shape ({samples}, {labels}), got {tuple(value.shape)}")


def is_formed(csr: CSR, labels: int) -> torch.Tensor:
    """Returns whether row pointers rise and labels are in range, on the tensors' device."""
    crow, col = csr
    rises = (crow[0] == 0) & (crow[-1] == len(col)) & (crow[1:] >= crow[:-1]).all()  # a difference may wrap
    return rises & ((col >= 0) & (col < labels)).all()


def check_csr(where: str, csr: CSR, samples: int, labels: int) -> torch.Tensor:
    """Returns label * samples + sample of each positive, sorted; refuses a malformed CSR. A GPU is waited for once."""
    crow, col = csr
    sample = samples_of(crow.long().contiguous(), 0, len(col), samples)
    key = sample.add_(col, alpha=samples).sort().values  # of a malformed one without a meaning, but no error
    twice = key[1:] == key[:-1]
    if is_formed(csr, labels) & ~twice.any():
        return key
    if not is_formed(csr, labels):
        raise _error_malformed(where, crow, col, labels)
    again = int(key[1:][twice][0])
    raise ValueError(f"{where}: sample {again % samples} names label {again // samples} twice")


def samples_of(crow: torch.Tensor, start: int, count: int, samples: int) -> torch.Tensor:
    """Returns the sample of so many positives from the start on; one in range whatever the row pointers are."""
    place = torch.arange(start, start + count, device=crow.device)
    return torch.searchsorted(crow, place, right=True).sub_(1).clamp_(0, samples - 1)


def _error_malformed(where: str, crow: torch.Tensor, col: torch.Tensor, labels: int) -> ValueError:
    first, last, falls = int(crow[0]), int(crow[-1]), (crow[1:] < crow[:-1]).nonzero().flatten()
    if first == 0 and last == len(col) and not len(falls):
        label = col[(col < 0) | (col >= labels)][0]
        return ValueError(f"{where}: target names label {int(label)}, expected 0 to {labels - 1}")
    seen = f"{first} to {last}"
    if len(falls):
        seen += f", with {int(crow[falls[0]])} before {int(crow[falls[0] + 1])}"
    return ValueError(f"{where}: crow_indices must rise from 0 to the {len(col)} col_indices, got {seen}")


def pairs(csr: CSR, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns label and sample of each positive, in the order of the CSR."""
    crow, col = csr
    every = torch.arange(samples, device=crow.device)
    return col.long(), torch.repeat_interleave(every, crow.diff(), output_size=col.shape[0])
