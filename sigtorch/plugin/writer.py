"""Writes the products in a function's source anew: each of a sigmoid or silu with a tensor becomes a call that fuses it."""

from __future__ import annotations

import ast
import operator
from typing import Any, NamedTuple

import torch

from sigtorch.plugin import overlooked, products, source
from sigtorch.plugin.changes import SCOPES, Calm, Changes
from sigtorch.plugin.recognise import SIGMOID, SILU, activation, is_number, kind_of_attribute, sigmoid_method

_PRODUCTS = (torch.mul, torch.multiply, operator.mul)
_METHODS = ("mul", "multiply")
_FUSED_VIEWS = ("expand_as", "unsqueeze", "view")  # of a sigmoid: the product takes the same view of its gate
_HELPERS = (
    products.activated, products.product, products.product_by, products.product_of, products.putting_off, sigmoid_method
)  # fmt: skip
HELPERS = {f"_sigtorch_{helper.__name__}": helper for helper in _HELPERS}
# What a product may stand in where only what stands before it is evaluated before it.
_SPINE = (
    ast.Assign, ast.Return, ast.Expr, ast.Call, ast.BinOp, ast.UnaryOp, ast.Starred, ast.Tuple, ast.keyword, ast.Attribute
)  # fmt: skip
CHANGED = "its gate changes in place"
Span = tuple[Any, ...]


class Site(NamedTuple):
    """A product in a user's source, and the sigtorch function that fuses it, or the reason why none does."""

    where: str
    fused: str = ""
    reason: str = ""
    span: Span = ()


class _Factors(NamedTuple):
    """The factors that a node multiplies."""

    left: ast.expr
    right: ast.expr


class _Held(NamedTuple):
    """A sigmoid or silu that a variable holds until its one use, as a factor."""

    kind: str
    computed: ast.expr
    calm: bool


class Writer(ast.NodeTransformer):
    """Writes one function anew.

    Args:
        cls: whose method it is.
        function: the function.
        definition: its source, which is changed.
        kinds: what attributes of the module are.
        returning: the methods of the class that return a sigmoid or silu, and which of them.
        returned: the function itself is one, and is to put that off.
    """

    def __init__(
        self,
        cls: Any,
        function: Any,
        definition: ast.FunctionDef,
        kinds: dict[str, str],
        returning: dict[str, str],
        returned: bool = False,
    ) -> None:
        self.function, self.definition, self.kinds = function, definition, kinds
        self.returning, self.returned = returning, returned
        arguments = [*definition.args.posonlyargs, *definition.args.args]
        self.me = arguments[0].arg if arguments else ""
        self.calm, self.changes = Calm(cls, self.me), Changes(definition, kinds, self.me)
        self.sites: list[Site] = []
        self.seen: set[Span] = set()  # where those are
        self.refused: dict[Span, str] = {}  # where a product is that a name's assignment keeps from it
        self.used: set[str] = set()  # methods that return a sigmoid to a product
        self.held: dict[ast.AST, _Held] = {}  # by the load of a variable, and by its assignment
        self.statement: ast.stmt = definition

    def alike(self) -> list[Site]:
        """The products that look like one by their names, and why each is left if it is: to be asked before writing."""
        search = overlooked.Search(self.function, self.kinds, self.me)
        return [Site(self.place(n), "", why, _span(n)) for n, why in search.products(self.definition)]

    def left(self, alike: list[Site]) -> list[Site]:
        """The products among them that the writer did not see as one of a sigmoid."""
        return [s._replace(reason=self.refused.get(s.span, s.reason)) for s in alike if s.span not in self.seen]

    def visit(self, node: ast.AST) -> Any:
        before = self.statement
        if isinstance(node, ast.stmt):
            self.statement = node
        try:
            return super().visit(node)
        finally:
            self.statement = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        shared = _shared(node)
        for i, statement in enumerate(node.body):
            name = _assigned(statement)
            if name and name not in shared and (kind := self.kind(statement.value)):  # type: ignore[attr-defined]
                self.hold(statement, name, kind, node.body[i + 1 :])  # type: ignore[arg-type]
        return self.generic_visit(node)

    def hold(self, assignment: ast.Assign, name: str, kind: str, rest: list[ast.stmt]) -> None:
        """Notes that a variable holds a sigmoid, if its one use is a factor and its gate does not change."""
        use, at = self.only_use(rest, name)
        if use is None:
            return
        for product in ast.walk(at):
            factors = self.factors(product)
            if factors and use in [_viewed(f) for f in factors]:
                gate = self.gate(assignment.value)
                if gate is not None and self.changes.concern(gate, at):
                    self.refused[_span(product)] = CHANGED  # type: ignore[arg-type]
                    return
                calm = self.calm_after(assignment, rest[: rest.index(at)], at, product, use)
                held = _Held(kind, assignment.value, calm)
                self.held |= {assignment: held, use: held}

    def only_use(self, rest: list[ast.stmt], name: str) -> tuple[ast.Name | None, ast.stmt]:
        """The one load of a name, and its statement."""
        use, at = None, self.statement
        for statement in rest:
            named = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
            loads = [n for n in named if isinstance(n.ctx, ast.Load)]
            if not named:
                continue
            if not isinstance(statement, (ast.Assign, ast.Return, ast.Expr)) or len(loads) > (use is None):
                return None, at
            if loads:
                use, at = loads[0], statement
            if len(named) > len(loads):  # assigned
                break
        return use, at

    def calm_after(
        self, assignment: ast.Assign, between: list[ast.stmt], at: ast.stmt, product: ast.AST, use: ast.Name
    ) -> bool:
        """Whether nothing runs after the sigmoid of an assignment and before the product."""
        if not all(isinstance(s, ast.Assign) and self.calm(s.value, *s.targets) for s in between):
            return False
        if not self.calm(*_view_arguments(assignment.value)):
            return False
        for factor in self.factors(product) or ():
            if not self.calm(*_view_arguments(factor)) or (_viewed(factor) is not use and not self.calm(factor)):
                return False
        node: ast.AST = at
        while node is not product:
            if not isinstance(node, _SPINE):
                return False
            children = [node.value] if isinstance(node, ast.Assign) else [*ast.iter_child_nodes(node)]
            following = next(i for i, child in enumerate(children) if product in ast.walk(child))  # type: ignore[arg-type]
            if not self.calm(*children[:following]):  # type: ignore[arg-type]
                return False
            node = children[following]  # type: ignore[assignment]
        return True

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if node in self.held:
            node.value = self.operand(node.value, self.held[node].calm)
            return node
        return self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if self.returned and node.value is not None and node in self.definition.body:
            node.value = self.operand(node.value, calm=False)
            return node
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return self.product(node) or self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self.product(node) or self.generic_visit(node)

    def factors(self, node: ast.AST) -> _Factors | None:
        """Two that a node multiplies, neither of them a number for certain."""
        pair = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            pair = _Factors(node.left, node.right)
        elif isinstance(node, ast.Call) and not node.keywords:
            if len(node.args) == 2 and any(source.found(node.func, self.function) is p for p in _PRODUCTS):
                pair = _Factors(*node.args)
            elif len(node.args) == 1 and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
                pair = _Factors(node.func.value, node.args[0])
        if pair is None or any(isinstance(f, ast.Starred) or is_number(f, self.kinds, self.me) for f in pair):
            return None
        return pair

    def product(self, node: ast.BinOp | ast.Call) -> ast.AST | None:
        """The call that fuses a product, if one of its factors is a sigmoid or silu."""
        factors = self.factors(node)
        if factors is None:
            return None
        first, second = self.kind(factors.left), self.kind(factors.right)
        if not (first or second):
            return None
        self.seen.add(_span(node))
        fused = "swiglu" if (second or first) == SILU else "sigmoid_gate"
        for factor, kind in zip(factors, (first, second), strict=True):
            gate = self.gate(factor) if kind and _viewed(factor) not in self.held else None
            if gate is not None and self.changes.concern(gate, self.statement):
                self.sites.append(Site(self.place(node), fused, CHANGED, _span(node)))
                if any(_viewed(f) in self.held for f in factors):  # that one still awaits its product
                    return self.written(node, factors, "", "")
                return None
        self.sites.append(Site(self.place(node), fused))
        return self.written(node, factors, first or "", second or "")

    def written(self, node: ast.BinOp | ast.Call, factors: _Factors, first: str, second: str) -> ast.AST:
        """The call that computes a product of factors, of which those of a kind may be fused."""
        left, right = factors
        calm = self.calm(*_view_arguments(left)) and self.calm(right)
        fuse_left = (first and not second) or _viewed(left) in self.held
        new_left = self.operand(left, calm) if fuse_left else self.visit(left)
        fuse_right = second or _viewed(right) in self.held
        new_right = self.operand(right, self.calm(*_view_arguments(right))) if fuse_right else self.visit(right)
        if isinstance(node, ast.BinOp):
            return _call("product", new_left, new_right, at=node)
        if len(node.args) == 2:
            return _call("product_by", self.visit(node.func), new_left, new_right, at=node)
        by = _call("product_of", new_left, ast.Constant(node.func.attr), at=node)  # type: ignore[attr-defined]
        return ast.copy_location(ast.Call(by, [new_right], []), node)

    def place(self, node: Any) -> str:
        return f"{file_of(self.function)}:{node.lineno}"

    def kind(self, node: ast.expr) -> str | None:
        """The kind of an operand or of what it views, sigmoid or silu; else None."""
        if isinstance(node, ast.Name):
            return self.held[node].kind if node in self.held else None
        if not isinstance(node, ast.Call) or node.keywords:
            return None
        called = node.func
        if _is_view(node):
            return self.kind(called.value)  # type: ignore[attr-defined]
        if isinstance(called, ast.Attribute) and called.attr == SIGMOID and not node.args:
            return SIGMOID if not self.is_me(called.value) else None
        if isinstance(called, ast.Attribute) and self.is_me(called.value) and called.attr in self.returning:
            return self.returning[called.attr]
        if len(node.args) != 1 or isinstance(node.args[0], ast.Starred):
            return None
        kind = kind_of_attribute(called, self.kinds, self.me)
        return kind if kind in (SIGMOID, SILU) else activation(source.found(called, self.function))

    def gate(self, node: ast.expr) -> ast.expr | None:
        """The argument of the sigmoid or silu in an operand; None where another method computes that."""
        node = _viewed(node)
        if isinstance(node, ast.Name):
            return self.gate(self.held[node].computed)
        called: Any = node.func  # type: ignore[attr-defined]
        if self.is_me(getattr(called, "value", None)) and called.attr in self.returning:
            return None
        return node.args[0] if node.args else called.value  # type: ignore[attr-defined,no-any-return]

    def operand(self, node: Any, calm: bool) -> ast.expr:
        """An operand that is a sigmoid or silu, for a product to fuse."""
        if isinstance(node, ast.Name):
            return node
        called = node.func
        if _is_view(node):
            called.value = self.operand(called.value, calm)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        if not node.args and called.attr == SIGMOID:
            helper = ast.Name("_sigtorch_sigmoid_method", ast.Load())
            return _call("activated", helper, self.visit(called.value), ast.Constant(calm), at=node)
        if self.is_me(getattr(called, "value", None)) and called.attr in self.returning:
            self.used.add(called.attr)
            node.func = _call("putting_off", called, at=node)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        return _call("activated", self.visit(called), self.visit(node.args[0]), ast.Constant(calm), at=node)

    def is_me(self, node: ast.AST | None) -> bool:
        return isinstance(node, ast.Name) and node.id == self.me


def looks_at_names(definition: ast.FunctionDef) -> bool:
    """Whether a function asks Python what its variables hold."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and node.attr in ("currentframe", "_getframe", "f_locals"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in ("eval", "exec") or (name in ("locals", "vars", "dir") and not node.args):
                return True
    return False


def file_of(function: Any) -> str:
    name: str = function.__code__.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return name


def _assigned(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns to."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    return statement.targets[0].id if isinstance(statement.targets[0], ast.Name) else None


def _is_view(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or node.keywords or not node.args:
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr in _FUSED_VIEWS


def _viewed(node: ast.expr) -> ast.expr:
    """The expression that an operand views; itself, if it is no view."""
    while _is_view(node):
        node = node.func.value  # type: ignore[attr-defined]
    return node


def _view_arguments(node: ast.expr) -> list[ast.expr]:
    """The arguments of the views in an operand."""
    given: list[ast.expr] = []
    while _is_view(node):
        given += node.args  # type: ignore[attr-defined]
        node = node.func.value  # type: ignore[attr-defined]
    return given


def _span(node: Any) -> Span:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _shared(function: ast.FunctionDef) -> set[str]:
    """Names that something else than the function's own statements may use."""
    names = {n.id for s in ast.walk(function) if isinstance(s, SCOPES) and s is not function
             for n in ast.walk(s) if isinstance(n, ast.Name)}  # fmt: skip
    for n in ast.walk(function):
        if isinstance(n, (ast.Global, ast.Nonlocal)):
            names.update(n.names)
    return names


def _call(helper: str, *args: ast.expr, at: ast.expr) -> ast.Call:
    return ast.copy_location(ast.Call(ast.Name(f"_sigtorch_{helper}", ast.Load()), [*args], []), at)
