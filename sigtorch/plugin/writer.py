"""Writes a function anew: what was found in it becomes calls of helpers, and all else stays."""

from __future__ import annotations

import ast
from collections.abc import Callable
from types import CellType
from typing import Any

from sigtorch.plugin import activated, products
from sigtorch.plugin.found import Found
from sigtorch.plugin.recognise import sigmoid_method
from sigtorch.plugin.syntax import blocks, is_lerp_method, is_sigmoid_method

_HELPERS = (
    activated.activated, activated.activated_at_last, activated.activated_early, activated.called, activated.deferring,
    activated.value, products.addcmul, products.Complement, products.complement_first, products.gated, products.glu,
    products.clamped_swiglu, products.interpolation, products.lerp, products.lerp_method, products.plus, products.product,
    products.product_by, products.product_method, products.takes_swiglu, sigmoid_method,
)  # fmt: skip
HELPERS = {
    f"_sigtorch_{helper.__name__}": CellType(helper) for helper in _HELPERS
}  # variables that a rewritten function sees


class Writer(ast.NodeTransformer):
    """Rewrites a function's definition in place."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.first_factors: set[ast.AST] = set()  # of interpolations: they are computed before the rest is evaluated

    def write(self, definition: ast.FunctionDef) -> None:
        """Rewrites a definition; clamped SwiGLUs become branches first, whose other one is rewritten like all else."""
        for clamped in self.found.clamped:
            first = clamped.statements[0]
            block = next(block for block in blocks(definition) if first in block)
            at = block.index(first)
            block[at : at + len(clamped.statements)] = clamped.written(_call)
        self.visit(definition)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        helper: Callable[..., Any] | None = None
        parts: list[Any] = [node.left, node.right]
        if node in self.found.interpolations:
            helper, parts = products.interpolation, [p for term in parts for p in (term.left, term.right)]
            self.first_factors.update(parts[:2])
        elif node in self.found.complements:
            helper = products.complement_first if node in self.first_factors else products.Complement
        elif node in self.found.sums:
            helper = products.plus
        elif node in self.found.products:
            helper = products.gated if node in self.found.terms else products.product
        return self.generic_visit(node) if helper is None else _call(helper, *map(self.visit, parts), at=node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if node in self.found.products or node in self.found.interpolations:
            return self.product(node)
        if node in self.found.put_off:
            return self.put_off(node, self.found.put_off[node])
        helper: Callable[..., Any] | None = None
        if node in self.found.deferred:
            helper = activated.deferring
        elif node in self.found.called:
            helper = activated.called
        glu = node in self.found.glus
        self.generic_visit(node)
        if glu:
            node.func, node.args = _name(products.glu), [node.func, *node.args]
        elif helper is not None:
            node.func = _call(helper, node.func, at=node)
        return node

    def product(self, node: ast.Call) -> ast.AST:
        if is_lerp_method(node):
            node.func = _call(products.lerp_method, self.visit(node.func.value), at=node)  # type: ignore[attr-defined]
            node.args = [self.visit(a) for a in node.args]
            return node
        if len(node.args) == 3:
            is_lerp = node in self.found.interpolations
            return _call(
                products.lerp if is_lerp else products.addcmul, *map(self.visit, (node.func, *node.args)), at=node
            )
        if len(node.args) == 2:
            function, left, right = (self.visit(part) for part in (node.func, *node.args))
            return _call(products.product_by, function, left, right, at=node)
        method: Any = node.func
        by = _call(products.product_method, self.visit(method.value), ast.Constant(method.attr), at=node)
        return ast.copy_location(ast.Call(by, [self.visit(node.args[0])], []), node)

    def put_off(self, node: ast.Call, helper: Callable[..., Any]) -> ast.AST:
        if is_sigmoid_method(node):
            return _call(helper, _name(sigmoid_method), self.visit(node.func.value), at=node)  # type: ignore[attr-defined]
        return _call(helper, self.visit(node.func), self.visit(node.args[0]), at=node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return _call(activated.value, node, at=node) if node in self.found.read else node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        if node not in self.found.added_to or not isinstance(node.target, ast.Name):
            return node
        name = node.target.id
        value = _call(activated.value, ast.Name(name, ast.Load()), at=node)
        return [ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], value), node), node]


def _name(helper: Callable[..., Any]) -> ast.Name:
    return ast.Name(f"_sigtorch_{helper.__name__}", ast.Load())


def _call(helper: Callable[..., Any], *args: ast.expr, at: ast.AST) -> ast.Call:
    return ast.copy_location(ast.Call(_name(helper), [*args], []), at)
