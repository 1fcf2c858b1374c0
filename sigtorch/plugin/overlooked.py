"""Products that look like one of a sigmoid or silu, by their names: what is not rewritten is at least told of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F

from sigtorch.plugin.recognise import ALIKE, SIGMOID, SILU, activation, is_number, kind_of_attribute
from sigtorch.plugin.source import found

_FUNCTIONS, _MODULES = {"sigmoid", "sigmoid_", "silu", "silu_", "expit"}, {"Sigmoid", "SiLU"}
NAMES = _FUNCTIONS | _MODULES | {"glu"}
GLU = "patched_functions() sends F.glu to a kernel"
IN_PLACE = "it changes a tensor in place"
OTHERWISE = "its sigmoid or silu is written in a way that is not taken apart"
# What leaves a sigmoid's values as they are, or nearly.
_SAME = {
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "view", "view_as", "reshape",
    "unsqueeze", "squeeze", "expand", "expand_as", "flatten", "unflatten", "transpose", "permute", "movedim",
}  # fmt: skip


def holds_activations(value: Any) -> bool:
    """Whether this is a dictionary of activations by their names, as transformers' is."""
    return isinstance(value, dict) and "silu" in value


class Search:
    """Finds them in one function."""

    def __init__(self, function: Any, kinds: dict[str, str], me: str) -> None:
        self.function, self.kinds, self.me = function, kinds, me
        self.named: set[str] = set()  # variables that hold what looks like a sigmoid
        self.called: set[str] = set()  # and such that hold what computes one

    def products(self, tree: ast.FunctionDef) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
        """Each that there is, and why it is not rewritten."""
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {t.id for t in targets if isinstance(t, ast.Name)}
                self.named |= names if self.looks(node.value) else set()
                self.called |= names if self.computes(node.value) else set()
            if isinstance(node, ast.Call) and found(node.func, self.function) is F.glu:
                yield node, GLU
        for node in sorted((n for n in ast.walk(tree) if _factors(n)), key=lambda n: n.lineno):  # type: ignore[attr-defined]
            factors = _factors(node)
            if any(self.looks(f) for f in factors) and not any(is_number(f, self.kinds, self.me) for f in factors):
                in_place = isinstance(node, ast.AugAssign) or last(getattr(node, "func", node)) == "mul_"  # type: ignore[arg-type]
                yield node, IN_PLACE if in_place else OTHERWISE  # type: ignore[misc]

    def looks(self, node: ast.expr) -> bool:
        """Whether this is what a sigmoid or silu returned, as far as names tell."""
        if isinstance(node, ast.Name):
            return node.id in self.named
        if isinstance(node, (ast.Subscript, ast.NamedExpr)):
            return self.looks(node.value)
        if isinstance(node, ast.UnaryOp):
            return self.looks(node.operand)
        if isinstance(node, ast.BinOp):
            return any(self.looks(a) and is_number(b, self.kinds, self.me)
                       for a, b in ((node.left, node.right), (node.right, node.left)))  # fmt: skip
        if not isinstance(node, ast.Call):
            return False
        seen = isinstance(node.func, ast.Attribute) and node.func.attr in _SAME and self.looks(node.func.value)
        return seen or self.computes(node.func) or last(node.func) in _FUNCTIONS

    def computes(self, called: ast.expr) -> bool:
        """Whether calling this gives one."""
        if isinstance(called, ast.Subscript):
            return holds_activations(found(called.value, self.function))
        if isinstance(called, ast.Call):
            return last(called.func) in _MODULES
        if isinstance(called, ast.Name) and called.id in self.called:
            return True
        kind = kind_of_attribute(called, self.kinds, self.me)
        return kind in (SIGMOID, SILU, ALIKE) or activation(found(called, self.function)) is not None


def _factors(node: ast.AST) -> list[ast.expr]:
    """The factors that a node multiplies."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult):
        return [node.target, node.value]
    if not isinstance(node, ast.Call) or last(node.func) not in ("mul", "multiply", "mul_"):
        return []
    if len(node.args) == 2:
        return node.args
    return [node.func.value, *node.args] if isinstance(node.func, ast.Attribute) else []


def last(node: ast.expr) -> str:
    """The last part of a name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
