"""Rewrites a function's source: each product of a sigmoid or silu with a tensor becomes a call that fuses it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sigtorch.plugin import products, source
from sigtorch.plugin.changes import SCOPES, Changes, InertCheck
from sigtorch.plugin.recognise import (
    SIGMOID,
    SILU,
    Activation,
    Kind,
    attribute_activation,
    fusable_activation,
    is_number,
    sigmoid_method,
)

_PRODUCTS = (torch.mul, torch.multiply, operator.mul)
_METHODS = ("mul", "multiply")
_FUSED_VIEWS = ("expand_as", "unsqueeze", "view")  # of a sigmoid: the product takes the same view of its gate
_HELPERS = (
    products.activated, products.activated_early, products.deferring, products.product, products.product_by,
    products.product_method, sigmoid_method,
)  # fmt: skip
HELPERS = {f"_sigtorch_{helper.__name__}": helper for helper in _HELPERS}
# Nodes whose parts are evaluated in the order in which they stand, so that only those before a product run before it.
_IN_ORDER = (
    ast.Assign, ast.Return, ast.Expr, ast.Call, ast.BinOp, ast.UnaryOp, ast.Starred, ast.Tuple, ast.keyword, ast.Attribute
)  # fmt: skip
CHANGED_REASON = "its gate changes in place"
Span = tuple[Any, ...]


class Site(NamedTuple):
    """A product in a user's source, and the sigtorch function that fuses it or the reason why none does."""

    where: str
    fused: str = ""
    reason: str = ""


class _Factors(NamedTuple):
    """The factors that a node multiplies."""

    left: ast.expr
    right: ast.expr


class _Held(NamedTuple):
    """A sigmoid or silu that a variable holds until its one use, as a factor, and the helper that computes it."""

    activation: Activation
    value: ast.expr
    helper: Callable[..., Any]


class Writer(ast.NodeTransformer):
    """Rewrites one function.

    Args:
        cls: the class whose method the function is.
        function: the function.
        definition: its source, which is changed in place.
        kinds: the kinds of the module's attributes.
        activation_methods: the methods of the class that return the result of a sigmoid or silu, and of which.
        defer_return: whether the function is one of these, and its result is put off for a product that its caller computes.
    """

    def __init__(
        self,
        cls: Any,
        function: Any,
        definition: ast.FunctionDef,
        kinds: dict[str, Kind],
        activation_methods: dict[str, Activation],
        defer_return: bool = False,
    ) -> None:
        self.function, self.definition, self.kinds = function, definition, kinds
        self.activation_methods, self.defer_return = activation_methods, defer_return
        arguments = [*definition.args.posonlyargs, *definition.args.args]
        self.self_name = arguments[0].arg if arguments else ""
        self.is_inert, self.changes = InertCheck(cls, self.self_name), Changes(definition, kinds, self.self_name)
        self.sites: list[Site] = []
        self.site_spans: set[Span] = set()
        self.refused: dict[Span, Site] = {}  # products whose factor is assigned where it cannot be put off
        self.deferred_methods: set[str] = set()  # the activation methods whose results products take
        self.held: dict[ast.AST, _Held] = {}  # by the load of a variable, and by its assignment
        self.statement: ast.stmt = definition

    def refused_sites(self) -> list[Site]:
        """Returns the products whose assigned factor cannot be put off, and that have no other factor to fuse."""
        return [site for span, site in self.refused.items() if span not in self.site_spans]

    def visit(self, node: ast.AST) -> Any:
        before = self.statement
        if isinstance(node, ast.stmt):
            self.statement = node
        try:
            return super().visit(node)
        finally:
            self.statement = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        shared = _names_used_elsewhere(node)
        for i, statement in enumerate(node.body):
            if isinstance(statement, ast.Assign):
                self.hold(statement, node.body[i + 1 :], shared)
        return self.generic_visit(node)

    def hold(self, assignment: ast.Assign, rest: list[ast.stmt], shared: set[str]) -> None:
        """Notes that a variable holds a sigmoid or silu, if its one use is as a factor and its gate does not change."""
        name, activation = _assigned_name(assignment), self.activation(assignment.value)
        if name is None or name in shared or activation is None:
            return
        use, user = self.only_use(rest, name)
        if use is None:
            return
        for product in ast.walk(user):
            factors = self.factors(product)
            if factors and use in [_viewed(f) for f in factors]:
                gate = self.gate(assignment.value)
                if gate is not None and self.changes.affect(gate, user):
                    self.refused[_span(product)] = Site(self.line_of(product), "", CHANGED_REASON)
                    return
                path_is_inert = self.nothing_runs_between(assignment, rest[: rest.index(user)], user, product, use)
                helper = products.activated if path_is_inert else products.activated_early
                held = _Held(activation, assignment.value, helper)
                self.held |= {assignment: held, use: held}

    def only_use(self, rest: list[ast.stmt], name: str) -> tuple[ast.Name | None, ast.stmt]:
        """Returns the one load of a name in these statements, and its statement; None if there is not exactly one."""
        use, user = None, self.statement
        for statement in rest:
            occurrences = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
            loads = [n for n in occurrences if isinstance(n.ctx, ast.Load)]
            if not occurrences:
                continue
            if not isinstance(statement, (ast.Assign, ast.Return, ast.Expr)) or len(loads) > (use is None):
                return None, user
            if loads:
                use, user = loads[0], statement
            if len(occurrences) > len(loads):  # assigned
                break
        return use, user

    def nothing_runs_between(
        self, assignment: ast.Assign, between: list[ast.stmt], user: ast.stmt, product: ast.AST, use: ast.Name
    ) -> bool:
        """Tells whether no code of the user's runs after an assigned sigmoid and before the product."""
        if not all(isinstance(s, ast.Assign) and self.is_inert(s.value, *s.targets) for s in between):
            return False
        if not self.is_inert(*_view_arguments(assignment.value)):
            return False
        for factor in self.factors(product) or ():
            if not self.is_inert(*_view_arguments(factor)):
                return False
            if _viewed(factor) is not use and not self.is_inert(factor):
                return False
        node: ast.AST = user
        while node is not product:
            if not isinstance(node, _IN_ORDER):
                return False
            children: list[ast.AST] = [node.value] if isinstance(node, ast.Assign) else [*ast.iter_child_nodes(node)]
            next_one = next(i for i, child in enumerate(children) if product in ast.walk(child))
            if not self.is_inert(*children[:next_one]):
                return False
            node = children[next_one]
        return True

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if node in self.held:
            node.value = self.put_off(node.value, self.held[node].helper)
            return node
        return self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if self.defer_return and node.value is not None and node in self.definition.body:
            node.value = self.put_off(node.value, products.activated_early)
            return node
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return self.fuse(node) or self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self.fuse(node) or self.generic_visit(node)

    def factors(self, node: ast.AST) -> _Factors | None:
        """Returns the two factors that a node multiplies, if neither is certainly a number."""
        pair = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            pair = _Factors(node.left, node.right)
        elif isinstance(node, ast.Call) and not node.keywords:
            if len(node.args) == 2 and any(source.resolve(node.func, self.function) is p for p in _PRODUCTS):
                pair = _Factors(*node.args)
            elif len(node.args) == 1 and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
                pair = _Factors(node.func.value, node.args[0])
        if pair is None or any(isinstance(f, ast.Starred) or is_number(f, self.kinds, self.self_name) for f in pair):
            return None
        return pair

    def fuse(self, node: ast.BinOp | ast.Call) -> ast.AST | None:
        """Returns the call that fuses a product, if one of its factors is a sigmoid or silu."""
        factors = self.factors(node)
        if factors is None:
            return None
        left, right = self.activation(factors.left), self.activation(factors.right)
        if not (left or right):
            return None
        self.site_spans.add(_span(node))
        fused = "swiglu" if (right or left) == SILU else "sigmoid_gate"
        for factor, activation in zip(factors, (left, right), strict=True):
            gate = self.gate(factor) if activation and _viewed(factor) not in self.held else None
            if gate is not None and self.changes.affect(gate, self.statement):
                self.sites.append(Site(self.line_of(node), fused, CHANGED_REASON))
                if any(_viewed(f) in self.held for f in factors):  # that one still awaits its product
                    return self.product_call(node, factors, put_off_left=False, put_off_right=False)
                return None
        self.sites.append(Site(self.line_of(node), fused))
        # Of two sigmoids or silus the right one is fused.
        return self.product_call(node, factors, put_off_left=bool(left and not right), put_off_right=bool(right))

    def product_call(
        self, node: ast.BinOp | ast.Call, factors: _Factors, *, put_off_left: bool, put_off_right: bool
    ) -> ast.AST:
        """Returns the call that computes a product; factors that variables hold are put off in any case."""
        left, right = factors
        after_right = self.is_inert(*_view_arguments(right))
        after_left = self.is_inert(*_view_arguments(left)) and self.is_inert(right)
        new_left = self.factor(left, after_left) if put_off_left or _viewed(left) in self.held else self.visit(left)
        new_right = (
            self.factor(right, after_right) if put_off_right or _viewed(right) in self.held else self.visit(right)
        )
        if isinstance(node, ast.BinOp):
            return _call(products.product, new_left, new_right, at=node)
        if len(node.args) == 2:
            return _call(products.product_by, self.visit(node.func), new_left, new_right, at=node)
        method: Any = node.func
        by = _call(products.product_method, new_left, ast.Constant(method.attr), at=node)
        return ast.copy_location(ast.Call(by, [new_right], []), node)

    def factor(self, node: ast.expr, path_is_inert: bool) -> ast.expr:
        """Returns a factor that is put off; ``path_is_inert`` says that no code of the user's runs before the product."""
        return self.put_off(node, products.activated if path_is_inert else products.activated_early)

    def line_of(self, node: Any) -> str:
        return f"{file_name(self.function)}:{node.lineno}"

    def activation(self, node: ast.expr) -> Activation | None:
        """Returns which activation's result an expression is, or a view of such a result; None if it is neither."""
        if isinstance(node, ast.Name):
            return self.held[node].activation if node in self.held else None
        if not isinstance(node, ast.Call) or node.keywords:
            return None
        callee: Any = node.func
        if _is_view(node):
            return self.activation(callee.value)
        if _is_sigmoid_method(node):
            return SIGMOID if not self.is_self(callee.value) else None
        if isinstance(callee, ast.Attribute) and self.is_activation_method(callee):
            return self.activation_methods[callee.attr]
        if len(node.args) != 1 or isinstance(node.args[0], ast.Starred):
            return None
        known = attribute_activation(callee, self.kinds, self.self_name)
        return known or fusable_activation(source.resolve(callee, self.function))

    def gate(self, node: Any) -> ast.expr | None:
        """Returns the argument of a factor's sigmoid or silu; None if another method computes that."""
        node = _viewed(node)
        if isinstance(node, ast.Name):
            return self.gate(self.held[node].value)
        if self.is_activation_method(node.func):
            return None
        return node.args[0] if node.args else node.func.value  # type: ignore[no-any-return]

    def put_off(self, node: Any, helper: Callable[..., Any]) -> ast.expr:
        """Returns a sigmoid or silu, or a view of one, as the call of a helper that puts it off for a product."""
        if isinstance(node, ast.Name):
            return node
        if _is_view(node):
            node.func.value = self.put_off(node.func.value, helper)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        if _is_sigmoid_method(node):
            function = ast.Name(f"_sigtorch_{sigmoid_method.__name__}", ast.Load())
            return _call(helper, function, self.visit(node.func.value), at=node)
        if self.is_activation_method(node.func):
            self.deferred_methods.add(node.func.attr)
            node.func = _call(products.deferring, node.func, at=node)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        return _call(helper, self.visit(node.func), self.visit(node.args[0]), at=node)

    def is_self(self, node: ast.AST | None) -> bool:
        return isinstance(node, ast.Name) and node.id == self.self_name

    def is_activation_method(self, callee: Any) -> bool:
        return self.is_self(getattr(callee, "value", None)) and callee.attr in self.activation_methods


def looks_at_variables(definition: ast.FunctionDef) -> bool:
    """Tells whether a function asks Python for its variables."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and node.attr in ("currentframe", "_getframe", "f_locals"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in ("eval", "exec") or (name in ("locals", "vars", "dir") and not node.args):
                return True
    return False


def file_name(function: Any) -> str:
    """Returns the name of a function's file, without its folder."""
    name: str = function.__code__.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return name


def _assigned_name(assignment: ast.Assign) -> str | None:
    """Returns the variable that is assigned, if it is the only target."""
    target, *more = assignment.targets
    return target.id if isinstance(target, ast.Name) and not more else None


def _is_view(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or node.keywords or not node.args:
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr in _FUSED_VIEWS


def _is_sigmoid_method(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "sigmoid" and not call.args


def _viewed(node: ast.expr) -> ast.expr:
    """Returns the expression of which the views in a node are taken; the node itself if it is no view."""
    while _is_view(node):
        node = node.func.value  # type: ignore[attr-defined]
    return node


def _view_arguments(node: ast.expr) -> list[ast.expr]:
    """Returns the arguments of the views in a node."""
    arguments: list[ast.expr] = []
    while _is_view(node):
        arguments += node.args  # type: ignore[attr-defined]
        node = node.func.value  # type: ignore[attr-defined]
    return arguments


def _span(node: Any) -> Span:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _names_used_elsewhere(function: ast.FunctionDef) -> set[str]:
    """Returns the names that code outside of the function's own statements may use."""
    names = {n.id for s in ast.walk(function) if isinstance(s, SCOPES) and s is not function
             for n in ast.walk(s) if isinstance(n, ast.Name)}  # fmt: skip
    for n in ast.walk(function):
        if isinstance(n, (ast.Global, ast.Nonlocal)):
            names.update(n.names)
    return names


def _call(helper: Callable[..., Any], *args: ast.expr, at: ast.expr) -> ast.Call:
    return ast.copy_location(ast.Call(ast.Name(f"_sigtorch_{helper.__name__}", ast.Load()), [*args], []), at)
