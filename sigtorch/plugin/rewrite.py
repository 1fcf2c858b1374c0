"""Methods written anew: each product of a sigmoid or silu with a tensor becomes a call that fuses it, all else stays.

The method's own source is compiled again, with the globals, closure, defaults and lines it had.
"""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import inspect
import operator
import types
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from sigtorch.plugin import products
from sigtorch.plugin.recognise import SIGMOID, SILU, activation, found, parsed, sigmoid_method

_IN_PLACE = "it changes a tensor in place"
_PRODUCTS = (torch.mul, torch.multiply, operator.mul)
_VIEWS = ("expand_as", "unsqueeze", "view")  # of a product's operand, which the activation may come after
_HELPERS = {"activated": products.activated, "method": products.method, "product": products.product}
_SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
)  # fmt: skip
_FUTURE = functools.reduce(operator.or_, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names))


class Site(NamedTuple):
    """A product in somebody's source, and what becomes of it: one of ours, or the reason why not."""

    where: str
    fused: str
    reason: str = ""


class Rewritten(NamedTuple):
    """A method's function, None where it stays as it is, and the products in it."""

    function: Any
    sites: tuple[Site, ...]


@functools.cache
def methods_of(cls: Any, activations: frozenset[tuple[str, str]]) -> dict[str, Rewritten]:
    """Those of a class' methods that hold products, whose instance calls a sigmoid or silu by these attributes."""
    methods: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] not in ("torch", "sigtorch", "builtins"):
            methods.update((n, f) for n, f in vars(base).items() if inspect.isfunction(f) and not n.startswith("__"))
    methods = {name: f for name, f in methods.items() if inspect.getattr_static(cls, name) is f}
    # At a glance: most methods hold no product, and need not be read.
    telling = {"sigmoid", "silu", "expit", *(name for name, _ in activations)}
    telling |= {n for n, f in methods.items() if _names(f) & telling and _returning(cls, n, activations)}
    made = {name: _rewritten(cls, f, activations) for name, f in methods.items() if _names(f) & telling}
    return {name: r for name, r in made.items() if r.sites}


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
    tree = parsed(function)
    if tree is None:
        return Rewritten(None, ())
    writer = _Writer(cls, function, activations)
    anew = writer.visit(tree)
    sites = tuple(writer.sites)
    if all(site.reason for site in sites):
        return Rewritten(None, sites)
    made = _compiled(anew, function, writer.known)
    if made is None:
        return Rewritten(None, tuple(s._replace(reason="its source is not what runs") for s in sites))
    made = _wrapped_again(attribute, function, made)
    if made is None:
        return Rewritten(None, tuple(s._replace(reason="a decorator hides the method") for s in sites))
    return Rewritten(made, sites)


class _Writer(ast.NodeTransformer):
    """Writes the products of one function anew."""

    def __init__(
        self, cls: type, function: Any, activations: frozenset[tuple[str, str]], returned: bool = False
    ) -> None:
        self.cls, self.function, self.activations, self.returned = cls, function, activations, returned
        self.kinds = dict(activations)
        self.me = next(iter(inspect.signature(function).parameters), "")
        self.sites: list[Site] = []
        self.known: dict[str, Any] = {}  # what the rewritten method needs beside the helpers
        self.put_off: dict[ast.AST, str] = {}  # loads of a name, and what it holds: assignments of these likewise

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        shared = _shared(node)
        for i, statement in enumerate(node.body):
            name = _assigned(statement)
            if name is None or name in shared or not (held := self.kind(statement.value)):  # type: ignore[attr-defined]
                continue
            if use := self.only_factor(node.body[i + 1 :], name):
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

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if isinstance(node.op, ast.Mult) and (kind := self.kind(node.value)):
            self.site(node, kind, _IN_PLACE)
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return self.product(node) or self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        in_place = isinstance(node.func, ast.Attribute) and node.func.attr == "mul_" and len(node.args) == 1
        if in_place and (kind := self.kind(node.args[0])):
            self.site(node, kind, _IN_PLACE)
        return self.product(node) or self.generic_visit(node)

    def factors(self, node: ast.AST) -> tuple[ast.expr, ...]:
        """Two that a node multiplies, and what does it where that is no operator; nothing for another node."""
        found_: tuple[ast.expr, ...] = ()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            found_ = (node.left, node.right)
        elif isinstance(node, ast.Call) and not node.keywords:
            if len(node.args) == 2 and found(node.func, self.function) in _PRODUCTS:
                found_ = (*node.args, node.func)
            elif len(node.args) == 1 and isinstance(node.func, ast.Attribute) and node.func.attr in ("mul", "multiply"):
                found_ = (node.func.value, node.args[0], ast.Constant(node.func.attr))
        return () if any(isinstance(f, (ast.Constant, ast.Starred)) for f in found_[:2]) else found_

    def product(self, node: ast.expr) -> ast.AST | None:
        """The call that fuses a product, if one of its factors is a sigmoid or silu."""
        left, right, *by = self.factors(node) or (node, node)
        kind, last = self.kind(left), self.kind(right)
        if left is right or not (kind or last):
            return None
        self.site(node, last or kind or "")
        if last:
            operands = [self.visit(left), self.operand(right, still=True)]
        else:
            calm = not any(isinstance(n, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for n in ast.walk(right))
            operands = [self.operand(left, still=calm), self.visit(right)]
        return _call("product", *operands, *by, at=node)

    def only_factor(self, rest: list[ast.stmt], name: str) -> ast.Name | None:
        """The one use of a name as a factor, before it is assigned anew or the function ends."""
        use = None
        for statement in rest:
            named = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
            loads = [n for n in named if isinstance(n.ctx, ast.Load)]
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

    def site(self, node: ast.stmt | ast.expr, kind: str, reason: str = "") -> None:
        name = self.function.__code__.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
        self.sites.append(Site(f"{name}:{node.lineno}", "swiglu" if kind == SILU else "sigmoid_gate", reason))

    def kind(self, node: ast.expr) -> str | None:
        """What an operand is, sigmoid or silu, maybe seen as another shape."""
        if isinstance(node, ast.Name):
            return self.put_off.get(node)
        if not isinstance(node, ast.Call) or node.keywords:
            return None
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in _VIEWS and node.args:
            return self.kind(called.value)
        if isinstance(called, ast.Attribute) and called.attr == SIGMOID and not node.args:
            return SIGMOID if ast.unparse(called.value) != self.me else None
        if (inner := self.returning(called)) is not None:
            return inner[0]
        if len(node.args) != 1 or isinstance(node.args[0], ast.Starred):
            return None
        name = ast.unparse(called)
        if name.startswith(f"{self.me}."):
            name = name[len(self.me) + 1 :]
            return self.kinds.get(name)
        return activation(found(called, self.function))

    def operand(self, node: Any, still: bool) -> ast.expr:
        """An operand that is a sigmoid or silu, put off."""
        if isinstance(node, ast.Name):
            return node
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in _VIEWS and node.args:
            called.value = self.operand(called.value, still)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        if not node.args and called.attr == SIGMOID:
            self.known["sigmoid_method"] = sigmoid_method
            return _call("activated", _name("sigmoid_method"), self.visit(called.value), ast.Constant(still), at=node)
        if (inner := self.returning(called)) is not None:
            _, function, anew = inner
            self.known |= {f"{called.attr}_known": function, f"{called.attr}_anew": anew}
            node.func = _call("method", called, *(_name(f"{called.attr}_{n}") for n in ("known", "anew")), at=node)
            node.args = [self.visit(a) for a in node.args]
            return node  # type: ignore[no-any-return]
        return _call("activated", self.visit(called), self.visit(node.args[0]), ast.Constant(still), at=node)

    def returning(self, called: ast.expr) -> tuple[str, Any, Any] | None:
        """A method of the same class that ends in a sigmoid or silu: what, its function, and one that puts it off."""
        if not isinstance(called, ast.Attribute) or ast.unparse(called.value) != self.me or self.returned:
            return None
        return _returning(self.cls, called.attr, self.activations)


@functools.cache
def _returning(cls: type, name: str, activations: frozenset[tuple[str, str]]) -> tuple[str, Any, Any] | None:
    function = inspect.getattr_static(cls, name, None)
    tree = parsed(function) if inspect.isfunction(function) else None
    if tree is None or tree.decorator_list or function.__module__.split(".")[0] == "torch":
        return None
    returns = [n for n in ast.walk(tree) if isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom))]
    writer = _Writer(cls, function, activations, returned=True)
    if len(returns) != 1 or tree.body[-1] is not returns[0] or returns[0].value is None:
        return None
    kind = writer.kind(returns[0].value)
    made = kind and _compiled(writer.visit(tree), function, writer.known)
    return (kind, function, made) if kind and made else None


def _assigned(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns to."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    return statement.targets[0].id if isinstance(statement.targets[0], ast.Name) else None


def _seen(node: ast.expr) -> ast.expr:
    """What views of it are taken of."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS:
        node = node.func.value
    return node


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


def _compiled(tree: ast.FunctionDef, function: Any, known: dict[str, Any]) -> Any:
    """The function with another body; None where its own source compiles to something else than what runs."""
    again = parsed(function)
    helpers = {_name(name).id: value for name, value in {**_HELPERS, **known}.items()}
    try:
        if again is None or not _same(_code(again, function, []), function.__code__):
            return None
        code = _code(tree, function, list(helpers))
    except (StopIteration, SyntaxError):  # what a function holds that no source shows
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in helpers.items()}
    return _like(function, code, tuple(cells[name] for name in code.co_freevars))


def _code(tree: ast.FunctionDef, function: Any, helpers: list[str]) -> types.CodeType:
    """Compiled where names mean what they did: in a class of that name, and within what its closure comes from."""
    own = function.__code__
    free = ", ".join([*(n for n in own.co_freevars if n != "__class__"), *helpers])
    owner = ["<locals>", *function.__qualname__.split(".")][-2]
    names = ["_", own.co_name] if owner == "<locals>" else ["_", owner, own.co_name]
    outline = ast.parse(f"def _({free}): 0" if owner == "<locals>" else f"def _({free}):\n class {owner}: 0")
    inside: Any = outline
    for _ in names[:-1]:
        inside = inside.body[0]
    tree.decorator_list, inside.body = [], [tree]
    flags = own.co_flags & _FUTURE
    code = compile(ast.fix_missing_locations(outline), own.co_filename, "exec", flags, dont_inherit=True)
    for name in names:
        code = next(c for c in code.co_consts if inspect.iscode(c) and c.co_name == name)
    return code


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether two code objects do the same."""
    named = ("co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount")
    if any(getattr(a, name) != getattr(b, name) for name in named):
        return False
    steps = zip_longest(_steps(a), _steps(b))
    return all(_same(x, y) if inspect.iscode(x) and inspect.iscode(y) else x == y for x, y in steps)


def _steps(code: types.CodeType) -> Iterator[Any]:
    """Its instructions, but for how a method is called: that depends on what the module imports."""
    for step in dis.get_instructions(code):
        if inspect.iscode(step.argval):
            yield step.argval
        elif step.opname not in ("CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL"):
            jumps = step.opcode in dis.hasjrel or step.opcode in dis.hasjabs
            yield step.opname.replace("METHOD", "ATTR"), None if jumps else repr(step.argval)


def _like(function: Any, code: types.CodeType, closure: tuple[Any, ...]) -> Any:
    made: Any = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    functools.update_wrapper(made, function)
    del made.__wrapped__
    made.__dict__.update(function.__dict__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _wrapped_again(outer: Any, function: Any, made: Any) -> Any:
    """A decorated function with another in its middle; None where the decorator's closure does not hold it."""
    if outer is function:
        return made
    wrapped, cells = outer.__wrapped__, outer.__closure__ or ()
    inner = _wrapped_again(wrapped, function, made)
    replaced = tuple(types.CellType(inner) if _content(cell) is wrapped else cell for cell in cells)
    if inner is None or all(a is b for a, b in zip(cells, replaced, strict=True)):
        return None
    again = _like(outer, outer.__code__, replaced)
    again.__wrapped__ = inner
    return again


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
