"""Recognises sigmoids and silus among functions and modules, and numbers in source code."""

from __future__ import annotations

import ast
import types
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_modules

from sigtorch.nn import Sigmoid
from sigtorch.plugin import source
from sigtorch.plugin.classes import original_of

Activation: TypeAlias = Literal["sigmoid", "silu"]
Kind: TypeAlias = Literal["sigmoid", "silu", "number", "works in place", "returns a new tensor"]
AttributeKinds: TypeAlias = frozenset[tuple[str, Kind]]  # of a module's attributes, by their names; pickles hold it

SIGMOID: Final = "sigmoid"
SILU: Final = "silu"
NUMBER: Final = "number"
WORKS_IN_PLACE: Final = "works in place"
RETURNS_NEW: Final = "returns a new tensor"


def sigmoid_method(x: Any) -> Any:
    """Calls ``x.sigmoid()``."""
    return x.sigmoid()


_FUNCTIONS: dict[Any, Activation] = {
    torch.sigmoid: SIGMOID,
    torch.special.expit: SIGMOID,
    F.sigmoid: SIGMOID,
    F.silu: SILU,
    sigmoid_method: SIGMOID,
}
# The functions that run when one of these is called, when sigtorch is imported: profilers replace some of them.
_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl
_SEQUENTIAL_FORWARD, _SEQUENTIAL_ITER = nn.Sequential.forward, nn.Sequential.__iter__
_SIGTORCH_FORWARD: Any = Sigmoid.forward
_KNOWN = (*_FUNCTIONS, _CALL, _CALL_IMPL, _SEQUENTIAL_FORWARD, _SEQUENTIAL_ITER, _SIGTORCH_FORWARD)
_CODES = {f: getattr(f, "__code__", None) for f in _KNOWN}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_NEW_TENSOR_FORWARDS = [cls.forward for cls in (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.GELU, nn.Tanh, nn.AdaptiveAvgPool2d,
)]  # fmt: skip


def fusable_activation(function: Any) -> Activation | None:
    """Returns which activation a function or module computes from its one argument, if a kernel may compute it instead."""
    activation = _class_activation(function)
    return activation if activation and obstacle(function) is None else None


def _class_activation(function: Any) -> Activation | None:
    """Returns which activation a function or module computes, by its class as it is now: hooks and the like aside."""
    if not isinstance(function, nn.Module):
        return _known_function(function)
    activation = _forward_activation(_forward_of(function))
    return _class_activation(steps[-1]) if activation is None and (steps := sequence(function)) else activation


def sequence(function: Any) -> list[nn.Module]:
    """Returns the modules that an ``nn.Sequential`` calls one after the other; an empty list for anything else."""
    if not isinstance(function, nn.Sequential):
        return []
    cls = type(function)
    iterates = cls.__iter__ is _SEQUENTIAL_ITER and _is_unchanged(_SEQUENTIAL_ITER)
    runs = _forward_of(function) is _SEQUENTIAL_FORWARD and _is_unchanged(_SEQUENTIAL_FORWARD)
    return [*function] if iterates and runs else []


def obstacle(function: Any) -> str | None:
    """Returns why calling a module, or a sequence's last one, does more than its class' forward; None if it does not."""
    if not isinstance(function, nn.Module):
        return None
    held = function.__dict__
    if "forward" in held:
        return "its forward was replaced on the instance"
    if _works_in_place(function):
        return "it works in place"
    if any(held.get(hooks) for hooks in _HOOKS):
        return "it has hooks, which fusing would bypass"
    if held.get("_compiled_call_impl"):
        return "it is compiled"
    if any(getattr(torch_modules, f"_global{hooks}") for hooks in _HOOKS):
        return "all modules have hooks, which fusing would bypass"
    return obstacle(steps[-1]) if (steps := sequence(function)) else None


def _works_in_place(module: nn.Module) -> bool:
    """Tells whether a module may write into its input, by the attribute ``inplace`` that PyTorch's activations have."""
    return bool(module.__dict__.get("inplace", getattr(type(module), "inplace", False)))


def _returns_new_tensor(module: nn.Module) -> bool:
    """Tells whether a module is one of PyTorch's that never return their input, or a view of it."""
    forward: Any = type(module).forward
    return any(forward is known for known in _NEW_TENSOR_FORWARDS) and obstacle(module) is None


def _is_unchanged(function: Any) -> bool:
    """Tells whether a known function has the code that it had when sigtorch was imported."""
    return _CODES[function] is getattr(function, "__code__", None)


def _known_function(function: Any) -> Activation | None:
    try:
        activation = _FUNCTIONS.get(function)
    except Exception:  # hashing and comparing a user's object may raise anything
        return None
    return activation if activation and _is_unchanged(function) else None


def _forward_of(module: nn.Module) -> Any:
    """Returns the forward of a module's class if calling the module runs only that, else None."""
    cls: Any = original_of(type(module))
    calls = cls.__call__ is _CALL and cls._call_impl is _CALL_IMPL
    return cls.forward if calls and _is_unchanged(_CALL) and _is_unchanged(_CALL_IMPL) else None


class _Callee(NamedTuple):
    """The function that a one-statement forward calls, as a name and attributes of its value.

    An empty name stands for the method ``sigmoid`` of the forward's argument.
    """

    name: str
    attributes: tuple[str, ...]


def _forward_activation(forward: Any) -> Activation | None:
    """Returns the activation of its one argument that a forward of one statement returns, if it is one."""
    if type(forward) is not types.FunctionType:
        return None
    if forward is _SIGTORCH_FORWARD:
        return SIGMOID if _is_unchanged(forward) else None
    callee = _callee(forward)
    if callee is None:
        return None
    value = source.resolve_name(callee.name, forward) if callee.name else sigmoid_method
    for attribute in callee.attributes:
        value = getattr(value, attribute, None) if isinstance(value, types.ModuleType) else None
    return _known_function(value)


_STATEMENT_BYTES = 240  # of code, at most, in every release of Python


class _Read(NamedTuple):
    code: types.CodeType
    callee: _Callee | None


# By the id of a code, which the value keeps alive: a code's source never changes. Codes hold no class.
_read: dict[int, _Read] = {}


def _callee(forward: Any) -> _Callee | None:
    """Returns the function whose result a one-statement forward returns."""
    code = forward.__code__
    if code.co_argcount != 2 or len(code.co_code) > _STATEMENT_BYTES:
        return None
    known = _read.get(id(code))
    if known is None:
        read = source.read_if_current(forward)
        known = _read.setdefault(id(code), _Read(code, None if read is None else _callee_in(read.definition)))
    return known.callee


def _callee_in(definition: ast.FunctionDef) -> _Callee | None:
    arguments = definition.args
    parameters = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    body = definition.body[1:] if ast.get_docstring(definition) is not None else definition.body
    value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    if len(parameters) != 2 or arguments.vararg or arguments.kwarg or arguments.kwonlyargs:
        return None
    self_name, x = parameters
    if isinstance(value, ast.IfExp) and ast.unparse(value.test) == f"{self_name}.inplace":
        value = value.orelse  # whether it works in place, the instance tells
    if not isinstance(value, ast.Call):
        return None
    if ast.unparse(value) == f"{x}.sigmoid()":
        return _Callee("", ())
    if [ast.unparse(k) for k in value.keywords] not in ([], [f"inplace={self_name}.inplace"]):
        return None
    if [ast.unparse(a) for a in value.args] != [x]:
        return None
    name, *attributes = ast.unparse(value.func).split(".")
    return _Callee(name, tuple(attributes)) if name.isidentifier() and name not in parameters else None


def value_kind(value: Any) -> Kind | None:
    """Returns the kind of a value that a module holds as an attribute, or None."""
    if activation := _class_activation(value):
        return activation
    # Python numbers and 0-d tensors: no kernel takes them as an operand.
    if value.dim() == 0 if isinstance(value, torch.Tensor) else type(value) in (int, float):
        return NUMBER
    if not isinstance(value, nn.Module):
        return None
    return WORKS_IN_PLACE if _works_in_place(value) else RETURNS_NEW if _returns_new_tensor(value) else None


def is_number(node: ast.expr, kinds: dict[str, Kind], self_name: str) -> bool:
    """Tells whether an expression is certainly a number, or an attribute that is one or a 0-d tensor."""
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand, kinds, self_name)
    if isinstance(node, ast.BinOp):
        return is_number(node.left, kinds, self_name) and is_number(node.right, kinds, self_name)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    if isinstance(node, ast.Call):
        callee = ast.unparse(node.func)
        length = callee.endswith(".size") and node.args != []
        return length or callee in ("len", "int", "float") or callee.startswith("math.")
    return isinstance(node, ast.Constant) or attribute_kind(node, kinds, self_name) == NUMBER


def attribute_kind(node: ast.expr, kinds: dict[str, Kind], self_name: str) -> Kind | None:
    """Returns the kind of the module's attribute that an expression reads; None for any other expression."""
    owner, _, name = ast.unparse(node).partition(".")
    return kinds.get(name) if owner == self_name else None


def attribute_activation(node: ast.expr, kinds: dict[str, Kind], self_name: str) -> Activation | None:
    """Returns which activation the module's attribute that an expression reads is, if it is one."""
    kind = attribute_kind(node, kinds, self_name)
    return kind if kind == SIGMOID or kind == SILU else None  # noqa: SIM109, mypy narrows by ==
