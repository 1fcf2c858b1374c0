"""Finds which loads of a function's local variables an assignment may reach."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from sigtorch.plugin.changes import SCOPES, position


class Block(NamedTuple):
    """A list of statements: the node that holds it, and in which of its fields."""

    holder: ast.AST
    field: str


_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)


class Variables:
    """The local variables of one function; nested functions have their own."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.shared = _names_used_elsewhere(function)
        self.statements: list[ast.stmt] = []  # in the order in which they stand
        self.blocks: dict[ast.stmt, tuple[Block, ...]] = {}  # around a statement, the outermost first
        self.statement_of: dict[ast.AST, ast.stmt] = {}
        self._note(function, ())

    def _note(self, holder: ast.AST, around: tuple[Block, ...]) -> None:
        for field, value in ast.iter_fields(holder):
            block = (*around, Block(holder, field))
            for part in value if isinstance(value, list) else ():
                if isinstance(part, ast.stmt):
                    self.statements.append(part)
                    self.blocks[part] = block
                    for node in _own_nodes(part):
                        self.statement_of[node] = part
                    if not isinstance(part, SCOPES):
                        self._note(part, block)
                elif isinstance(part, (ast.excepthandler, ast.match_case)):
                    self._note(part, block)

    def names(self, statement: ast.stmt) -> Iterator[ast.Name]:
        """Yields the names in a statement's own expressions; a store by ``+=`` is a load, too."""
        return (n for n in _own_nodes(statement) if isinstance(n, ast.Name))

    def loads_of(self, name: str) -> list[ast.Name]:
        """Returns all loads of a variable."""
        return [n for s in self.statements for n in self.names(s) if n.id == name and isinstance(n.ctx, ast.Load)]

    def additions_to(self, name: str) -> list[ast.AugAssign]:
        """Returns the statements such as ``name += 1``."""
        return [
            s
            for s in self.statements
            if isinstance(s, ast.AugAssign) and isinstance(s.target, ast.Name) and s.target.id == name
        ]

    def reached(self, assignment: ast.stmt, name: str) -> list[ast.Name]:
        """Returns the names that may read what a statement assigns, in the statements after it.

        What stands before it in a loop is not looked at.
        """
        found: list[ast.Name] = []
        mine = self.blocks[assignment]
        for statement in self.statements[self.statements.index(assignment) + 1 :]:
            blocks = self.blocks[statement]
            if _are_alternatives(mine, blocks):
                continue
            named = [n for n in self.names(statement) if n.id == name]
            adds = isinstance(statement, ast.AugAssign)
            found += [n for n in named if adds or isinstance(n.ctx, ast.Load)]
            always_runs = mine[: len(blocks)] == blocks
            stores = any(isinstance(n.ctx, ast.Store) for n in named) and not adds
            if always_runs and (stores or isinstance(statement, _ENDS)):
                break
        return found

    def between(self, first: ast.stmt, last: ast.stmt) -> list[ast.stmt] | None:
        """Returns the statements between two of one block; None if they are in different ones."""
        if self.blocks[first] != self.blocks[last]:
            return None
        block = self.blocks[first][-1]
        body = getattr(block.holder, block.field)
        return body[body.index(first) + 1 : body.index(last)]  # type: ignore[no-any-return]

    def in_loop(self, statement: ast.stmt) -> bool:
        """Tells whether a statement may run again."""
        return any(isinstance(b.holder, (ast.For, ast.AsyncFor, ast.While)) for b in self.blocks[statement])


def may_read(load: ast.AST, assignment: ast.stmt, variables: Variables) -> bool:
    """Tells whether a name may be read after an assignment."""
    return variables.in_loop(assignment) or position(load) > position(assignment)


def _own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yields a statement and the nodes of its expressions, guards too, without those of statements or functions in it."""
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, SCOPES):
            continue
        pending += [c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.stmt)]


def _are_alternatives(a: tuple[Block, ...], b: tuple[Block, ...]) -> bool:
    """Tells whether of two lists of blocks only one can run: one lies in an ``if``, the other in its ``else``."""
    for mine, other in zip(a, b, strict=False):
        if mine != other:
            return mine.holder is other.holder and isinstance(mine.holder, ast.If)
    return False


def _names_used_elsewhere(function: ast.FunctionDef) -> set[str]:
    """Returns the names that code outside of the function's own statements may use."""
    names = {n.id for s in ast.walk(function) if isinstance(s, SCOPES) and s is not function
             for n in ast.walk(s) if isinstance(n, ast.Name)}  # fmt: skip
    for n in ast.walk(function):
        if isinstance(n, (ast.Global, ast.Nonlocal)):
            names.update(n.names)
    return names
