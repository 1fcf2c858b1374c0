"""Finds products that seem, by their names, to be of a sigmoid or silu: those that are not rewritten get a row each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch.nn.functional as F

from sigtorch.plugin.recognise import (
    LIKE_ACTIVATION,
    SIGMOID,
    SILU,
    Kind,
    attribute_kind,
    fusable_activation,
    is_number,
)
from sigtorch.plugin.source import resolve

_FUNCTIONS, _MODULES = {"sigmoid", "sigmoid_", "silu", "silu_", "expit"}, {"Sigmoid", "SiLU"}
NAMES = _FUNCTIONS | _MODULES | {"glu"}
GLU_REASON = "patched_functions() sends F.glu to a kernel"
IN_PLACE_REASON = "it changes a tensor in place"
FORM_REASON = "its sigmoid or silu is written in a form that is not rewritten"
# Methods that leave a sigmoid's values as they are, or nearly.
_VALUE_KEEPING = {
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "view", "view_as", "reshape",
    "unsqueeze", "squeeze", "expand", "expand_as", "flatten", "unflatten", "transpose", "permute", "movedim",
}  # fmt: skip


class Candidate(NamedTuple):
    """A node that multiplies what may be a sigmoid or silu, and the reason to give if it is not rewritten."""

    node: ast.stmt | ast.expr
    reason: str


def is_activation_table(value: Any) -> bool:
    """Tells whether a value is a dictionary of activations by name, such as transformers'."""
    return isinstance(value, dict) and "silu" in value


class Search:
    """Searches one function."""

    def __init__(self, function: Any, kinds: dict[str, Kind], self_name: str) -> None:
        self.function, self.kinds, self.self_name = function, kinds, self_name
        self.results: set[str] = set()  # variables that may hold the result of a sigmoid or silu
        self.activations: set[str] = set()  # variables that may hold a sigmoid or silu itself

    def candidates(self, tree: ast.FunctionDef) -> Iterator[Candidate]:
        """Yields the products, calls of F.glu first."""
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {t.id for t in targets if isinstance(t, ast.Name)}
                self.results |= names if self.may_be_result(node.value) else set()
                self.activations |= names if self.may_be_activation(node.value) else set()
            if isinstance(node, ast.Call) and resolve(node.func, self.function) is F.glu:
                yield Candidate(node, GLU_REASON)
        products = [n for n in ast.walk(tree) if isinstance(n, (ast.BinOp, ast.AugAssign, ast.Call)) and _factors(n)]
        for product in sorted(products, key=lambda n: n.lineno):
            factors = _factors(product)
            if any(map(self.may_be_result, factors)) and not any(map(self.is_number, factors)):
                in_place = isinstance(product, ast.AugAssign) or last_name(getattr(product, "func", product)) == "mul_"
                yield Candidate(product, IN_PLACE_REASON if in_place else FORM_REASON)

    def may_be_result(self, node: ast.expr) -> bool:
        """Tells whether an expression is, by its names, the result of a sigmoid or silu."""
        if isinstance(node, ast.Name):
            return node.id in self.results
        if isinstance(node, (ast.Subscript, ast.NamedExpr)):
            return self.may_be_result(node.value)
        if isinstance(node, ast.UnaryOp):
            return self.may_be_result(node.operand)
        if isinstance(node, ast.BinOp):
            orders = ((node.left, node.right), (node.right, node.left))
            return any(self.may_be_result(a) and self.is_number(b) for a, b in orders)
        if not isinstance(node, ast.Call):
            return False
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and function.attr in _VALUE_KEEPING
            and self.may_be_result(function.value)
        ):
            return True
        return self.may_be_activation(function) or last_name(function) in _FUNCTIONS

    def may_be_activation(self, node: ast.expr) -> bool:
        """Tells whether calling the value of an expression gives, by its names, the result of a sigmoid or silu."""
        if isinstance(node, ast.Subscript):
            return is_activation_table(resolve(node.value, self.function))
        if isinstance(node, ast.Call):
            return last_name(node.func) in _MODULES
        if isinstance(node, ast.Name) and node.id in self.activations:
            return True
        if attribute_kind(node, self.kinds, self.self_name) in (SIGMOID, SILU, LIKE_ACTIVATION):
            return True
        return fusable_activation(resolve(node, self.function)) is not None

    def is_number(self, node: ast.expr) -> bool:
        return is_number(node, self.kinds, self.self_name)


def _factors(node: ast.AST) -> list[ast.expr]:
    """Returns the factors that a node multiplies, if it does."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult):
        return [node.target, node.value]
    if not isinstance(node, ast.Call) or last_name(node.func) not in ("mul", "multiply", "mul_"):
        return []
    if len(node.args) == 2:
        return node.args
    return [node.func.value, *node.args] if isinstance(node.func, ast.Attribute) else []


def last_name(node: ast.AST) -> str:
    """Returns the last part of a dotted name, or "" for any other expression."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
