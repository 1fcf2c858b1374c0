"""Recognises sigmoids and silus among functions and modules, and numbers in a source."""

from __future__ import annotations

import ast
import types
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_modules

from sigtorch.nn import Sigmoid
from sigtorch.plugin import source
from sigtorch.plugin.classes import original_of

SIGMOID, SILU, NUMBER = "sigmoid", "silu", "number"
IN_PLACE, ALIKE = "works in place", "looks like a sigmoid or silu"  # by its name only
ANEW = "gives a tensor of its own"
INERT = (NUMBER, ALIKE, IN_PLACE, ANEW)  # kinds of attributes that compute no sigmoid or silu, as far as is known


def sigmoid_method(x: Any) -> Any:
    """Calls ``x.sigmoid()``, whatever x is."""
    return x.sigmoid()


_FUNCTIONS: dict[Any, str] = {
    torch.sigmoid: SIGMOID,
    torch.special.expit: SIGMOID,
    F.sigmoid: SIGMOID,
    F.silu: SILU,
    sigmoid_method: SIGMOID,
}
# What runs when any of these is called, as it is when sigtorch is imported: libraries that measure replace some.
_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl
_SEQUENCE, _ITER = nn.Sequential.forward, nn.Sequential.__iter__
_OURS: Any = Sigmoid.forward
_CODES = {f: getattr(f, "__code__", None) for f in (*_FUNCTIONS, _CALL, _CALL_IMPL, _SEQUENCE, _ITER, _OURS)}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks", "_compiled_call_impl")
_ANEW = [cls.forward for cls in (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.GELU, nn.Tanh, nn.AdaptiveAvgPool2d,
)]  # fmt: skip
_GLOBAL_HOOKS = [f"_global{name}" for name in _HOOKS[:4]]


def activation(called: Any) -> str | None:
    """The function, "sigmoid" or "silu", in which calling this with one tensor ends; None for any other."""
    kind = kind_of(called)
    return kind if kind and obstacle(called) is None else None


def kind_of(called: Any) -> str | None:
    """The same function by the classes as they are now, whatever the instances hold."""
    if not isinstance(called, nn.Module):
        return _function(called)
    kind = _of_forward(_forward(called))
    return kind_of(modules[-1]) if kind is None and (modules := sequence(called)) else kind


def sequence(called: Any) -> list[nn.Module]:
    """The modules that a sequence calls one after the other; none of anything else."""
    if not isinstance(called, nn.Sequential):
        return []
    cls = type(called)
    plain = _forward(called) is _SEQUENCE and cls.__iter__ is _ITER and _unchanged(_SEQUENCE) and _unchanged(_ITER)
    return [*called] if plain else []


def obstacle(called: Any) -> str | None:
    """Why calling a module, or a sequence's last one, is more than running its class' forward."""
    if not isinstance(called, nn.Module):
        return None
    held = called.__dict__
    if "forward" in held:
        return "its forward was replaced on the instance"
    if works_in_place(called):
        return "it works in place"
    for name in _HOOKS:
        if held.get(name):
            return "it is compiled" if name == "_compiled_call_impl" else "it has hooks, which fusing would bypass"
    for name in _GLOBAL_HOOKS:
        if getattr(torch_modules, name):
            return "all modules have hooks, which fusing would bypass"
    return obstacle(modules[-1]) if (modules := sequence(called)) else None


def works_in_place(module: nn.Module) -> bool:
    """Whether a module, as PyTorch's activations have it, may write into its input."""
    return bool(module.__dict__.get("inplace", getattr(type(module), "inplace", False)))


def computes_anew(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's that never give their input, or a view of it."""
    return any(type(module).forward is forward for forward in _ANEW) and obstacle(module) is None


def _unchanged(function: Any) -> bool:
    """Whether one of those known has the code that it had."""
    return _CODES[function] is getattr(function, "__code__", None)


def _function(called: Any) -> str | None:
    try:
        kind = _FUNCTIONS.get(called)
    except Exception:  # whatever hashing and comparing a user's object raises
        return None
    return kind if kind and _unchanged(called) else None


def _forward(module: nn.Module) -> Any:
    """The forward of a module's class, if calling the module runs that alone."""
    cls: Any = original_of(type(module))
    plain = cls.__call__ is _CALL and cls._call_impl is _CALL_IMPL and _unchanged(_CALL) and _unchanged(_CALL_IMPL)
    return cls.forward if plain else None


class _Returned(NamedTuple):
    """The function that a one-statement forward calls with its one argument: a name and attributes, or its method sigmoid."""

    name: str
    attributes: tuple[str, ...]


def _of_forward(forward: Any) -> str | None:
    """The function, sigmoid or silu, of its one argument that a forward of one statement returns."""
    if type(forward) is not types.FunctionType:
        return None
    if forward is _OURS:
        return SIGMOID if _unchanged(_OURS) else None
    returned = _returned(forward)
    if returned is None:
        return None
    value = source.named(returned.name, forward) if returned.name else sigmoid_method
    for attribute in returned.attributes:
        value = getattr(value, attribute, None) if isinstance(value, types.ModuleType) else None
    return _function(value)


_STATEMENT = 240  # bytes of code, in every release of Python


class _Read(NamedTuple):
    code: types.CodeType
    returned: _Returned | None


# By a code's id, whose code each keeps: what a source says never changes of that. Codes hold no class.
_read: dict[int, _Read] = {}


def _returned(forward: Any) -> _Returned | None:
    code = forward.__code__
    if code.co_argcount != 2 or len(code.co_code) > _STATEMENT:
        return None
    known = _read.get(id(code))
    if known is None:
        read = source.known(forward)
        known = _read.setdefault(id(code), _Read(code, None if read is None else _statement(read.definition)))
    return known.returned


def _statement(tree: ast.FunctionDef) -> _Returned | None:
    parameters = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)]
    more = tree.args.vararg or tree.args.kwarg or tree.args.kwonlyargs
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    if len(parameters) != 2 or more:
        return None
    me, x = parameters
    if isinstance(value, ast.IfExp) and ast.unparse(value.test) == f"{me}.inplace":
        value = value.orelse  # asked of the instance
    if not isinstance(value, ast.Call):
        return None
    if ast.unparse(value) == f"{x}.sigmoid()":
        return _Returned("", ())
    # An option to work in place is asked of the instance, too.
    if [ast.unparse(k) for k in value.keywords] not in ([], [f"inplace={me}.inplace"]):
        return None
    if [ast.unparse(a) for a in value.args] != [x]:
        return None
    name, *attributes = ast.unparse(value.func).split(".")
    return _Returned(name, tuple(attributes)) if name.isidentifier() and name not in parameters else None


def looks_alike(value: Any) -> bool:
    """Whether a function or module has a sigmoid's or silu's name."""
    function = getattr(value, "func", value)  # of a functools.partial
    name = getattr(function, "__name__", None) or type(value).__name__
    return callable(value) and isinstance(name, str) and name.lower() in ("sigmoid", "silu", "swish", "expit")


def is_number(node: ast.expr, kinds: dict[str, str], me: str) -> bool:
    """Whether an expression is a number for certain, or an attribute that is one (or a tensor of no dimensions)."""
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand, kinds, me)
    if isinstance(node, ast.BinOp):
        return is_number(node.left, kinds, me) and is_number(node.right, kinds, me)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        length = called.endswith(".size") and node.args != []
        return length or called in ("len", "int", "float") or called.startswith("math.")
    return isinstance(node, ast.Constant) or kind_of_attribute(node, kinds, me) == NUMBER


def kind_of_attribute(node: ast.expr, kinds: dict[str, str], me: str) -> str | None:
    """The kind of an attribute of the module."""
    owner, _, name = ast.unparse(node).partition(".")
    return kinds.get(name) if owner == me else None
