"""What of anybody's is a sigmoid or a silu and nothing else, function or module; and what in a source is a number."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_modules

from sigtorch.nn import Sigmoid
from sigtorch.plugin.source import found, parsed

SIGMOID, SILU, NUMBER = "sigmoid", "silu", "number"
sigmoid_method = operator.methodcaller("sigmoid")  # what x.sigmoid() calls, whatever x is
_FUNCTIONS: dict[Any, str] = {
    torch.sigmoid: SIGMOID,
    torch.special.expit: SIGMOID,
    F.sigmoid: SIGMOID,
    F.silu: SILU,
    sigmoid_method: SIGMOID,
}
_FORWARDS: dict[Any, str] = {nn.Sigmoid.forward: SIGMOID, Sigmoid.forward: SIGMOID, nn.SiLU.forward: SILU}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks", "_compiled_call_impl")
_GLOBAL_HOOKS = [f"_global{name}" for name in _HOOKS[:4]]


def activation(called: Any) -> str | None:
    """What calling this with one tensor ends in: "sigmoid" or "silu", or None. A module is that, or a sequence's last one."""
    kind = kind_of(called)
    return kind if kind and obstacle(called) is None else None


def kind_of(called: Any) -> str | None:
    """The same by what classes compute, whatever hangs on the instances."""
    if not isinstance(called, nn.Module):
        return _function(called)
    kind = _of_module(called)
    return kind_of(modules[-1]) if kind is None and (modules := sequence(called)) else kind


def sequence(called: Any) -> list[nn.Module]:
    """The modules that a sequence calls one after the other; none of anything else."""
    cls: Any = type(called)
    plain = (
        isinstance(called, nn.Sequential)
        and cls.forward is nn.Sequential.forward
        and cls.__iter__ is nn.Sequential.__iter__
    )
    return [*called] if plain and cls.__call__ is nn.Module.__call__ else []


def obstacle(called: Any) -> str | None:
    """Why calling a module, or a sequence's last one, is more than running its class' forward."""
    if not isinstance(called, nn.Module):
        return None
    held = called.__dict__
    if "forward" in held:
        return "its forward was replaced on the instance"
    if held.get("inplace"):
        return "it works in place"
    for name in _HOOKS:
        if held.get(name):
            return "it is compiled" if name == "_compiled_call_impl" else "it has hooks, which fusing would bypass"
    for name in _GLOBAL_HOOKS:
        if getattr(torch_modules, name):
            return "all modules have hooks, which fusing would bypass"
    return obstacle(modules[-1]) if (modules := sequence(called)) else None


def _function(called: Any) -> str | None:
    try:
        return _FUNCTIONS.get(called)
    except Exception:  # whatever hashing and comparing somebody's object raises
        return None


def _of_module(module: nn.Module) -> str | None:
    cls: Any = type(module)
    return _of_forward(cls.forward) if cls.__call__ is nn.Module.__call__ else None


@functools.cache
def _of_forward(forward: Any) -> str | None:
    """What a forward of one statement returns: sigmoid or silu of its one argument."""
    if forward in _FORWARDS:
        return _FORWARDS[forward]
    parameters = [*inspect.signature(forward).parameters] if inspect.isfunction(forward) else []
    tree = parsed(forward)
    if tree is None or len(parameters) != 2 or tree.decorator_list:
        return None
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    if isinstance(value, ast.IfExp) and ast.unparse(value.test) == f"{parameters[0]}.inplace":
        value = value.orelse  # asked of the instance
    if not isinstance(value, ast.Call) or value.keywords:
        return None
    if ast.unparse(value) == f"{parameters[1]}.sigmoid()":
        return SIGMOID
    if len(value.args) != 1 or ast.unparse(value.args[0]) != parameters[1]:
        return None
    return _function(found(value.func, forward))


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
    """What an attribute of the module is."""
    owner, _, name = ast.unparse(node).partition(".")
    return kinds.get(name) if owner == me else None
