"""Finds in a method's source which tensors change in place, and which expressions run no code of the user's."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sigtorch.plugin.recognise import NUMBER, RETURNS_NEW, SIGMOID, SILU, WORKS_IN_PLACE, Kind

Position = tuple[int, int]
SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
)  # fmt: skip
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_INERT_NODES = (
    ast.Name, ast.Constant, ast.Tuple, ast.List, ast.UnaryOp, ast.unaryop, ast.operator, ast.expr_context, ast.Starred, ast.Load
)  # fmt: skip
# Functions, and methods of a tensor, that always return a new tensor.
_NEW_TENSOR_FUNCTIONS = {
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
# Attributes and methods of a tensor that are no tensor, and functions of Python that return none. The latter names are no
# methods: x.type() may return x.
_NO_TENSOR = {"device", "dim", "dtype", "is_contiguous", "item", "ndim", "numel", "shape", "size", "stride", "tolist"}
_BUILTINS = {"bool", "float", "hasattr", "int", "isinstance", "len", "print", "range", "str", "super", "type"}
_STORING = {"append", "appendleft", "extend", "insert", "setdefault", "update"}  # methods of containers
_OPERATORS = ("add", "and", "floordiv", "matmul", "mod", "mul", "or", "pow", "sub", "truediv")
_CHANGING = {"setitem", "__setitem__", *(f"i{o}" for o in _OPERATORS), *(f"__i{o}__" for o in _OPERATORS)}
_DISPLAYS = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp)
_LOCAL = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _inplace_positions() -> dict[str, int]:
    """Returns the position of the argument ``inplace`` in PyTorch's functions and modules that have one, by name."""
    # The last part is the number of leading arguments that a caller does not write.
    callables = [(name, f, 0) for name, f in vars(F).items() if inspect.isfunction(f)]
    callables += [
        (c.__name__, c.__init__, 1) for c in vars(nn).values() if inspect.isclass(c) and inspect.isfunction(c.__init__)
    ]
    named = [(name, f.__code__.co_varnames[skipped : f.__code__.co_argcount]) for name, f, skipped in callables]
    return {name: arguments.index("inplace") for name, arguments in named if "inplace" in arguments}


_INPLACE_POSITIONS = _inplace_positions()


class Changes:
    """The changes in place that one function's source shows.

    An owner is a variable, or an attribute of the module (``self.x``), whose tensor an expression may share memory with.
    """

    def __init__(self, function: ast.FunctionDef, kinds: dict[str, Kind], self_name: str) -> None:
        self.function, self.kinds, self.self_name = function, kinds, self_name
        self.scopes_of: dict[ast.AST, tuple[ast.AST, ...]] = {}  # the loops and functions around a node
        self.branches_of: dict[
            ast.AST, dict[ast.AST, str]
        ] = {}  # the choices around a node, and the branch that it is in
        self._note_scopes(function, (), {})
        nodes = [*ast.walk(function)]
        parameters = {a for n in nodes if isinstance(n, ast.arguments) for a in _parameter_names(n)}
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.variables = (parameters | stored) - {self_name}
        self.shares: dict[str, set[str]] = {}  # owner -> owners whose memory it may share
        self.containers: set[str] = set()  # owners that hold tensors in a container
        assignments = [pair for node in nodes for pair in _assignments(node)]
        self._note_shared_memory(nodes, assignments)
        # Variables that hold a function which changes its arguments.
        self.changing_variables = {
            target.id
            for target, value in assignments
            if isinstance(target, ast.Name)
            and (_is_named_in_place(getattr(value, "attr", "")) or self._works_in_place(value))
        }
        self.changed = [(node, owner) for node in nodes for owner in self._changed_by(node)]

    def _note_shared_memory(self, nodes: list[ast.AST], assignments: list[tuple[ast.expr, ast.expr]]) -> None:
        """Notes which owners share memory: by assignment, in a container, or as an argument of a nested function."""
        nested = [n for n in nodes if isinstance(n, _LOCAL) and n is not self.function]
        parameters = {a for n in nested for a in _parameter_names(n.args)}
        for target, value in assignments:
            self._assign(target, value)
        for target, value in assignments:
            if isinstance(target, ast.Subscript):
                self._note_stored(target, self.owners(value))
        for node in nodes:
            if isinstance(node, ast.AugAssign) and isinstance(node.value, _DISPLAYS):
                self._note_stored(node.target, self.owners(node.value))
            if isinstance(node, ast.Call):
                self._note_arguments(node, parameters)

    def affect(self, gate: ast.expr, statement: ast.stmt) -> bool:
        """Tells whether the memory of a gate may change after its sigmoid is computed, before the product or after it."""
        memory, within = self._aliases(self.owners(gate)), {*ast.walk(gate)}
        return any(
            memory & self._aliases({name})
            and self._may_follow(node, gate)
            and not self._is_reassigned(name, statement, node)
            for node, name in self.changed
            if memory and node not in within
        )

    def owners(self, node: ast.AST | None) -> set[str]:
        """Returns the owners whose memory an expression may share, by the names in it."""
        if isinstance(node, ast.Name):
            return {node.id} - {self.self_name}
        if isinstance(node, ast.Attribute):
            if self._is_attribute(node):
                return {f"{self.self_name}.{node.attr}"}
            return set() if node.attr in _NO_TENSOR else self.owners(node.value)
        if isinstance(node, ast.Call):
            return self._owners_of_result(node)
        return {name for part in _sharing_parts(node) for name in self.owners(part)}

    def _owners_of_result(self, call: ast.Call) -> set[str]:
        """Returns the owners of all arguments of a call, or none if it is known to return a new tensor."""
        options = {k.arg: k.value for k in call.keywords}
        if self._returns_new(call):
            return self.owners(options.get("out"))
        owner = self.owners(call.func.value) if isinstance(call.func, ast.Attribute) else set()
        given = {name for a in (*call.args, *options.values()) for name in self.owners(a)}
        no_tensors = {
            f"{self.self_name}.{a}" for a in ("training", *(a for a, kind in self.kinds.items() if kind == NUMBER))
        }
        return {name for name in owner | (given - no_tensors) if self._is_known(name)}

    def _returns_new(self, call: ast.Call) -> bool:
        if self._is_attribute(call.func):
            return self._attribute_kind(call.func) in (RETURNS_NEW, SIGMOID, SILU)
        callee = _callee_name(call)
        if isinstance(call.func, ast.Name) and callee in _BUILTINS:
            return True
        return callee in _NO_TENSOR or (callee in _NEW_TENSOR_FUNCTIONS and not self._works_in_place(call))

    def _aliases(self, names: set[str]) -> set[str]:
        """Returns these owners, and all whose memory they may share."""
        found: set[str] = set()
        pending = [*names]
        while pending:
            if (name := pending.pop()) not in found:
                found.add(name)
                pending += self.shares.get(name, ())
        return found

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

    def _note_arguments(self, call: ast.Call, parameters: set[str]) -> None:
        """Notes the arguments that a call passes to a container's method, or to a nested function."""
        given = {name for a in (*call.args, *(k.value for k in call.keywords)) for name in self.owners(a)}
        if not isinstance(call.func, ast.Attribute):
            self._share(parameters, given)
        elif call.func.attr in _STORING:
            self._note_stored(call.func.value, given)

    def _note_stored(self, container: ast.expr, given: set[str]) -> None:
        """Notes that a container, under any of its names, holds what these owners hold."""
        names = self._aliases(self.owners(container))
        self._share(names, given)
        self.containers |= names

    def _changed_by(self, node: ast.AST) -> Iterator[str]:
        """Yields the owners that one node changes in place."""
        changed: list[ast.AST | None] = []
        if isinstance(node, ast.AugAssign):
            changed = [node.target]
        elif isinstance(node, ast.Call):
            options = {k.arg: k.value for k in node.keywords}
            everything: list[ast.AST | None] = [node.func, *node.args, *options.values()]
            callee = _callee_name(node)
            if _is_named_in_place(callee):
                changed = [node.func] if self._is_method(node.func) else everything
            elif callee in _CHANGING or callee in self.changing_variables or self._works_in_place(node):
                changed = everything
            elif self._attribute_kind(node.func) == WORKS_IN_PLACE or self._works_in_place(node.func):
                changed = [*node.args]
            changed = [*changed, options.get("out")]
        else:
            changed = [t.value for target, _ in _assignments(node) for t in _elements(target)
                       if isinstance(t, ast.Subscript) or (isinstance(t, ast.Attribute) and self.owners(t.value))]  # fmt: skip
        for part in changed:
            yield from self.owners(part)

    def _works_in_place(self, call: ast.AST) -> bool:
        """Tells whether a call may be given a true ``inplace``: it changes a tensor, or makes a module that does."""
        if not isinstance(call, ast.Call):
            return False
        options = {k.arg: k.value for k in call.keywords}
        in_place, at = options.get("inplace"), _INPLACE_POSITIONS.get(_callee_name(call))
        if in_place is None and at is not None:
            if None in options or any(isinstance(a, ast.Starred) for a in call.args[: at + 1]):
                return True
            in_place = call.args[at] if at < len(call.args) else None
        return in_place is not None and not (isinstance(in_place, ast.Constant) and not in_place.value)

    def _is_known(self, name: str) -> bool:
        return name in self.variables or name.startswith(f"{self.self_name}.")

    def _is_attribute(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.self_name

    def _is_method(self, callee: ast.expr) -> bool:
        """Tells whether an expression reads a method of an owner."""
        if not isinstance(callee, ast.Attribute):
            return False
        return any(map(self._is_known, self.owners(callee.value)))

    def _attribute_kind(self, callee: ast.expr) -> Kind | None:
        return self.kinds.get(callee.attr) if self._is_attribute(callee) else None  # type: ignore[attr-defined]

    def _note_scopes(self, node: ast.AST, within: tuple[ast.AST, ...], branches: dict[ast.AST, str]) -> None:
        for field, value in ast.iter_fields(node):
            inside = (
                {**branches, node: field} if isinstance(node, (ast.If, ast.IfExp)) and field != "test" else branches
            )
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.scopes_of[child], self.branches_of[child] = within, inside
                    is_scope = isinstance(child, (*_LOOPS, *SCOPES))
                    self._note_scopes(child, (*within, child) if is_scope else within, inside)

    def _may_follow(self, node: ast.AST, gate: ast.expr) -> bool:
        """Tells whether a node may run after a gate's expression."""
        mine, others = self.scopes_of.get(gate, ()), self.scopes_of.get(node, ())
        if any(isinstance(s, _LOOPS) for s in mine if s in others):
            return True
        if any(isinstance(s, SCOPES) for s in {*mine} ^ {*others}):  # a nested function is called at any time
            return True
        chosen, branches = self.branches_of.get(gate, {}), self.branches_of.get(node, {})
        if any(branches.get(choice, branch) != branch for choice, branch in chosen.items()):
            return False
        return position(node) > position(gate)

    def _is_reassigned(self, name: str, statement: ast.stmt, change: ast.AST) -> bool:
        """Tells whether a variable gets other memory between the product and a change, or by the product's own statement."""
        body, reassigned = self.function.body, False
        if statement not in body or self.scopes_of.get(change) or name in self.containers:
            return False
        for s in body[body.index(statement) :]:
            if position(s) >= position(change) or (change is not s and change in {*ast.walk(s)}):
                break
            for target, value in _assignments(s) if isinstance(s, ast.Assign) else ():
                if isinstance(target, ast.Name) and target.id == name:
                    reassigned = not self._aliases({name}) & self._aliases(self.owners(value))
                elif name in self.owners(target):
                    reassigned = False
        return reassigned


def _assignments(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Returns the pairs of a target and its value that a node assigns."""
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


def _sharing_parts(node: ast.AST | None) -> list[ast.expr]:
    """Returns the parts of an expression whose memory its value may share: elements, alternatives, an indexed value."""
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
    passes_value = isinstance(node, (ast.Subscript, ast.Starred, ast.NamedExpr, ast.Await, ast.DictComp))
    return [node.value] if passes_value else []  # type: ignore[union-attr]


def _callee_name(call: ast.Call) -> str:
    """Returns the last part of the name of the function that is called."""
    function = call.func
    if isinstance(function, ast.Call) and getattr(function.func, "id", "") == "getattr" and len(function.args) > 1:
        return str(getattr(function.args[1], "value", ""))
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_named_in_place(name: str) -> bool:
    """Tells whether a name ends in one underscore, as those of PyTorch's functions that work in place do."""
    return name.endswith("_") and not name.endswith("__")


def _parameter_names(arguments: ast.arguments) -> list[str]:
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    return [a.arg for a in every if a]


def _elements(node: ast.AST | None) -> list[ast.AST]:
    """Returns the elements of a tuple or list, nested ones too; for any other node, the node."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return [part for element in node.elts for part in _elements(element)]
    return [] if node is None else [node]


def position(node: Any) -> Position:
    """Returns where a node begins: in general, of two nodes the first one is evaluated first."""
    return node.lineno, node.col_offset


class InertCheck:
    """Tells whether expressions run no code of the user's: names, constants, and the module's attributes but properties."""

    def __init__(self, cls: Any, self_name: str) -> None:
        self.cls, self.self_name = cls, self_name
        getters = (cls.__getattribute__, getattr(cls, "__getattr__", None))
        self.has_plain_attributes = getters == (object.__getattribute__, torch.nn.Module.__getattr__)

    def __call__(self, *nodes: ast.AST) -> bool:
        return all(self._is_inert(node) for node in nodes)

    def _is_inert(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id == self.self_name
            return of_self and self.has_plain_attributes and inspect.getattr_static(self.cls, node.attr, None) is None
        return isinstance(node, _INERT_NODES) and self(*ast.iter_child_nodes(node))
