"""Reads a function's source, if it is what runs, and compiles it again with a change."""

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
_INNER = "_sigtorch_inner"


class Source(NamedTuple):
    """A function's definition, and the statement of its file that holds it: trees that the caller may change."""

    statement: ast.stmt
    definition: ast.FunctionDef


class SourceDiffersError(Exception):
    """A file does not hold the function's code, for example after an edit."""


def read(function: Any) -> Source | None:
    """Returns a function's source, with the lines and columns of its file, or None if it has none.

    Raises:
        SourceDiffersError: the file does not compile to the function's code.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        return None
    file = _compile_file(code.co_filename, "".join(lines))
    if not any(_are_same(code, c) for c in file.codes.get((code.co_name, code.co_firstlineno), ())):
        raise SourceDiffersError
    for statement in _statements_at(code.co_firstlineno, file, lines):
        for node in ast.walk(statement):
            if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
                continue
            if _first_line(node) == code.co_firstlineno:
                return Source(statement, node)
    return None  # a lambda, or asynchronous


def read_if_current(function: Any) -> Source | None:
    """Returns a function's source as :func:`read` does, and None also where the file holds other code."""
    try:
        return read(function)
    except SourceDiffersError:
        return None


def read_lambda(function: Any) -> ast.Lambda | None:
    """Returns the source of a lambda, if its file holds it, and no other one on its line."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    file = _compile_file(code.co_filename, "".join(lines))
    if [_are_same(code, c) for c in file.codes.get((code.co_name, code.co_firstlineno), ())] != [True]:
        return None
    nodes = [n for statement in _statements_at(code.co_firstlineno, file, lines) for n in ast.walk(statement)]
    found = [n for n in nodes if isinstance(n, ast.Lambda) and n.lineno == code.co_firstlineno]
    return found[0] if len(found) == 1 else None


def _are_same(a: types.CodeType, b: types.CodeType) -> bool:
    """Tells whether two codes are equal in their lines, too, which Python 3.10 does not compare."""
    pairs = zip(_with_nested(a), _with_nested(b), strict=True)
    return a == b and all([*x.co_lines()] == [*y.co_lines()] for x, y in pairs)


class _File(NamedTuple):
    """The codes that a file compiles to, by name and first line, and the first and last lines of its statements.

    Codes hold neither classes nor functions, so that the cache keeps none of them alive.
    """

    codes: dict[tuple[str, int], list[types.CodeType]]
    statements: list[tuple[int, int]]


def _statements_at(line: int, file: _File, lines: list[str]) -> list[ast.stmt]:
    """Returns the statements of a file that hold a line, with the lines and columns of the file."""
    spans = [(first, last) for first, last in file.statements if first <= line <= last]
    return [s for first, last in spans for s in _parse("\n" * (first - 1) + "".join(lines[first - 1 : last])).body]


@functools.lru_cache(maxsize=64)
def _compile_file(filename: str, text: str) -> _File:
    file = _File({}, [])
    try:
        tree = _parse(text)
        codes = _with_nested(_compile(tree, filename, 0))
    except (SyntaxError, ValueError):
        return file
    for code in codes:
        file.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
    file.statements.extend((_first_line(node), node.end_lineno or node.lineno) for node in tree.body)
    return file


def _first_line(node: ast.stmt) -> int:
    """Returns the first line of a statement as codes count it, which for a function is its first decorator's."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _compile(tree: ast.Module, filename: str, flags: int) -> types.CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warned of this source when it was imported
        code: types.CodeType = compile(tree, filename, "exec", flags, dont_inherit=True)
    return code


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def resolve(node: ast.expr, function: Any) -> Any:
    """Returns the value of a name in a function's globals or closure, or of an attribute of a module or class there."""
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, function)
        if isinstance(owner, type):
            return inspect.getattr_static(owner, node.attr, None)
        return vars(owner).get(node.attr) if inspect.ismodule(owner) else None
    return resolve_name(node.id, function) if isinstance(node, ast.Name) else None


def resolve_name(name: str, function: Any) -> Any:
    """Returns the value of a name in a function's globals or closure, else None."""
    code = function.__code__
    if name in code.co_freevars:
        return _cell_value(function.__closure__[code.co_freevars.index(name)])
    if name in (*code.co_varnames, *code.co_cellvars):
        return None
    return function.__globals__.get(name)


def compile_changed(source: Source, function: Any, helpers: dict[str, types.CellType]) -> types.CodeType:
    """Returns the code of a function's changed definition, in which the names of helpers are free variables.

    The definition is compiled inside another function that stands in its place and has the helpers as arguments. The classes
    and functions around it stay, so that all other names mean the same.
    """
    inner = copy.copy(source.definition)
    inner.name, inner.decorator_list, inner.lineno = _INNER, [], _first_line(source.definition)
    # Its name stays, for the function may call itself.
    outer: Any = ast.parse(f"def {source.definition.name}({', '.join(helpers)}): 0").body[0]
    outer.body = [inner]
    tree = ast.Module([_Replace(source.definition, outer).visit(source.statement)], [])
    flags = function.__code__.co_flags & _FUTURE
    whole = _compile(ast.fix_missing_locations(tree), function.__code__.co_filename, flags)
    code = next(c for c in _with_nested(whole) if c.co_name == _INNER)
    own = function.__code__
    return _restore_name(code, own.co_name).replace(co_flags=own.co_flags)


def closure_for(function: Any, code: types.CodeType, helpers: dict[str, types.CellType]) -> tuple[Any, ...]:
    """Returns the closure that a function needs for a changed code, which may use helpers."""
    own = function.__closure__
    cells = helpers if own is None else {**helpers, **dict(zip(function.__code__.co_freevars, own, strict=True))}
    return tuple([cells[name] for name in code.co_freevars])


def with_code(function: Any, code: types.CodeType, helpers: dict[str, types.CellType]) -> Any:
    """Returns a function with a changed code, which may use helpers, and with all else that its calls take."""
    closure = closure_for(function, code, helpers)
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


class _Replace(ast.NodeTransformer):
    """Replaces one node of a tree."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def _with_nested(code: types.CodeType) -> list[types.CodeType]:
    """Returns a code and all codes nested in it."""
    codes = [code]
    for c in codes:
        codes += [inner for inner in c.co_consts if inspect.iscode(inner)]
    return codes


def _restore_name(code: types.CodeType, name: str) -> types.CodeType:
    """Gives a code its former name, also in the full names of nested functions, which Python 3.10 holds as constants."""
    place = f"{name}.<locals>.{_INNER}"
    consts = tuple(
        _restore_name(c, name) if inspect.iscode(c) else c.replace(place, name) if isinstance(c, str) else c
        for c in code.co_consts
    )
    full: Any = {"co_qualname": code.co_qualname.replace(place, name)} if hasattr(code, "co_qualname") else {}
    return code.replace(co_consts=consts, co_name=name if code.co_name == _INNER else code.co_name, **full)


def has_product(code: types.CodeType) -> bool:
    """Tells whether a code multiplies, itself or in a nested function."""
    steps = [(step.opname, step.argrepr) for c in _with_nested(code) for step in dis.get_instructions(c)]
    return any(name == "BINARY_MULTIPLY" or operand in ("*", "*=") for name, operand in steps)


def _cell_value(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def copy_function(function: Any, code: types.CodeType, closure: tuple[Any, ...]) -> Any:
    """Returns a copy of a function with another code and closure."""
    made: Any = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    functools.update_wrapper(made, function)
    del made.__wrapped__
    made.__dict__.update(function.__dict__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def decorate_again(decorated: Any, function: Any, replacement: Any) -> Any:
    """Returns a decorated function with another in its middle, or None if a decorator's closure does not hold it."""
    if decorated is function:
        return replacement
    wrapped, cells = decorated.__wrapped__, decorated.__closure__ or ()
    inner = decorate_again(wrapped, function, replacement)
    replaced = tuple(types.CellType(inner) if _cell_value(cell) is wrapped else cell for cell in cells)
    if inner is None or all(a is b for a, b in zip(cells, replaced, strict=True)):
        return None
    again = copy_function(decorated, decorated.__code__, replaced)
    again.__wrapped__ = inner
    return again
