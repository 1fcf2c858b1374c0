"""Reads expressions in a function's source: which are products, and which an activation's result."""

from __future__ import annotations

import ast
import inspect
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from sigtorch.plugin import source
from sigtorch.plugin.changes import InertCheck
from sigtorch.plugin.found import Site
from sigtorch.plugin.products import PRODUCTS
from sigtorch.plugin.recognise import (
    MAY_BE_ACTIVATION,
    SIGMOID,
    SILU,
    Activation,
    Kind,
    attribute_kind,
    fusable_activation,
    is_activation_table,
    is_number,
)
from sigtorch.plugin.syntax import argument_nodes, complement_of, is_lerp_method, is_sigmoid_method, viewed

_METHODS = ("mul", "multiply")
Unknown: TypeAlias = Literal["unknown"]  # the call decides, when it runs
UNKNOWN: Unknown = "unknown"


class _Factors(NamedTuple):
    """The factors that a node multiplies."""

    left: ast.expr
    right: ast.expr


class Rewriting:
    """Says of functions that a method calls whether they are rewritten; rewrite.py has the one that does it."""

    def sites_in(self, function: Any, cls: Any) -> list[Site]:
        """Returns the products in a function that are rewritten where it is called."""
        return []

    def is_deferrable(self, function: Any) -> bool:
        """Tells whether a function ends in a sigmoid or silu, which it can put off."""
        return False


class Reader:
    """Reads one function.

    Args:
        cls: the class whose method the function is; ``object`` if it is none.
        function: the function.
        definition: its source.
        kinds: the kinds of the attributes of the method's instance; None if these are not known.
        rewriting: what is known of the functions that it calls.
    """

    def __init__(
        self, cls: Any, function: Any, definition: ast.FunctionDef, kinds: dict[str, Kind] | None, rewriting: Rewriting
    ) -> None:
        self.cls, self.function, self.definition, self.rewriting = cls, function, definition, rewriting
        self.kinds, self.knows_attributes = kinds or {}, kinds is not None
        arguments = [*definition.args.posonlyargs, *definition.args.args]
        self.self_name = arguments[0].arg if arguments and cls is not object else ""
        self.is_inert = InertCheck(cls if self.knows_attributes else object, self.self_name)
        self.locals = {n.id for n in ast.walk(definition) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.locals |= {a.arg for n in ast.walk(definition) if isinstance(n, ast.arguments) for a in argument_nodes(n)}
        self.locals -= {self.self_name}

    def factors(self, node: ast.AST) -> _Factors | None:
        """Returns the two factors that a node multiplies, if neither is certainly a number."""
        pair = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            pair = _Factors(node.left, node.right)
        elif isinstance(node, ast.Call) and not node.keywords:
            if len(node.args) == 3 and source.resolve(node.func, self.function) is torch.addcmul:
                pair = _Factors(*node.args[1:])
            elif len(node.args) == 2 and any(source.resolve(node.func, self.function) is p for p in PRODUCTS):
                pair = _Factors(*node.args)
            elif len(node.args) == 1 and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
                pair = _Factors(node.func.value, node.args[0])
        if pair is None or any(isinstance(f, ast.Starred) or is_number(f, self.kinds, self.self_name) for f in pair):
            return None
        return pair

    def interpolated(self, node: ast.AST) -> list[ast.expr]:
        """Returns the sigmoids of an interpolation: in ``s * x + (1 - s) * y`` both, of a ``lerp`` the weight."""
        if isinstance(node, ast.Call):
            weight = self.lerp_weight(node)
            return [] if weight is None else [viewed(weight)]
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
            return []
        terms = (node.left, node.right)
        factors = [
            f for t in terms if isinstance(t, ast.BinOp) and isinstance(t.op, ast.Mult) for f in (t.left, t.right)
        ]
        rests = [f for f in factors if complement_of(f)]
        if len(factors) != 4 or len(rests) != 1:
            return []
        rest, other_term = rests[0], factors[2:] if rests[0] in factors[:2] else factors[:2]
        same = [f for f in other_term if isinstance(f, ast.Name) and f.id == complement_of(rest)]
        # The right term is evaluated before the left one is computed.
        if len(same) != 1 or not self.is_inert(*(f for f in factors[2:] if f is not rest)):
            return []
        return [same[0], rest.right]  # type: ignore[attr-defined]

    def lerp_weight(self, call: ast.Call) -> ast.expr | None:
        """Returns the weight of ``torch.lerp(start, end, weight)`` and of ``start.lerp(end, weight)``."""
        if call.keywords or any(isinstance(a, ast.Starred) for a in call.args):
            return None
        is_function = len(call.args) == 3 and source.resolve(call.func, self.function) is torch.lerp
        is_method = is_lerp_method(call) and self.may_be_tensor(call.func.value)  # type: ignore[attr-defined]
        return call.args[-1] if is_function or is_method else None

    def may_be_tensor(self, node: ast.expr) -> bool:
        """Tells whether an expression may be a tensor: not the module, an attribute of it, or a global object."""
        is_attribute = isinstance(node, ast.Attribute) and self.is_self(node.value)
        return not (self.is_self(node) or is_attribute) and source.resolve(node, self.function) is None

    def activation(self, node: ast.expr) -> Activation | Unknown | None:
        """Returns which activation's result a call is, or may be."""
        if not isinstance(node, ast.Call):
            return None
        callee = node.func
        if self.is_deferred(callee):
            return UNKNOWN
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            return None
        if is_sigmoid_method(node):
            return SIGMOID if not self.is_self(callee.value) else None  # type: ignore[attr-defined]
        return self.callee_activation(callee) if len(node.args) == 1 else None

    def callee_activation(self, callee: ast.expr) -> Activation | Unknown | None:
        """Returns which activation a function of one argument is, or may be."""
        kind = attribute_kind(callee, self.kinds, self.self_name)
        if kind == SIGMOID or kind == SILU:  # noqa: SIM109, mypy narrows by ==
            return kind
        if isinstance(callee, ast.Subscript):
            kind = attribute_kind(callee.value, self.kinds, self.self_name)
            is_table = is_activation_table(source.resolve(callee.value, self.function))
            return UNKNOWN if is_table or kind == MAY_BE_ACTIVATION else None
        if isinstance(callee, ast.Name) and callee.id in self.locals:
            return UNKNOWN
        if isinstance(callee, ast.Call):  # of a class of modules, as in nn.Sigmoid()(x)
            made = source.resolve(callee.func, self.function)
            return UNKNOWN if isinstance(made, type) and issubclass(made, torch.nn.Module) else None
        if isinstance(callee, ast.Attribute) and self.is_self(callee.value):
            held = inspect.getattr_static(self.cls, callee.attr, None)  # without running a descriptor of the user's
            if not self.knows_attributes and held is None:
                return UNKNOWN
            if isinstance(held, staticmethod):
                return fusable_activation(held.__func__)
            return UNKNOWN if kind == MAY_BE_ACTIVATION else None
        return fusable_activation(source.resolve(callee, self.function))

    def is_deferred(self, callee: ast.expr) -> bool:
        """Tells whether a function is called that ends in a sigmoid or silu, which it can put off."""
        if isinstance(callee, ast.Attribute) and self.is_self(callee.value):
            return self.rewriting.is_deferrable(inspect.getattr_static(self.cls, callee.attr, None))
        return self.rewriting.is_deferrable(source.resolve(callee, self.function))

    def gate(self, core: ast.Call) -> list[ast.expr]:
        """Returns the expressions that an activation is given: its result is a new tensor, computed from these."""
        if is_sigmoid_method(core):
            return [core.func.value]  # type: ignore[attr-defined]
        return [*core.args, *(k.value for k in core.keywords)]

    def is_self(self, node: ast.AST | None) -> bool:
        return isinstance(node, ast.Name) and node.id == self.self_name
