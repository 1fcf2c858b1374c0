"""Argument checks, ``check_``, and makers of errors, ``error_``: each error is one line that quotes what was seen."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, get_args

import torch

Backend = Literal["auto", "triton", "aten"]
Save = Literal["output", "input"]
Reduction = Literal["none", "mean", "sum"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
SAVES: tuple[Save, ...] = get_args(Save)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
# Functions whose call does not run their body.
DEFERRED: dict[str, Callable[[object], bool]] = {
    "coroutine function": inspect.iscoroutinefunction,
    "generator function": inspect.isgeneratorfunction,
    "async generator function": inspect.isasyncgenfunction,
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # a tuple: Dynamo in torch 2.8 looks into no set


def check_backend(where: str, name: object) -> Backend:
    """Returns the name."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{where}: unknown backend {quoted(name)}, expected one of {_listed(BACKENDS)}")
    return name  # type: ignore[return-value]


def check_decorated(where: str, function: object) -> None:
    """Refuses a function whose body would run after the call, and so outside of the block."""
    for kind, is_one in DEFERRED.items():
        if is_one(function):
            name = getattr(function, "__qualname__", type(function).__name__)
            raise TypeError(f"{where} cannot decorate the {kind} {name}; use a with block inside of it")


def error_entered_twice(where: str) -> RuntimeError:
    return RuntimeError(f"{where}: this block was entered before; call {where} anew for each block")


def error_backward_twice(op: str) -> RuntimeError:
    return RuntimeError(
        f"torch.ops.sigtorch.{op} cannot be differentiated; differentiate torch.ops.sigtorch.{op.removesuffix('_backward')} "
        "with create_graph=True"
    )


def check_save(where: str, value: object) -> None:
    check_choice(where, "save", value, SAVES)


def check_choice(where: str, name: str, value: object, among: Collection[str]) -> None:
    if not isinstance(value, str) or value not in among:
        raise ValueError(f"{where}: unknown {name}={quoted(value)}, expected one of {_listed(among)}")


def quoted(value: object) -> str:
    """Returns its repr in one line."""
    return " ".join(repr(value).split())


def shown(**options: Any) -> str:
    """A module's options for its repr; a tensor of several elements by its shape."""
    parts = []
    for name, value in options.items():
        if isinstance(value, torch.Tensor):
            value = f"Tensor{tuple(value.shape)}" if value.dim() else quoted(value.detach())
        else:
            value = quoted(value)
        parts.append(f"{name}={value}")
    return ", ".join(parts)


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_tensors(where: str, **arguments: Any) -> None:
    """Takes tensors, and other types that override torch functions."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) and not hasattr(type(value), "__torch_function__"):
            raise error_no_tensor(where, name, value)


def error_no_tensor(where: str, name: str, value: object) -> TypeError:
    return TypeError(f"{where}: {name} must be a Tensor, got {type(value).__name__}")


def check_floating(where: str, name: str, t: torch.Tensor) -> None:
    """Refuses a dtype that PyTorch does not compute in: it only stores and multiplies those of 8 bits."""
    if t.dtype not in FLOATS:
        raise TypeError(f"{where}: {name} must be floating point of 16 bits or more, got {t.dtype}")


def run_explained(
    where: str, formula: Callable[..., torch.Tensor], names: Sequence[str], given: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Runs the formula; where it fails, explains arguments that are no tensors, do not broadcast or are on several devices."""
    for t in given:
        if type(t) is not torch.Tensor:
            check_tensors(where, **dict(zip(names, given, strict=False)))
    # Comparing sizes would specialise compiled code, and a tracer warns of it: PyTorch reports the error there.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return formula(*given)
    try:
        return formula(*given)
    except (RuntimeError, TypeError):
        check_broadcastable(where, **dict(zip(names, given, strict=False)))
        raise


def check_broadcastable(where: str, **arguments: torch.Tensor) -> None:
    """Refuses shapes that do not broadcast; nested tensors have errors of their own."""
    plain = {k: t for k, t in arguments.items() if isinstance(t, torch.Tensor) and not t.is_nested}
    try:
        torch.broadcast_shapes(*(t.shape for t in plain.values()))
    except RuntimeError:
        seen = ", ".join(f"{k} {tuple(t.shape)}" for k, t in plain.items())
        raise ValueError(f"{where}: shapes do not broadcast: {seen}") from None
    check_one_device(where, **plain)


def check_one_device(where: str, **arguments: torch.Tensor) -> None:
    """Refuses tensors on several devices; a 0-d CPU tensor goes with any."""
    if len({t.device for t in arguments.values() if t.dim() or t.device.type != "cpu"}) > 1:
        raise error_several_devices(where, **arguments)


def error_several_devices(where: str, **arguments: torch.Tensor) -> ValueError:
    seen = ", ".join(f"{k} on {t.device}" for k, t in arguments.items())
    return ValueError(f"{where}: tensors on several devices: {seen}")


def check_number(where: str, **arguments: Any) -> None:
    """Takes real numbers: Python's, numpy's, traced ones and 0-d tensors."""
    for name, value in arguments.items():
        if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
            continue
        if not hasattr(type(value), "__float__"):
            raise TypeError(f"{where}: {name} must be a number, got {type(value).__name__}")
        if getattr(value, "shape", ()):
            raise ValueError(f"{where}: {name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
        dtype: Any = getattr(value, "dtype", None)
        if not isinstance(value, torch.Tensor):
            real = getattr(dtype, "kind", "f") in "biuf"
        elif value.layout != torch.strided:
            raise TypeError(f"{where}: {name} must be a number or a dense tensor, got {value.layout}")
        else:
            real = not value.is_complex() and not value.is_quantized
        if not real:
            raise TypeError(f"{where}: {name} must be a real number, got {dtype}")


def check_constant(where: str, hint: str = "", **arguments: Any) -> None:
    """Takes numbers that get no gradient, and no tensor that requires one."""
    check_number(where, **arguments)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise TypeError(f"{where}: {name} gets no gradient, but requires one{hint}")


def check_whole(where: str, name: str, value: Any) -> int:
    """Returns it as a Python number, or the traced number itself."""
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # a tensor without data raises the latter
        kind = quoted(value) if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(f"{where}: {name} must be a whole number, got {kind}") from None


def check_flag(where: str, name: str, value: Any) -> bool:
    """Takes True or False: any other value, such as a word, is more likely meant for another argument."""
    if type(value) is not bool:
        raise TypeError(f"{where}: {name} must be True or False, got {quoted(value)}")
    return value


def check_halves(where: str, name: str, x: torch.Tensor, dim: Any) -> int:
    """Takes a tensor whose dimension has an even size; returns dim as ``check_whole`` does."""
    if type(x) is not torch.Tensor:
        check_tensors(where, **{name: x})
    if type(dim) is not int:
        dim = check_whole(where, "dim", dim)
    if not isinstance(x, torch.Tensor) or x.is_nested or torch._C._get_tracing_state() is not None:
        return dim
    if not -(dims := x.dim()) <= dim < dims:
        raise ValueError(f"{where}: dim={dim} is not one of {name}, whose shape is {tuple(x.shape)}")
    odd: int | torch.SymInt = x.shape[dim] % 2
    if isinstance(odd, torch.SymInt):
        torch._check(odd == 0)  # now, or when the size is known
    elif odd:
        raise ValueError(f"{where}: dim={dim} must have an even size, got {name} of shape {tuple(x.shape)}")
    return dim


def check_whole_dims(where: str, value: Any) -> tuple[int, ...]:
    """Returns one dimension or several as Python numbers."""
    several = value if isinstance(value, (list, tuple)) else (value,)
    if not several:
        raise ValueError(f"{where}: dims must name a dimension to sum over, got {value!r}")
    return tuple([int(check_whole(where, "dims", d)) for d in several])


def check_dims(where: str, value: Any, name: str, x: torch.Tensor) -> tuple[int, ...]:
    """Returns the dimensions to sum over, at least 0 and ascending; all but the first two for None."""
    count = x.dim()
    if value is None:
        if count < 3:
            shape = tuple(x.shape)
            raise ValueError(
                f"{where}: {name} of shape {shape} has no third dimension to sum over; give dims, such as dims=-1"
            )
        return tuple(range(2, count))
    found: list[int] = []
    for d in check_whole_dims(where, value):
        if not -count <= d < count:
            raise ValueError(f"{where}: dims={value!r} are not all of {name}, whose shape is {tuple(x.shape)}")
        if d % count in found:
            raise ValueError(
                f"{where}: dims={value!r} name a dimension of {name} twice, whose shape is {tuple(x.shape)}"
            )
        found.append(d % count)
    return tuple(sorted(found))


def check_module(where: str, value: object) -> None:
    if not isinstance(value, torch.nn.Module):
        raise TypeError(f"{where}: model must be a Module, got {type(value).__name__}")


def error_class_changed(names: Collection[str]) -> RuntimeError:
    return RuntimeError(
        f"Patch.undo(): left as they are, for something else changed their class or forward since: {_listed(names)}"
    )


def error_lazy(name: str) -> ValueError:
    return ValueError(f"Patch.report(): the parameter or buffer {name!r} has no shape yet; run the model once before")


def error_gate_changed(called: object) -> RuntimeError:
    name = getattr(called, "__name__", type(called).__name__)
    return RuntimeError(
        f"patch(): what {name} was called with has changed in place before the product that uses the result; "
        "undo the patch of this module"
    )


def error_triton_missing(why: str) -> RuntimeError:
    return RuntimeError(f"backend 'triton' was asked for, but triton cannot be imported: {why}")


def error_triton_dtype(dtype: torch.dtype, taken: Collection[torch.dtype]) -> TypeError:
    return TypeError(f"backend 'triton' takes {', '.join(sorted(map(str, taken)))}, got {dtype}")


def error_triton_device(device: torch.device) -> ValueError:
    hint = "; set TRITON_INTERPRET=1 before the import to interpret kernels" if device.type == "cpu" else ""
    return ValueError(f"backend 'triton' cannot reach a tensor on {device}{hint}")


def error_triton_on_rocm() -> RuntimeError:
    return RuntimeError("backend 'triton' was asked for, but this PyTorch is built for ROCm, where no kernel was tried")


def error_triton_capability(device: torch.device, seen: tuple[int, int], least: tuple[int, int]) -> RuntimeError:
    return RuntimeError(
        f"backend 'triton' needs compute capability {least[0]}.{least[1]}, got {seen[0]}.{seen[1]} on {device}"
    )


def error_triton_fails(index: int, why: str) -> RuntimeError:
    return RuntimeError(f"backend 'triton' was asked for, but Triton fails on cuda:{index}: {why}")


def warning_triton_fails(index: int, why: str) -> str:
    return f"sigtorch runs PyTorch's operators on cuda:{index}, for Triton fails there: {why}"


def error_recomputed(where: str) -> RuntimeError:
    return RuntimeError(
        f"{where}: backward got tensors that its forward did not save: a checkpoint recomputed it another way "
        "(use_backend, patched_functions, a mode or another thread), so run both under the same settings; "
        "or a hook changed the shape of a saved tensor"
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))
