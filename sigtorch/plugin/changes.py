"""What a method's source says of when things happen: what changes in place, by whatever name, and what runs in between."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from sigtorch.plugin.recognise import IN_PLACE

Position = tuple[int, int]
SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
)  # fmt: skip
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_STILL = (
    ast.Name, ast.Constant, ast.Tuple, ast.List, ast.UnaryOp, ast.unaryop, ast.operator, ast.expr_context, ast.Starred, ast.Load
)  # fmt: skip
# Functions that give a view of their first argument, in one case or other.
_VIEWS = {
    "broadcast_to", "chunk", "detach", "flatten", "movedim", "narrow", "permute", "rearrange", "reshape", "select",
    "split", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose", "unbind", "unflatten", "unsqueeze",
    "view_as_real",
}  # fmt: skip
# Methods of a tensor that give memory of its own, in whatever case.
_ANEW = {
    "clone",
    "mean",
    "sum",
    "amax",
    "amin",
    "add",
    "sub",
    "mul",
    "div",
    "matmul",
    "exp",
    "sigmoid",
    "softmax",
    "tanh",
}


class Changes:
    """The changes in place that one function's source shows."""

    def __init__(self, function: ast.FunctionDef, kinds: dict[str, str], me: str) -> None:
        self.function, self.kinds, self.me = function, kinds, me
        self.scope_of: dict[ast.AST, tuple[ast.AST, ...]] = {}  # the loops and functions that a node is in
        self._enclose(function, ())
        arguments = {a.arg for n in ast.walk(function) if isinstance(n, ast.arguments)
                     for a in (*n.posonlyargs, *n.args, *n.kwonlyargs, n.vararg, n.kwarg) if a}  # fmt: skip
        stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.variables = (arguments | stored) - {me}
        self.alias: dict[str, str] = {}
        for node in ast.walk(function):
            for target, value in _assignments(node):
                self._unite(target, value)
        self.changed = [(node, name) for node in ast.walk(function) for name in self._changed_by(node)]

    def concern(self, gate: ast.expr, product: ast.AST, statement: ast.stmt) -> bool:
        """Whether the memory of a gate changes after its sigmoid is taken: before a product of it, or after."""
        name = self.owner(gate)
        if not name:
            return False
        names, within = self._root(name), {*ast.walk(gate)}
        for node, changed in self.changed:
            if self._root(changed) != names or node in within:
                continue
            if self._may_follow(node, gate) and not self._another_since(changed, statement, node):
                return True
        return False

    def owner(self, node: ast.AST | None) -> str:
        """The variable, or attribute of the module, that an expression is a part or view of, as far as names tell."""
        if isinstance(node, ast.Name):
            return "" if node.id == self.me else node.id
        if isinstance(node, ast.Attribute):
            of_me = isinstance(node.value, ast.Name) and node.value.id == self.me
            return f"{self.me}.{node.attr}" if of_me else self.owner(node.value)
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else self.owner(node.func)
            if self._is_method(node.func):
                return self.owner(node.func) if called not in _ANEW else ""
            return self.owner(node.args[0]) if called in _VIEWS and node.args else ""
        if isinstance(node, (ast.Subscript, ast.Starred, ast.NamedExpr, ast.Await)):
            return self.owner(node.value)
        return ""

    def _root(self, name: str) -> str:
        while (more := self.alias.get(name, name)) != name:
            name = more
        return name

    def _unite(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
            pairs = zip(
                target.elts, values if len(values) == len(target.elts) else [value] * len(target.elts), strict=True
            )
            for pair in pairs:
                self._unite(*pair)
            return
        for part in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
            one, other = self.owner(target), self.owner(part)
            if one and other:
                self.alias[self._root(one)] = self._root(other)

    def _changed_by(self, node: ast.AST) -> Iterator[str]:
        changed: list[ast.AST | None] = []
        if isinstance(node, ast.AugAssign):
            changed = [node.target]
        elif isinstance(node, ast.Call):
            options = {k.arg: k.value for k in node.keywords}
            everything: list[ast.AST | None] = [node.func, *node.args, *options.values()]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else self.owner(node.func)
            in_place = options.get("inplace", ast.Constant(False))
            if called.endswith("_") and not called.endswith("__"):
                changed = [node.func] if self._is_method(node.func) else everything
            elif called == "__setitem__" or not (isinstance(in_place, ast.Constant) and not in_place.value):
                changed = everything
            elif self._attribute(node.func) == IN_PLACE:
                changed = [*node.args]
            if "out" in options:
                changed = [*changed, options["out"]]
        else:
            changed = [t.value for target, _ in _assignments(node) for t in _parts(target)
                       if isinstance(t, ast.Subscript) or (isinstance(t, ast.Attribute) and self.owner(t.value))]  # fmt: skip
        for part in changed:
            for inner in _parts(part):
                if name := self.owner(inner):
                    yield name

    def _is_method(self, called: ast.expr) -> bool:
        """Whether this is a method of a variable's, or of an attribute of the module."""
        if not isinstance(called, ast.Attribute):
            return False
        owner = self.owner(called.value)
        return owner in self.variables or owner.startswith(f"{self.me}.")

    def _attribute(self, called: ast.expr) -> str | None:
        of_me = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == self.me
        return self.kinds.get(called.attr) if of_me else None  # type: ignore[attr-defined]

    def _enclose(self, node: ast.AST, within: tuple[ast.AST, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            self.scope_of[child] = within
            self._enclose(child, (*within, child) if isinstance(child, (*_LOOPS, *SCOPES)) else within)

    def _may_follow(self, node: ast.AST, gate: ast.expr) -> bool:
        mine, others = self.scope_of.get(gate, ()), self.scope_of.get(node, ())
        if any(isinstance(s, _LOOPS) for s in mine if s in others):
            return True
        if any(isinstance(s, SCOPES) for s in {*mine} ^ {*others}):  # called whenever
            return True
        return position(node) > position(gate)

    def _another_since(self, name: str, statement: ast.stmt, change: ast.AST) -> bool:
        """Whether a variable was assigned anew by the product's own statement, or by one after that, before a change."""
        body = self.function.body
        if statement not in body or self.scope_of.get(change):
            return False
        for s in body[body.index(statement) :]:
            if position(s) >= position(change) or (change is not s and change in {*ast.walk(s)}):
                return False
            pairs = _assignments(s) if isinstance(s, ast.Assign) else ()
            for target, value in pairs:
                if (
                    isinstance(target, ast.Name)
                    and target.id == name
                    and self._root(self.owner(value) or "") != self._root(name)
                ):
                    return True
        return False


def _assignments(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Targets and what they get."""
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        return [(node.target, node.value)]
    if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        return [(node.target, node.iter)]
    return []


def _parts(node: ast.AST | None) -> list[ast.AST]:
    """The elements of a tuple or list, starred ones too; a node itself otherwise."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return [part for element in node.elts for part in _parts(element)]
    return [] if node is None else [node]


def position(node: Any) -> Position:
    """Where a node begins: what is evaluated first stands first, as a rule."""
    return node.lineno, node.col_offset


class Calm:
    """Tells what runs nothing of anybody's: names, constants, and attributes of the module that are no properties."""

    def __init__(self, cls: Any, me: str) -> None:
        self.cls, self.me = cls, me
        reads = (cls.__getattribute__, getattr(cls, "__getattr__", None))
        self.plain = reads == (object.__getattribute__, torch.nn.Module.__getattr__)

    def __call__(self, *nodes: ast.AST) -> bool:
        return all(self._one(node) for node in nodes)

    def _one(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            of_me = isinstance(node.value, ast.Name) and node.value.id == self.me
            return of_me and self.plain and inspect.getattr_static(self.cls, node.attr, None) is None
        return isinstance(node, _STILL) and self(*ast.iter_child_nodes(node))
