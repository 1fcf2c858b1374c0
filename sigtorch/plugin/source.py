"""A function's source: read where it is what runs, and compiled again with a change."""

from __future__ import annotations
import __future__

import ast
import copy
import dis
import functools
import inspect
import linecache
import operator
import types
import warnings
from typing import Any, NamedTuple

_FUTURE = functools.reduce(operator.or_, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names))
_OUTER, _INNER = "_sigtorch_outer", "_sigtorch_inner"


class Source(NamedTuple):
    """A function's definition, and the statement of its file that holds it: trees that the caller may change."""

    statement: ast.stmt
    definition: ast.FunctionDef


class NotWhatRuns(Exception):
    """A file that holds another code than the function's, as after an edit."""


def read(function: Any) -> Source | None:
    """A function's source, its lines and columns as in its file; None where there is none.

    Raises:
        NotWhatRuns: the file does not compile to the function's code.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        return None
    file = _file(code.co_filename, "".join(lines))
    if not any(_same(code, c) for c in file.codes.get((code.co_name, code.co_firstlineno), ())):
        raise NotWhatRuns
    for first, last in file.statements:
        if first <= code.co_firstlineno <= last:
            for statement in _parsed("\n" * (first - 1) + "".join(lines[first - 1 : last])).body:
                for node in ast.walk(statement):
                    if isinstance(node, ast.FunctionDef) and (node.name, _first(node)) == (
                        code.co_name,
                        code.co_firstlineno,
                    ):
                        return Source(statement, node)
    return None  # a lambda, or asynchronous


def known(function: Any) -> Source | None:
    """A function's source as :func:`read` gives it; None also where the file holds another code."""
    try:
        return read(function)
    except NotWhatRuns:
        return None


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether two codes are one, to the line, which Python 3.10 does not compare."""
    return a == b and all([*x.co_lines()] == [*y.co_lines()] for x, y in zip(_within(a), _within(b), strict=True))


class _File(NamedTuple):
    """The codes that a file compiles to, by name and first line, and its statements' first and last lines.

    Only these are kept, which hold neither classes nor functions.
    """

    codes: dict[tuple[str, int], list[types.CodeType]]
    statements: list[tuple[int, int]]


@functools.lru_cache(maxsize=64)
def _file(filename: str, text: str) -> _File:
    file = _File({}, [])
    try:
        tree = _parsed(text)
        codes = _within(_compile(tree, filename, 0))
    except (SyntaxError, ValueError):
        return file
    for code in codes:
        file.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
    file.statements.extend((_first(node), node.end_lineno or node.lineno) for node in tree.body)
    return file


def _first(node: ast.stmt) -> int:
    """The first line of a function as Python counts it: that of its first decorator."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _compile(tree: ast.Module, filename: str, flags: int) -> types.CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warned of this source when it was imported
        code: types.CodeType = compile(tree, filename, "exec", flags, dont_inherit=True)
    return code


def _parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def found(node: ast.expr, function: Any) -> Any:
    """The value of a name in a function's globals or closure, or of an attribute of a module there; else None."""
    if isinstance(node, ast.Attribute):
        owner = found(node.value, function)
        return vars(owner).get(node.attr) if inspect.ismodule(owner) else None
    return named(node.id, function) if isinstance(node, ast.Name) else None


def named(name: str, function: Any) -> Any:
    """The value of a name in a function's globals or closure; else None."""
    code = function.__code__
    if name in code.co_freevars:
        return _content(function.__closure__[code.co_freevars.index(name)])
    if name in (*code.co_varnames, *code.co_cellvars):
        return None
    return function.__globals__.get(name)


def compiled(source: Source, function: Any, helpers: dict[str, Any]) -> Any:
    """The function with its definition as that has become, where helpers are free variables.

    The definition moves into a function whose arguments are the helpers and which stands in its place: within the same class
    and the same functions, so that every other name means what it did.
    """
    inner = copy.copy(source.definition)
    inner.name, inner.decorator_list = _INNER, []
    outer: Any = ast.parse(f"def {_OUTER}({', '.join(helpers)}): 0").body[0]
    outer.body = [inner]
    tree = ast.Module([_Replace(source.definition, outer).visit(source.statement)], [])
    flags = function.__code__.co_flags & _FUTURE
    whole = _compile(ast.fix_missing_locations(tree), function.__code__.co_filename, flags)
    code = next(c for c in _within(whole) if c.co_name == _INNER)
    own = function.__code__
    code = _renamed(code, own.co_name).replace(co_firstlineno=own.co_firstlineno, co_flags=own.co_flags)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in helpers.items()}
    return like(function, code, tuple(cells[name] for name in code.co_freevars))


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def _within(code: types.CodeType) -> list[types.CodeType]:
    """It, and all code in it."""
    codes = [code]
    for c in codes:
        codes += [inner for inner in c.co_consts if inspect.iscode(inner)]
    return codes


def _renamed(code: types.CodeType, name: str) -> types.CodeType:
    """A code with the name it had, in the full names of functions within too, which Python 3.10 holds as constants."""
    place = f"{_OUTER}.<locals>.{_INNER}"
    consts = tuple(
        _renamed(c, name) if inspect.iscode(c) else c.replace(place, name) if isinstance(c, str) else c
        for c in code.co_consts
    )
    full: Any = {"co_qualname": code.co_qualname.replace(place, name)} if hasattr(code, "co_qualname") else {}
    return code.replace(co_consts=consts, co_name=name if code.co_name == _INNER else code.co_name, **full)


def multiplies(code: types.CodeType) -> bool:
    """Whether it holds a product, in itself or in a function within."""
    within = (c for c in code.co_consts if inspect.iscode(c))
    steps = ((step.opname, step.argrepr) for step in dis.get_instructions(code))
    return any(name == "BINARY_MULTIPLY" or by in ("*", "*=") for name, by in steps) or any(map(multiplies, within))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def like(function: Any, code: types.CodeType, closure: tuple[Any, ...]) -> Any:
    """A function that is another in all but its code and closure."""
    made: Any = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    functools.update_wrapper(made, function)
    del made.__wrapped__
    made.__dict__.update(function.__dict__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def wrapped_again(outer: Any, function: Any, made: Any) -> Any:
    """A decorated function with another in its middle; None where the decorator's closure does not hold it."""
    if outer is function:
        return made
    wrapped, cells = outer.__wrapped__, outer.__closure__ or ()
    inner = wrapped_again(wrapped, function, made)
    replaced = tuple(types.CellType(inner) if _content(cell) is wrapped else cell for cell in cells)
    if inner is None or all(a is b for a, b in zip(cells, replaced, strict=True)):
        return None
    again = like(outer, outer.__code__, replaced)
    again.__wrapped__ = inner
    return again
