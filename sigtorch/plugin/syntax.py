"""Forms of expressions and statements in a function's source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from sigtorch.plugin.activated import VIEWS


def viewed(node: ast.expr) -> ast.expr:
    """Returns the expression of which the views in a node are taken; the node itself if it is no view."""
    while _is_view(node):
        node = node.value if isinstance(node, ast.Subscript) else node.func.value  # type: ignore[attr-defined]
    return node


def is_sigmoid_method(call: ast.Call) -> bool:
    """Tells whether a call is ``x.sigmoid()``."""
    return isinstance(call.func, ast.Attribute) and call.func.attr == "sigmoid" and not call.args


def is_lerp_method(call: ast.Call) -> bool:
    """Tells whether a call is ``start.lerp(end, weight)``."""
    return isinstance(call.func, ast.Attribute) and call.func.attr == "lerp" and len(call.args) == 2


def file_name(function: Any) -> str:
    """Returns the name of a function's file, without its folder."""
    name: str = function.__code__.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return name


def _is_view(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return not isinstance(node.value, (ast.Dict, ast.List, ast.Tuple))
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VIEWS


def view_arguments(node: ast.expr) -> list[ast.expr]:
    """Returns the arguments of the views in a node."""
    arguments: list[ast.expr] = []
    while _is_view(node):
        if isinstance(node, ast.Subscript):
            arguments.append(node.slice)
            node = node.value
        else:
            arguments += [*node.args, *(k.value for k in node.keywords)]  # type: ignore[attr-defined]
            node = node.func.value  # type: ignore[attr-defined]
    return arguments


def blocks(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    """Yields the lists of statements in a function: its own, and those of loops, branches and nested functions."""
    for node in ast.walk(function):
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield value


def complement_of(node: ast.AST) -> str:
    """Returns the name in ``1 - name``, or "" for any other expression."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Sub) or not isinstance(node.right, ast.Name):
        return ""
    return node.right.id if isinstance(node.left, ast.Constant) and node.left.value == 1 else ""


def argument_nodes(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)


def assigned(statement: ast.stmt) -> list[tuple[list[str], ast.expr]]:
    """Returns the variables that a statement assigns, and their values: several of one value, if that is unpacked."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return [([statement.target.id], statement.value)]
    if not isinstance(statement, ast.Assign) or len(statement.targets) > 1:
        return []
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Name):
        return [([target.id], value)]
    if not isinstance(target, ast.Tuple) or not all(isinstance(t, ast.Name) for t in target.elts):
        return []
    names = [t.id for t in target.elts if isinstance(t, ast.Name)]
    if not isinstance(value, ast.Tuple):
        return [(names, value)]
    if len(value.elts) != len(names) or any(isinstance(v, ast.Starred) for v in value.elts):
        return []
    return [([name], v) for name, v in zip(names, value.elts, strict=True)]
