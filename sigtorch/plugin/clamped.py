"""Clamped SwiGLUs: statements in a row that clamp a gate and an up and multiply them, as gpt-oss and DeepSeek-V4 write them.

They become one branch that a kernel runs, and one with the statements as they are, where none does.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from sigtorch.plugin import products, source
from sigtorch.plugin.recognise import RETURNS_NEW, SIGMOID, SILU, Activation, attribute_kind, is_known
from sigtorch.plugin.syntax import blocks

if TYPE_CHECKING:
    from sigtorch.plugin.find import Finder


class ClampedSwiGLU(NamedTuple):
    """Statements of one block, and what the kernel that stands for them is given.

    Attributes:
        statements: from the one that takes a packed tensor apart, or the first that clamps, to the one with the product.
        product: in the last statement.
        place: the product with the sigmoid or silu, where tables and tracebacks have them.
        sources: the names of the packed tensor, or of gate and up.
        before: assignments of the sources, if the first statements compute and clamp them in one expression each.
        activation: what the function computes, a sigmoid of alpha times the gate, or a silu.
        function: the expression that is called.
        numbers: the expressions of interleaved, alpha, limit and offset.
    """

    statements: list[ast.stmt]
    product: ast.BinOp
    place: ast.expr
    sources: list[str]
    before: list[ast.stmt]
    activation: Activation
    function: ast.expr
    numbers: list[ast.expr]

    def written(self, call: Callable[..., ast.Call]) -> list[ast.stmt]:
        """Changes these statements, and returns what stands for them; ``call`` makes a call of a helper."""
        for name, statement in zip(self.sources, self.statements if self.before else (), strict=False):
            statement.value.func.value = ast.Name(name, ast.Load())  # type: ignore[attr-defined]
        given = [
            self.function,
            ast.Tuple([ast.Name(name, ast.Load()) for name in self.sources], ast.Load()),
            *self.numbers,
        ]
        takes = call(products.takes_swiglu, ast.Constant(self.activation), *copy.deepcopy(given), at=self.place)
        fused = call(products.clamped_swiglu, *copy.deepcopy(given[1:]), at=self.place)
        last = copy.deepcopy(self.statements[-1], {id(self.product): fused})
        branches = ast.If(takes, [last], self.statements)
        return [*self.before, ast.copy_location(branches, self.statements[0])]


class _Clamp(NamedTuple):
    """An assignment of ``source.clamp(min=low, max=high)``."""

    target: str
    source: ast.expr
    low: ast.expr | None
    high: ast.expr


class _Activated(NamedTuple):
    """The sigmoid or silu of a gate, times the gate."""

    activation: Activation
    function: ast.expr
    alpha: ast.expr
    gates: list[ast.Name]  # the loads of the gate
    product: ast.BinOp | None  # of a sigmoid: the one with the gate


class _Split(NamedTuple):
    """An assignment that takes a packed tensor apart."""

    packed: ast.Name
    names: list[str]
    interleaved: bool


def find_clamped(finder: Finder) -> list[ClampedSwiGLU]:
    """Finds all in the blocks of a function."""
    return [clamped for block in blocks(finder.definition) for clamped in _in_block(finder, block)]


def _in_block(finder: Finder, block: list[ast.stmt]) -> Iterator[ClampedSwiGLU]:
    start = 0
    while start < len(block):
        match = _match(finder, block[start:])
        if match is not None:
            yield match
        start += 1 if match is None else len(match.statements)


def _match(finder: Finder, statements: list[ast.stmt]) -> ClampedSwiGLU | None:
    split = _split(statements[0])
    rest = statements if split is None else statements[1:]
    if len(rest) < 3 or (gate := _clamp(rest[0])) is None or (up := _clamp(rest[1])) is None:
        return None
    is_symmetric = up.low is not None and ast.unparse(up.low) == f"-{ast.unparse(up.high)}"
    if gate.low is not None or not is_symmetric or ast.unparse(gate.high) != ast.unparse(up.high):
        return None
    at, variable, activated = 2, "", None
    if isinstance(rest[2], ast.Assign) and len(rest) > 3:
        activated = _activated(finder, rest[2].value, gate.target)
        variable = rest[2].targets[0].id if activated and isinstance(rest[2].targets[0], ast.Name) else ""
        at = 3 if variable else 2
    used = _product(finder, rest[at], gate.target, up.target, variable, activated if variable else None)
    if used is None:
        return None
    product, activated, offset, loads = used
    sources = _sources(finder, split, gate, up)
    if sources is None:
        return None
    names, before, read = sources
    made = statements[: at + (1 if split is None else 2)]
    loads += [n for n in (gate.source, up.source) if isinstance(n, ast.Name)] + (activated.gates if variable else [])
    if not finder.is_inert(activated.alpha, gate.high, offset) or not _is_alone(
        finder, made, loads, variable, gate, up
    ):
        return None
    if any(finder.changes.affect(node, made[-1]) for node in read):
        return None
    interleaved = ast.Constant(split is not None and split.interleaved)
    numbers: list[ast.expr] = [interleaved, activated.alpha, gate.high, offset]
    place = activated.product or product
    return ClampedSwiGLU(made, product, place, names, before, activated.activation, activated.function, numbers)


def _split(statement: ast.stmt) -> _Split | None:
    """Takes ``gate, up = x.chunk(2, dim=-1)`` and ``gate, up = x[..., ::2], x[..., 1::2]``."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id=gate), ast.Name(id=up)])], value=value):
            parts = value.elts if isinstance(value, ast.Tuple) else [value]
            x = next((n for n in ast.walk(parts[0]) if isinstance(n, ast.Name)), None)
            text = [ast.unparse(part) for part in parts]
            if x is None or gate == up or x.id in (gate, up):
                return None
            if text in ([f"{x.id}.chunk(2, dim=-1)"], [f"{x.id}.chunk(2, -1)"]):
                return _Split(x, [gate, up], False)
            if text in ([f"{x.id}[..., {first}::2]", f"{x.id}[..., 1::2]"] for first in ("", "0")):
                return _Split(x, [gate, up], True)
    return None


def _clamp(statement: ast.stmt) -> _Clamp | None:
    match statement:
        case ast.Assign(
            targets=[ast.Name(id=target)],
            value=ast.Call(func=ast.Attribute(value=clamped, attr="clamp"), args=[], keywords=keywords),
        ):
            bounds = {k.arg: k.value for k in keywords}
            if bounds.keys() <= {"min", "max"} and "max" in bounds:
                low = bounds.get("min")
                is_none = isinstance(low, ast.Constant) and low.value is None
                return _Clamp(target, clamped, None if is_none else low, bounds["max"])
    return None


def _activated(finder: Finder, node: ast.expr, gate: str) -> _Activated | None:
    """Takes ``gate * torch.sigmoid(gate * alpha)`` and ``act(gate)``."""
    match node:
        case ast.Call(func=function, args=[ast.Name(id=name) as load], keywords=[]) if name == gate:
            known = is_known(source.resolve(function, finder.function))
            if finder.activation(node) not in (None, SIGMOID) and (known or finder.is_inert(function)):
                return _Activated(SILU, function, ast.Constant(1), [load], None)
        case ast.BinOp(op=ast.Mult()):
            for factor, call in ((node.left, node.right), (node.right, node.left)):
                match factor, call:
                    case ast.Name() as first, ast.Call(
                        func=function, args=[ast.BinOp(op=ast.Mult()) as inner], keywords=[]
                    ):
                        is_sigmoid = finder.activation(call) == SIGMOID
                        for second, alpha in ((inner.left, inner.right), (inner.right, inner.left)):
                            is_gate = isinstance(second, ast.Name) and second.id == first.id == gate
                            if is_gate and is_sigmoid and is_known(source.resolve(function, finder.function)):
                                return _Activated(SIGMOID, function, alpha, [first, second], node)  # type: ignore[list-item]
    return None


class _Used(NamedTuple):
    product: ast.BinOp
    activated: _Activated
    offset: ast.expr
    loads: list[ast.Name]


def _product(
    finder: Finder, statement: ast.stmt, gate: str, up: str, variable: str, held: _Activated | None
) -> _Used | None:
    """Takes a statement that is, returns or calls one of the module's attributes with ``(up + offset) * act``."""
    node = getattr(statement, "value", None) if isinstance(statement, (ast.Return, ast.Assign)) else None
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords and finder.is_inert(node.func):
        node = node.args[0]
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return None
    for act, other in ((node.left, node.right), (node.right, node.left)):
        if held is not None:
            activated = held if isinstance(act, ast.Name) and act.id == variable else None
        else:
            activated = _activated(finder, act, gate)
        shifted = _shifted(other, up)
        if activated is not None and shifted is not None:
            own = [act] if isinstance(act, ast.Name) else activated.gates
            return _Used(node, activated, shifted.offset, [*own, shifted.load])
    return None


class _Shifted(NamedTuple):
    load: ast.Name
    offset: ast.expr


def _shifted(node: ast.expr, up: str) -> _Shifted | None:
    """Takes ``up``, ``up + offset`` and ``offset + up``."""
    if isinstance(node, ast.Name):
        return _Shifted(node, ast.Constant(0)) if node.id == up else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for load, offset in ((node.left, node.right), (node.right, node.left)):
            if isinstance(load, ast.Name) and load.id == up:
                return _Shifted(load, offset)
    return None


class _Sources(NamedTuple):
    names: list[str]
    before: list[ast.stmt]
    read: list[ast.expr]  # what the names hold


def _sources(finder: Finder, split: _Split | None, gate: _Clamp, up: _Clamp) -> _Sources | None:
    clamped = [gate.source, up.source]
    if split is not None:
        is_of_split = [n.id for n in clamped if isinstance(n, ast.Name)] == split.names
        return _Sources([split.packed.id], [], [split.packed]) if is_of_split else None
    if all(isinstance(n, ast.Name) for n in clamped):
        return _Sources([n.id for n in clamped if isinstance(n, ast.Name)], [], clamped)
    # The gate is clamped after up is computed, which must not reach it.
    is_new = isinstance(gate.source, ast.Call) and _kind_of(finder, gate.source.func) == RETURNS_NEW
    if not is_new or gate.target == up.target:
        return None
    before: list[ast.stmt] = [
        ast.copy_location(ast.Assign([ast.Name(c.target, ast.Store())], c.source), c.source) for c in (gate, up)
    ]
    return _Sources([gate.target, up.target], before, [])


def _kind_of(finder: Finder, node: ast.expr) -> Any:
    return attribute_kind(node, finder.kinds, finder.self_name)


def _is_alone(
    finder: Finder, statements: list[ast.stmt], loads: list[ast.Name], variable: str, gate: _Clamp, up: _Clamp
) -> bool:
    """Tells whether nothing but these loads reads what the statements assign."""
    names = {gate.target, up.target, variable} - {""}
    if len(names) < (3 if variable else 2) or names & finder.scopes[0].shared or len(finder.scopes) > 1:
        return False
    allowed = {*loads}
    inside = {node for statement in statements for node in ast.walk(statement)}
    for node in ast.walk(finder.definition):
        is_read = isinstance(node, ast.Name) and node.id in names and not isinstance(node.ctx, ast.Store)
        if is_read and not (node in allowed and node in inside):
            return False
    return True
