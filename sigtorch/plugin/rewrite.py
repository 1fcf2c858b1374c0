"""Methods written anew: each product of a sigmoid or silu with a tensor becomes a call that fuses it, all else stays.

The method's own source is compiled again, with the globals, closure, defaults and lines it had.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
from typing import Any, NamedTuple

import torch

from sigtorch.plugin import overlooked, products, source
from sigtorch.plugin.recognise import NUMBER, SIGMOID, SILU, activation, is_number, kind_of_attribute, sigmoid_method

_PRODUCTS = (torch.mul, torch.multiply, operator.mul)
_VIEWS = ("expand_as", "unsqueeze", "view")  # of a product's operand, which the activation may come after
_HELPERS = {"activated": products.activated, "method": products.method, "product": products.product}
_SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
)  # fmt: skip


class Site(NamedTuple):
    """A product in somebody's source, and what becomes of it: one of ours, or the reason why not."""

    where: str
    fused: str
    reason: str = ""


class Rewritten(NamedTuple):
    """A method's function, None where it stays as it is, and the products in it."""

    function: Any
    sites: tuple[Site, ...]


def methods_of(cls: Any, activations: frozenset[tuple[str, str]]) -> dict[str, Rewritten]:
    """Those of a class' methods that hold products, whose instance has a sigmoid, silu or number as these attributes."""
    theirs = [b for b in reversed(cls.__mro__) if b.__module__.split(".")[0] not in ("torch", "sigtorch", "builtins")]
    # As they are now, for anybody may replace one.
    functions = (
        (b, n, f) for b in theirs for n, f in vars(b).items() if inspect.isfunction(f) and not n.startswith("__")
    )
    return _methods_of(cls, tuple(functions), activations)


@functools.cache
def _methods_of(
    cls: Any, functions: tuple[tuple[type, str, Any], ...], activations: frozenset[tuple[str, str]]
) -> dict[str, Rewritten]:
    methods = {name: f for _, name, f in functions if inspect.getattr_static(cls, name) is f}
    # At a glance: most methods hold no product, and need not be read.
    telling = overlooked.NAMES | {name for name, kind in activations if kind != NUMBER}
    telling |= {n for n, f in methods.items() if _tells(f, telling) and _returning(cls, f, activations)}
    made = {name: _rewritten(cls, f, activations) for name, f in methods.items() if _tells(f, telling)}
    for base, name, f in functions:
        by_super = (g for g in methods.values() if {name, "super"} <= _names(g) or {name, base.__name__} <= _names(g))
        if methods.get(name) is not f and _tells(f, telling) and any(by_super):
            sites = _rewritten(cls, f, activations).sites
            why = "a method of a subclass calls it"
            made[f"{base.__name__}.{name}"] = Rewritten(None, tuple(s._replace(reason=s.reason or why) for s in sites))
    return {name: r for name, r in made.items() if r.sites}


def _tells(function: Any, telling: set[str]) -> bool:
    """Whether a function names what may be a sigmoid or silu."""
    names, known = _names(function), getattr(inspect.unwrap(function), "__globals__", {})
    return bool(names & telling) or any(overlooked.holds_activations(known.get(name)) for name in names)


@functools.cache
def _names(function: Any) -> set[str]:
    """What a function's code names, wrapped and nested ones included."""
    names: set[str] = set()
    codes = [f.__code__ for f in (inspect.unwrap(function),) if inspect.isfunction(f)]
    for code in codes:
        names.update((*code.co_names, *code.co_freevars))
        codes += [c for c in code.co_consts if inspect.iscode(c)]
    return names


def _rewritten(cls: type, attribute: Any, activations: frozenset[tuple[str, str]]) -> Rewritten:
    function = inspect.unwrap(attribute)
    tree = source.parsed(function)
    if tree is None:
        place = f"{_file(function)}:{function.__code__.co_firstlineno}"
        unread = (Site(place, "", "its source cannot be read"),) if source.multiplies(function.__code__) else ()
        return Rewritten(None, unread)
    writer = _Writer(cls, function, activations)
    alike = [*overlooked.Search(function, writer.kinds, writer.me).products(tree)]  # before it is written anew
    anew = writer.visit(tree)
    left = [Site(writer.place(node), "", why) for node, why in alike if _span(node) not in writer.written]
    sites = (*writer.sites, *left)
    if all(site.reason for site in sites):
        return Rewritten(None, sites)
    made = source.compiled(anew, function, writer.helpers)
    if made is None:
        return Rewritten(None, tuple(s._replace(reason="its source is not what runs") for s in sites))
    made = source.wrapped_again(attribute, function, made)
    if made is None:
        return Rewritten(None, tuple(s._replace(reason="a decorator hides the method") for s in sites))
    made._sigtorch_of = attribute  # for products.method
    return Rewritten(made, sites)


def _file(function: Any) -> str:
    name: str = function.__code__.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return name


class _Writer(ast.NodeTransformer):
    """Writes the products of one function anew."""

    def __init__(
        self, cls: type, function: Any, activations: frozenset[tuple[str, str]], returned: bool = False
    ) -> None:
        self.cls, self.function, self.activations, self.returned = cls, function, activations, returned
        self.kinds = dict(activations)
        self.me = next(iter(inspect.signature(function).parameters), "")
        self.sites: list[Site] = []
        self.written: set[tuple[Any, ...]] = set()  # where those are
        self.helpers: dict[str, Any] = {_name(name).id: helper for name, helper in _HELPERS.items()}
        self.put_off: dict[ast.AST, str] = {}  # loads of a name, and what it holds: assignments of these likewise

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        shared = _shared(node)
        for i, statement in enumerate(node.body):
            name = _assigned(statement)
            if name is None or name in shared or not (held := self.kind(statement.value)):  # type: ignore[attr-defined]
                continue
            computed: Any = _seen(statement.value)  # type: ignore[attr-defined]
            of = {_owner(computed.args[0] if computed.args else computed.func)} - {self.me}
            if use := self.only_factor(node.body[i + 1 :], name, of):
                self.put_off |= {statement: held, use: held}
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if node in self.put_off:
            node.value = self.operand(node.value, still=False)
            return node
        return self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if self.returned and node.value is not None:
            node.value = self.operand(node.value, still=False)
            return node
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return self.product(node) or self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self.product(node) or self.generic_visit(node)

    def factors(self, node: ast.AST) -> tuple[ast.expr, ...]:
        """Two that a node multiplies, and what does it where that is no operator; nothing for another node."""
        found_: tuple[ast.expr, ...] = ()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            found_ = (node.left, node.right)
        elif isinstance(node, ast.Call) and not node.keywords:
            if len(node.args) == 2 and any(source.found(node.func, self.function) is p for p in _PRODUCTS):
                found_ = (*node.args, node.func)
            elif len(node.args) == 1 and isinstance(node.func, ast.Attribute) and node.func.attr in ("mul", "multiply"):
                found_ = (node.func.value, node.args[0], ast.Constant(node.func.attr))
        no_pair = (isinstance(f, ast.Starred) or is_number(f, self.kinds, self.me) for f in found_[:2])
        return () if any(no_pair) else found_

    def product(self, node: ast.expr) -> ast.AST | None:
        """The call that fuses a product, if one of its factors is a sigmoid or silu."""
        left, right, *by = self.factors(node) or (node, node)
        kind, last = self.kind(left), self.kind(right)
        if left is right or not (kind or last):
            return None
        self.written.add(_span(node))
        self.sites.append(Site(self.place(node), "swiglu" if (last or kind) == SILU else "sigmoid_gate"))
        if last:
            operands = [self.visit(left), self.operand(right, still=True)]
        else:
            calm = not any(isinstance(n, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for n in ast.walk(right))
            operands = [self.operand(left, still=calm), self.visit(right)]
        return _call("product", *operands, *by, at=node)

    def only_factor(self, rest: list[ast.stmt], name: str, of: set[str]) -> ast.Name | None:
        """The one use of a name as a factor, before it is assigned anew or the function ends, or what it is of changes."""
        use = None
        for statement in rest:
            named = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
            loads = [n for n in named if isinstance(n.ctx, ast.Load)]
            if use is None and _changed(statement) & of:
                return None
            if not named:
                continue
            if not isinstance(statement, (ast.Assign, ast.Return, ast.Expr)) or len(loads) > (use is None):
                return None
            if loads:
                factors = [_seen(f) for n in ast.walk(statement) for f in self.factors(n)[:2]]
                if loads[0] not in factors:
                    return None
                use = loads[0]
            if len(named) > len(loads):  # assigned
                break
        return use

    def place(self, node: ast.stmt | ast.expr) -> str:
        return f"{_file(self.function)}:{node.lineno}"

    def kind(self, node: ast.expr) -> str | None:
        """What an operand is, sigmoid or silu, maybe seen as another shape."""
        if isinstance(node, ast.Name):
            return self.put_off.get(node)
        if not isinstance(node, ast.Call) or node.keywords:
            return None
        called = node.func
        if _is_view(node):
            return self.kind(called.value)  # type: ignore[attr-defined]
        if isinstance(called, ast.Attribute) and called.attr == SIGMOID and not node.args:
            return SIGMOID if ast.unparse(called.value) != self.me else None
        if (inner := self.returning(called)) is not None:
            return inner[0]
        if len(node.args) != 1 or isinstance(node.args[0], ast.Starred):
            return None
        kind = kind_of_attribute(called, self.kinds, self.me)
        return kind if kind in (SIGMOID, SILU) else activation(source.found(called, self.function))

    def operand(self, node: Any, still: bool) -> ast.expr:
        """An operand that is a sigmoid or silu, put off."""
        if isinstance(node, ast.Name):
            return node
        called = node.func
        if _is_view(node):
            called.value = self.operand(called.value, still)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        if not node.args and called.attr == SIGMOID:
            self.helpers[_name("sigmoid_method").id] = sigmoid_method
            return _call("activated", _name("sigmoid_method"), self.visit(called.value), ast.Constant(still), at=node)
        if (inner := self.returning(called)) is not None:
            _, function, anew = inner
            names = [_name(f"{called.attr}_{n}") for n in ("known", "anew")]
            self.helpers |= {name.id: value for name, value in zip(names, (function, anew), strict=True)}
            node.func = _call("method", called, *names, at=node)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        return _call("activated", self.visit(called), self.visit(node.args[0]), ast.Constant(still), at=node)

    def returning(self, called: ast.expr) -> tuple[str, Any, Any] | None:
        """A method of the same class that ends in a sigmoid or silu: what, its function, and one that puts it off."""
        if not isinstance(called, ast.Attribute) or ast.unparse(called.value) != self.me or self.returned:
            return None
        return _returning(self.cls, inspect.getattr_static(self.cls, called.attr, None), self.activations)


@functools.cache
def _returning(cls: type, function: Any, activations: frozenset[tuple[str, str]]) -> tuple[str, Any, Any] | None:
    tree = source.parsed(function) if inspect.isfunction(function) else None
    if tree is None or tree.decorator_list or function.__module__.split(".")[0] == "torch":
        return None
    returns = [n for n in ast.walk(tree) if isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom))]
    writer = _Writer(cls, function, activations, returned=True)
    if len(returns) != 1 or tree.body[-1] is not returns[0] or returns[0].value is None:
        return None
    kind = writer.kind(returns[0].value)
    made = kind and source.compiled(writer.visit(tree), function, writer.helpers)
    return (kind, function, made) if kind and made else None


def _assigned(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns to."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    return statement.targets[0].id if isinstance(statement.targets[0], ast.Name) else None


def _seen(node: ast.expr) -> ast.expr:
    """What views of it are taken of."""
    while _is_view(node):
        node = node.func.value  # type: ignore[attr-defined]
    return node


def _span(node: ast.stmt | ast.expr) -> tuple[Any, ...]:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _is_view(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or node.keywords or not node.args:
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS


def _changed(statement: ast.stmt) -> set[str]:
    """Names of what a statement changes in place, as far as names tell."""
    changed: list[ast.expr] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.AugAssign):
            changed.append(node.target)
        elif isinstance(node, ast.Call) and overlooked.last(node.func).endswith("_"):
            changed += [node.func, *node.args]
    return {_owner(part) for part in changed}


def _owner(node: ast.AST) -> str:
    """The name that an expression starts from, by attributes, items and methods."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _shared(function: ast.FunctionDef) -> set[str]:
    """Names that something else than the function's own statements may use."""
    names = {n.id for s in ast.walk(function) if isinstance(s, _SCOPES) and s is not function
             for n in ast.walk(s) if isinstance(n, ast.Name)}  # fmt: skip
    for n in ast.walk(function):
        if isinstance(n, (ast.Global, ast.Nonlocal)):
            names.update(n.names)
        elif isinstance(n, ast.Name) and n.id in ("locals", "vars", "exec", "eval"):  # which see every name
            names.update(
                function_name.id for function_name in ast.walk(function) if isinstance(function_name, ast.Name)
            )
    return names


def _name(helper: str) -> ast.Name:
    return ast.Name(f"_sigtorch_{helper}", ast.Load())


def _call(helper: str, *args: ast.expr, at: ast.expr) -> ast.Call:
    return ast.copy_location(ast.Call(_name(helper), [*args], []), at)
