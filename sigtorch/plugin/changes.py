"""Finds, in a method's source, what changes a tensor in place and what runs between two expressions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sigtorch.plugin.recognise import ANEW, IN_PLACE, NUMBER, SIGMOID, SILU

Position = tuple[int, int]
SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
)  # fmt: skip
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_STILL = (
    ast.Name, ast.Constant, ast.Tuple, ast.List, ast.UnaryOp, ast.unaryop, ast.operator, ast.expr_context, ast.Starred, ast.Load
)  # fmt: skip
# Functions, and methods of a tensor, that always give memory of its own.
_ANEW = {
    "abs", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "add", "addmm", "all", "amax", "amin", "any", "arange", "argmax",
    "avg_pool2d", "baddbmm", "batch_norm", "bmm", "cat", "celu", "clamp", "clone", "conv1d", "conv2d", "conv3d", "cos",
    "cumsum", "div", "elu", "embedding", "empty", "empty_like", "erf", "exp", "full", "full_like", "gather", "gelu", "glu",
    "group_norm", "hardsigmoid", "hardswish", "hardtanh", "index_select", "layer_norm", "leaky_relu", "linear", "log",
    "log_softmax", "logsigmoid", "masked_fill", "matmul", "max_pool2d", "mean", "mish", "mm", "mul", "multiply", "neg",
    "new_empty", "new_full", "new_ones", "new_zeros", "normalize", "ones", "ones_like", "pow", "prod", "rand", "rand_like",
    "randn", "randn_like", "reciprocal", "relu", "relu6", "repeat", "rms_norm", "rsqrt", "scaled_dot_product_attention",
    "selu", "sigmoid", "silu", "sin", "softmax", "softplus", "sqrt", "square", "stack", "std", "sub", "sum", "tanh",
    "topk", "tril", "triu", "var", "where", "zeros", "zeros_like",
}  # fmt: skip
# What gives no tensor: attributes and methods of one, and Python's functions, of which a tensor's method may be a view.
_NO_TENSOR = {"device", "dim", "dtype", "is_contiguous", "item", "ndim", "numel", "shape", "size", "stride", "tolist"}
_BUILTINS = {"bool", "float", "hasattr", "int", "isinstance", "len", "print", "range", "str", "super", "type"}
_KEEPING = {"append", "appendleft", "extend", "insert", "setdefault", "update"}  # methods of what holds tensors
_OPERATORS = ("add", "and", "floordiv", "matmul", "mod", "mul", "or", "pow", "sub", "truediv")
_CHANGING = {"setitem", "__setitem__", *(f"i{o}" for o in _OPERATORS), *(f"__i{o}__" for o in _OPERATORS)}
_DISPLAYS = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp)
_LOCAL = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _places() -> dict[str, int]:
    """The places at which PyTorch's functions and modules take ``inplace``, counted from their first argument."""
    makers = [(name, f, 0) for name, f in vars(F).items() if inspect.isfunction(f)]
    makers += [
        (c.__name__, c.__init__, 1) for c in vars(nn).values() if inspect.isclass(c) and inspect.isfunction(c.__init__)
    ]
    named = [(name, f.__code__.co_varnames[own : f.__code__.co_argcount]) for name, f, own in makers]
    return {name: arguments.index("inplace") for name, arguments in named if "inplace" in arguments}


_INPLACE_AT = _places()


class Changes:
    """The changes in place that one function's source shows."""

    def __init__(self, function: ast.FunctionDef, kinds: dict[str, str], me: str) -> None:
        self.function, self.kinds, self.me = function, kinds, me
        self.scope_of: dict[ast.AST, tuple[ast.AST, ...]] = {}  # the loops and functions that a node is in
        self._enclose(function, ())
        nodes = [*ast.walk(function)]
        arguments = {a for n in nodes if isinstance(n, ast.arguments) for a in _names(n)}
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.variables = (arguments | stored) - {me}
        self.shares: dict[str, set[str]] = {}  # the names whose memory each may share, by what it is assigned
        self.filled: set[str] = set()  # the names of what tensors are put into
        within = {a for n in nodes if isinstance(n, _LOCAL) and n is not function for a in _names(n.args)}
        pairs = [pair for node in nodes for pair in _assignments(node)]
        for target, value in pairs:
            self._assign(target, value)
        # Variables that hold a function which changes what it is given.
        self.changing = {t.id for t, value in pairs if isinstance(t, ast.Name)
                         and (_in_place(getattr(value, "attr", "")) or self._works_in_place(value))}  # fmt: skip
        for target, value in pairs:
            if isinstance(target, ast.Subscript):
                self._fill(target, self.owners(value))
        for node in nodes:
            if isinstance(node, ast.AugAssign) and isinstance(node.value, _DISPLAYS):
                self._fill(node.target, self.owners(node.value))
            if isinstance(node, ast.Call):
                self._pass(node, within)
        self.changed = [(node, name) for node in nodes for name in self._changed_by(node)]

    def concern(self, gate: ast.expr, statement: ast.stmt) -> bool:
        """Whether the memory of a gate changes after its sigmoid is taken: before a product of it, or after."""
        memory, within = self._memory(self.owners(gate)), {*ast.walk(gate)}
        return any(
            memory & self._memory({name})
            and self._may_follow(node, gate)
            and not self._another_since(name, statement, node)
            for node, name in self.changed
            if memory and node not in within
        )

    def owners(self, node: ast.AST | None) -> set[str]:
        """The variables, and attributes of the module, whose memory an expression may share, as far as names tell."""
        if isinstance(node, ast.Name):
            return {node.id} - {self.me}
        if isinstance(node, ast.Attribute):
            if self._is_of_me(node):
                return {f"{self.me}.{node.attr}"}
            return set() if node.attr in _NO_TENSOR else self.owners(node.value)
        if isinstance(node, ast.Call):
            return self._owners_of_result(node)
        return {name for part in _sources(node) for name in self.owners(part)}

    def _owners_of_result(self, call: ast.Call) -> set[str]:
        """The owners of all that a call is given, unless it is known to give a tensor of its own."""
        options = {k.arg: k.value for k in call.keywords}
        if self._is_anew(call):
            return self.owners(options.get("out"))
        owner = self.owners(call.func.value) if isinstance(call.func, ast.Attribute) else set()
        given = {name for a in (*call.args, *options.values()) for name in self.owners(a)}
        no_tensors = {f"{self.me}.{a}" for a in ("training", *(a for a, kind in self.kinds.items() if kind == NUMBER))}
        return {name for name in owner | (given - no_tensors) if self._is_known(name)}

    def _is_anew(self, call: ast.Call) -> bool:
        if self._is_of_me(call.func):
            return self._attribute(call.func) in (ANEW, SIGMOID, SILU)
        called = _called(call)
        if isinstance(call.func, ast.Name) and called in _BUILTINS:
            return True
        return called in _NO_TENSOR or (called in _ANEW and not self._works_in_place(call))

    def _memory(self, names: set[str]) -> set[str]:
        """Names, and all whose memory those may share."""
        reached: set[str] = set()
        left = [*names]
        while left:
            if (name := left.pop()) not in reached:
                reached.add(name)
                left += self.shares.get(name, ())
        return reached

    def _share(self, names: set[str], others: set[str]) -> None:
        for name in names:
            self.shares.setdefault(name, set()).update(others)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if not isinstance(target, (ast.Tuple, ast.List)):
            self._share(self.owners(target), self.owners(value))
            return
        values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
        starred = any(isinstance(e, ast.Starred) for e in (*target.elts, *values))
        one_each = len(values) == len(target.elts) and not starred
        for i, element in enumerate(target.elts):
            self._assign(element, values[i] if one_each else value)

    def _pass(self, call: ast.Call, parameters: set[str]) -> None:
        """Notes what a call gives to a container, or to a function within this one."""
        given = {name for a in (*call.args, *(k.value for k in call.keywords)) for name in self.owners(a)}
        if not isinstance(call.func, ast.Attribute):
            self._share(parameters, given)
        elif call.func.attr in _KEEPING:
            self._fill(call.func.value, given)

    def _fill(self, container: ast.expr, given: set[str]) -> None:
        """Notes what a container gets, by whatever name."""
        names = self._memory(self.owners(container))
        self._share(names, given)
        self.filled |= names

    def _changed_by(self, node: ast.AST) -> Iterator[str]:
        changed: list[ast.AST | None] = []
        if isinstance(node, ast.AugAssign):
            changed = [node.target]
        elif isinstance(node, ast.Call):
            options = {k.arg: k.value for k in node.keywords}
            everything: list[ast.AST | None] = [node.func, *node.args, *options.values()]
            called = _called(node)
            if _in_place(called):
                changed = [node.func] if self._is_method(node.func) else everything
            elif called in _CHANGING or called in self.changing or self._works_in_place(node):
                changed = everything
            elif self._attribute(node.func) == IN_PLACE or self._works_in_place(node.func):
                changed = [*node.args]
            changed = [*changed, options.get("out")]
        else:
            changed = [t.value for target, _ in _assignments(node) for t in _parts(target)
                       if isinstance(t, ast.Subscript) or (isinstance(t, ast.Attribute) and self.owners(t.value))]  # fmt: skip
        for part in changed:
            yield from self.owners(part)

    def _works_in_place(self, call: ast.AST) -> bool:
        """Whether a call's ``inplace`` may be true, or makes a module of which it is."""
        if not isinstance(call, ast.Call):
            return False
        options = {k.arg: k.value for k in call.keywords}
        in_place, at = options.get("inplace"), _INPLACE_AT.get(_called(call))
        if in_place is None and at is not None:
            if None in options or any(isinstance(a, ast.Starred) for a in call.args[: at + 1]):
                return True
            in_place = call.args[at] if at < len(call.args) else None
        return in_place is not None and not (isinstance(in_place, ast.Constant) and not in_place.value)

    def _is_known(self, name: str) -> bool:
        return name in self.variables or name.startswith(f"{self.me}.")

    def _is_of_me(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.me

    def _is_method(self, called: ast.expr) -> bool:
        """Whether this is a method of a variable's, or of an attribute of the module."""
        if not isinstance(called, ast.Attribute):
            return False
        return any(map(self._is_known, self.owners(called.value)))

    def _attribute(self, called: ast.expr) -> str | None:
        return self.kinds.get(called.attr) if self._is_of_me(called) else None  # type: ignore[attr-defined]

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
        body, anew = self.function.body, False
        if statement not in body or self.scope_of.get(change) or name in self.filled:
            return False
        for s in body[body.index(statement) :]:
            if position(s) >= position(change) or (change is not s and change in {*ast.walk(s)}):
                break
            for target, value in _assignments(s) if isinstance(s, ast.Assign) else ():
                if isinstance(target, ast.Name) and target.id == name:
                    anew = not self._memory({name}) & self._memory(self.owners(value))
                elif name in self.owners(target):
                    anew = False
        return anew


def _assignments(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Targets and what they get."""
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        return [(node.target, node.value)]
    if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        return [(node.target, node.iter)]
    if isinstance(node, ast.Match):
        captured = [
            getattr(n, "name", None) or getattr(n, "rest", None) for case in node.cases for n in ast.walk(case.pattern)
        ]
        return [(ast.Name(name, ast.Store()), node.subject) for name in captured if name]
    if isinstance(node, ast.withitem) and node.optional_vars is not None:
        return [(node.optional_vars, node.context_expr)]
    return []


def _sources(node: ast.AST | None) -> list[ast.expr]:
    """The expressions whose memory an expression gives on: elements, alternatives, and what it takes a part of."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return node.elts
    if isinstance(node, (ast.Dict, ast.BoolOp)):
        return node.values
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    if isinstance(node, ast.BinOp):  # of lists
        return [node.left, node.right] if isinstance(node.left, _DISPLAYS) or isinstance(node.right, _DISPLAYS) else []
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
        return [node.elt]
    given = isinstance(node, (ast.Subscript, ast.Starred, ast.NamedExpr, ast.Await, ast.DictComp))
    return [node.value] if given else []  # type: ignore[union-attr]


def _called(call: ast.Call) -> str:
    """The last name of a called function."""
    function = call.func
    if isinstance(function, ast.Call) and getattr(function.func, "id", "") == "getattr" and len(function.args) > 1:
        return str(getattr(function.args[1], "value", ""))
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _in_place(name: str) -> bool:
    """Whether a function is named as PyTorch names those that work in place."""
    return name.endswith("_") and not name.endswith("__")


def _names(arguments: ast.arguments) -> list[str]:
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    return [a.arg for a in every if a]


def _parts(node: ast.AST | None) -> list[ast.AST]:
    """The elements of a tuple or list, starred ones too; a node itself otherwise."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return [part for element in node.elts for part in _parts(element)]
    return [] if node is None else [node]


def position(node: Any) -> Position:
    """The place where a node begins: what is evaluated first stands first, as a rule."""
    return node.lineno, node.col_offset


class Calm:
    """Tells what runs no code of the user's: names, constants, and attributes of the module that are no properties."""

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
