"""Recognises sigmoids and silus among functions and modules, and numbers in source code."""

from __future__ import annotations

import ast
import functools
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
Kind: TypeAlias = Literal[
    "sigmoid", "silu", "number", "works in place", "returns a new tensor", "may be an activation", "leads to products"
]
AttributeKinds: TypeAlias = frozenset[tuple[str, Kind]]  # of a module's attributes, by their names; pickles hold it

SIGMOID: Final = "sigmoid"
SILU: Final = "silu"
NUMBER: Final = "number"
WORKS_IN_PLACE: Final = "works in place"
RETURNS_NEW: Final = "returns a new tensor"
MAY_BE_ACTIVATION: Final = "may be an activation"  # a table of activations, or a module that ends in one
LEADS_TO_PRODUCTS: Final = "leads to products"  # a function, or an object that is no module


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
_VIEW_FORWARDS = (nn.Flatten.forward, nn.Unflatten.forward, nn.Identity.forward)
_KNOWN = (*_FUNCTIONS, *_VIEW_FORWARDS, _SEQUENTIAL_FORWARD, _SEQUENTIAL_ITER, _SIGTORCH_FORWARD)
_CODES = {f: getattr(f, "__code__", None) for f in _KNOWN}
_CALL_CODE, _CALL_IMPL_CODE = getattr(_CALL, "__code__", None), getattr(_CALL_IMPL, "__code__", None)
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
    activation = _forward_activation(own_forward(function))
    if activation is None and (steps := sequence(function)):
        return _class_activation(steps[activation_position(steps)])
    return activation


def sequence(function: Any) -> list[nn.Module]:
    """Returns the modules that an ``nn.Sequential`` calls one after the other; an empty list for anything else."""
    if not isinstance(function, nn.Sequential):
        return []
    cls = type(function)
    iterates = cls.__iter__ is _SEQUENTIAL_ITER and _is_unchanged(_SEQUENTIAL_ITER)
    runs = own_forward(function) is _SEQUENTIAL_FORWARD and _is_unchanged(_SEQUENTIAL_FORWARD)
    return [*function] if iterates and runs else []


def activation_position(steps: list[nn.Module]) -> int:
    """Returns the position of the last module that does more than to change the shape."""
    last = len(steps) - 1
    while last > 0 and _only_views(steps[last]):
        last -= 1
    return last


def _only_views(module: nn.Module) -> bool:
    """Tells whether a module only shows its input in another shape, such as ``nn.Flatten``."""
    forward = own_forward(module)
    known = any(forward is f for f in _VIEW_FORWARDS) and _is_unchanged(forward)
    of_einops = f"{type(module).__module__}.{type(module).__name__}" == "einops.layers.torch.Rearrange"
    return (known or of_einops) and obstacle(module) is None


def obstacle(function: Any) -> str | None:
    """Returns why calling a module, or a sequence's last one, does more than its class' forward; None if it does not."""
    if not isinstance(function, nn.Module):
        return None
    held = function.__dict__
    if "forward" in held:
        return "its forward was replaced on the instance"
    if _works_in_place(function):
        return "it works in place"
    if (
        held.get("_forward_pre_hooks")
        or held.get("_forward_hooks")
        or held.get("_backward_pre_hooks")
        or held.get("_backward_hooks")
    ):
        return "it has hooks, which fusing would bypass"
    if held.get("_compiled_call_impl"):
        return "it is compiled"
    if (
        torch_modules._global_forward_pre_hooks
        or torch_modules._global_forward_hooks
        or torch_modules._global_backward_pre_hooks
        or torch_modules._global_backward_hooks
    ):
        return "all modules have hooks, which fusing would bypass"
    return obstacle(steps[activation_position(steps)]) if (steps := sequence(function)) else None


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


def _known_function(function: Any, depth: int = 0) -> Activation | None:
    """Returns which activation of its one argument a function computes, itself or by calling another."""
    if type(function) is functools.partial:
        takes_one = not function.args and function.keywords in ({}, {"inplace": False})
        return _known_function(function.func, depth + 1) if takes_one and depth < _MAX_DEPTH else None
    try:
        activation = _FUNCTIONS.get(function)
    except Exception:  # hashing and comparing a user's object may raise anything
        return None
    if activation is None:
        is_plain = type(function) is types.FunctionType and depth < _MAX_DEPTH
        return _called_activation(function, depth, is_method=False) if is_plain else None
    return activation if _is_unchanged(function) else None


_MAX_DEPTH = 3  # of functions that call one another


def is_known(value: Any) -> bool:
    """Tells whether a value is one of PyTorch's sigmoids or silus, under whatever name."""
    return any(value is function for function in _FUNCTIONS)


def own_forward(module: nn.Module) -> Any:
    """Returns the forward of a module's class if calling the module runs only that, else None."""
    cls: Any = original_of(type(module))
    calls = cls.__call__ is _CALL and cls._call_impl is _CALL_IMPL
    is_unchanged = (
        getattr(_CALL, "__code__", None) is _CALL_CODE and getattr(_CALL_IMPL, "__code__", None) is _CALL_IMPL_CODE
    )
    return cls.forward if calls and is_unchanged else None


class _Callee(NamedTuple):
    """The function that a one-statement function calls, as a name and attributes of its value.

    An empty name stands for the method ``sigmoid`` of the function's argument. ``is_global`` tells that the name is neither
    a local variable nor one of an enclosing function.
    """

    name: str
    attributes: tuple[str, ...]
    is_global: bool = False


def _forward_activation(forward: Any) -> Activation | None:
    """Returns the activation of its one argument that a forward of one statement returns, if it is one."""
    if type(forward) is not types.FunctionType:
        return None
    if forward is _SIGTORCH_FORWARD:
        return SIGMOID if _is_unchanged(forward) else None
    return _called_activation(forward, 0, is_method=True) if forward.__code__.co_argcount else None


def _called_activation(function: types.FunctionType, depth: int, *, is_method: bool) -> Activation | None:
    """Returns which activation of its argument a function returns; a method's argument is its second."""
    callee = _callee(function, is_method)
    if callee is None or any(function.__defaults__ or ()):  # the default of ``inplace``
        return None
    if callee.is_global:
        value = function.__globals__.get(callee.name)
    else:
        value = source.resolve_name(callee.name, function) if callee.name else sigmoid_method
    for attribute in callee.attributes:
        value = getattr(value, attribute, None) if isinstance(value, types.ModuleType) else None
    return _known_function(value, depth + 1)


_STATEMENT_BYTES = 240  # of code, at most, in every release of Python


class _Read(NamedTuple):
    code: types.CodeType
    callee: _Callee | None


# By the id of a code, which the value keeps alive: a code's source never changes. Codes hold no class.
_read: dict[tuple[int, bool], _Read] = {}


def _callee(function: types.FunctionType, is_method: bool) -> _Callee | None:
    """Returns the function whose result a one-statement function returns."""
    code = function.__code__
    known = _read.get((id(code), is_method))
    if known is None:
        if code.co_argcount > 3 or len(code.co_code) > _STATEMENT_BYTES:
            return None
        self_name = code.co_varnames[0] if is_method else ""
        known = _read.setdefault((id(code), is_method), _Read(code, _read_callee(function, self_name)))
    return known.callee


def _read_callee(function: types.FunctionType, self_name: str) -> _Callee | None:
    callee = _callee_in_source(function, self_name)
    code = function.__code__
    if callee is None or callee.name in ("", *code.co_freevars, *code.co_varnames, *code.co_cellvars):
        return callee
    return callee._replace(is_global=True)


def _callee_in_source(function: types.FunctionType, self_name: str) -> _Callee | None:
    if function.__name__ == "<lambda>":
        read_lambda = source.read_lambda(function)
        return None if read_lambda is None else _callee_in(read_lambda.args, read_lambda.body, self_name)
    read = source.read_if_current(function)
    return None if read is None else _callee_in(read.definition.args, _returned(read.definition), self_name)


def _returned(definition: ast.FunctionDef) -> ast.expr | None:
    """Returns the expression that a function of one statement returns; an ``if`` with two returns is one."""
    body = definition.body[1:] if ast.get_docstring(definition) is not None else definition.body
    match body:
        case [ast.Return(value=value)]:
            return value
        case [ast.If(test=test, body=[ast.Return(value=ast.expr() as a)], orelse=[ast.Return(value=ast.expr() as b)])]:
            return ast.IfExp(test, a, b)
        case [
            ast.If(test=test, body=[ast.Return(value=ast.expr() as a)], orelse=[]),
            ast.Return(value=ast.expr() as b),
        ]:
            return ast.IfExp(test, a, b)
    return None


def _callee_in(arguments: ast.arguments, value: ast.expr | None, self_name: str) -> _Callee | None:
    """Returns what a function calls with its one argument, beside which it may have ``inplace=False``."""
    parameters = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    own = parameters[1:] if self_name else parameters
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or len(own) - len(arguments.defaults) != 1:
        return None
    x, *options = own
    if options not in ([], ["inplace"]):
        return None
    in_place = "inplace" if options else f"{self_name}.inplace"  # whether it works in place, the instance tells
    if isinstance(value, ast.IfExp) and ast.unparse(value.test) == in_place:
        value = value.orelse
    if not isinstance(value, ast.Call):
        return None
    inner = _before_cast(value, x)
    if inner is not None:
        value, x = inner, ast.unparse(inner.args[0])
    if ast.unparse(value) == f"{x}.sigmoid()":
        return _Callee("", ())
    if [ast.unparse(k) for k in value.keywords] not in ([], [f"inplace={in_place}"], ["inplace=False"]):
        return None
    if [ast.unparse(a) for a in value.args] != [x]:
        return None
    name, *attributes = ast.unparse(value.func).split(".")
    return _Callee(name, tuple(attributes)) if name.isidentifier() and name not in parameters else None


def _before_cast(value: ast.Call, x: str) -> ast.Call | None:
    """Returns the call in ``f(x.float()).to(x.dtype)``, which a kernel computes in float32 anyway; None for other calls."""
    function = value.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Call) or not function.value.args:
        return None
    casts_back = ast.unparse(value) in (
        f"{ast.unparse(function.value)}.{end}" for end in (f"to({x}.dtype)", f"type_as({x})")
    )
    argument = ast.unparse(function.value.args[0])
    return function.value if casts_back and argument in (f"{x}.float()", f"{x}.to(torch.float32)") else None


def value_kind(value: Any) -> Kind | None:
    """Returns the kind of a value that a module holds as an attribute, or None."""
    if activation := _class_activation(value):
        return activation
    # Python numbers and 0-d tensors: no kernel takes them as an operand.
    if value.dim() == 0 if isinstance(value, torch.Tensor) else type(value) in (int, float):
        return NUMBER
    if _holds_activations(value):
        return MAY_BE_ACTIVATION
    if not isinstance(value, nn.Module):
        return None
    return WORKS_IN_PLACE if _works_in_place(value) else RETURNS_NEW if _returns_new_tensor(value) else None


def _holds_activations(value: Any) -> bool:
    """Tells whether a container holds a sigmoid or silu."""
    if isinstance(value, (dict, nn.ModuleDict)):
        return is_activation_table(value) or any(map(_class_activation, value.values()))
    return type(value) in (list, tuple, nn.ModuleList) and any(map(_class_activation, value))


def is_activation_table(value: Any) -> bool:
    """Tells whether a value is a dictionary of activations by name, such as transformers'."""
    return isinstance(value, dict) and "silu" in value


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
