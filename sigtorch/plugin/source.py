"""A function's source: read, and compiled again with a change, where nothing else differs."""

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
from typing import Any

_FUTURE = functools.reduce(operator.or_, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names))


def parsed(function: Any) -> ast.FunctionDef | None:
    """A function's source as a tree, its lines counted as in its file; None where there is none."""
    try:
        source = inspect.getsource(function)
        # Indented or not, as it stands: a string's lines are not to be shifted.
        (block, *more) = ast.parse(f"if 1:\n{source}" if source[0].isspace() else f"if 1: 0\n{source}").body
        (tree,) = more or block.body  # type: ignore[attr-defined]
    except (OSError, SyntaxError, TypeError, ValueError):  # made at run time, or a lambda within a line
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    return ast.increment_lineno(tree, function.__code__.co_firstlineno - 2)


def found(node: ast.expr, function: Any) -> Any:
    """What a name of a function's globals or closure, or an attribute of such a module, stands for; else None."""
    if isinstance(node, ast.Attribute):
        owner = found(node.value, function)
        return vars(owner).get(node.attr) if inspect.ismodule(owner) else None
    if not isinstance(node, ast.Name):
        return None
    code = function.__code__
    if node.id in code.co_freevars:
        return _content(function.__closure__[code.co_freevars.index(node.id)])
    if node.id in (*code.co_varnames, *code.co_cellvars):
        return None
    return function.__globals__.get(node.id)


def compiled(tree: ast.FunctionDef, function: Any, helpers: dict[str, Any]) -> Any:
    """The function with another body; None where its own source compiles to something else than what runs."""
    again = parsed(function)
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
    # A method that names its class finds it among the globals, unless its closure holds it.
    place = "0" if owner == "<locals>" else "0" if owner in own.co_freevars else f"global {owner}"
    outline = ast.parse(f"def _({free}):\n {place}" + (f"\n class {owner}: 0" if owner != "<locals>" else ""))
    inside: Any = outline
    for _ in names[:-1]:
        inside = inside.body[-1]
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
            value = repr(step.argval).rpartition("<locals>.")[2]  # Python 3.10 loads the full name of a function within
            yield step.opname.replace("METHOD", "ATTR"), None if jumps else value


def multiplies(code: types.CodeType) -> bool:
    """Whether it holds a product, in itself or in a function within."""
    within = (c for c in code.co_consts if inspect.iscode(c))
    steps = ((step.opname, step.argrepr) for step in dis.get_instructions(code))
    return any(name == "BINARY_MULTIPLY" or by in ("*", "*=") for name, by in steps) or any(map(multiplies, within))


def _like(function: Any, code: types.CodeType, closure: tuple[Any, ...]) -> Any:
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
    again = _like(outer, outer.__code__, replaced)
    again.__wrapped__ = inner
    return again


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
