"""Rewrites methods: each product of a sigmoid or silu with a tensor becomes a call that fuses it, and all else stays.

The method's own source is compiled again, with the globals, closure, defaults and lines that it had.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

from sigtorch.plugin import source
from sigtorch.plugin.recognise import NUMBER, RETURNS_NEW, WORKS_IN_PLACE, Activation, AttributeKinds, Kind
from sigtorch.plugin.writer import HELPERS, Site, Writer, file_name, looks_at_variables

NAMES = {"sigmoid", "silu", "expit"}  # of PyTorch's functions and methods
SOURCE_DIFFERS = "its source differs from the code that runs"
NO_SOURCE = "its source cannot be read"
LOOKS_AT_VARIABLES = "it looks at its own variables"
HIDDEN = "a decorator hides the method"
CALLED_BY_SUBCLASS = "a method of a subclass calls it"


class Rewritten(NamedTuple):
    """A method, the function that replaces it or None if it stays, and the products in it."""

    original: Any
    function: Any
    sites: tuple[Site, ...]

    def left(self, reason: str) -> Rewritten:
        """Returns it unrewritten: products without a reason of their own get this one."""
        return Rewritten(self.original, None, tuple(s._replace(reason=s.reason or reason) for s in self.sites))


def rewrite_methods(cls: Any, kinds: AttributeKinds) -> dict[str, Rewritten]:
    """Rewrites the methods of a class that hold products, for instances whose attributes are of these kinds.

    Returns them by name. A method that a subclass overrides, but calls, is returned unrewritten as ``Base.name``.
    """
    skipped = ("torch", "sigtorch", "builtins")
    bases = [b for b in reversed(cls.__mro__) if str(b.__module__).split(".")[0] not in skipped]
    # As they are now: a method may have been replaced.
    functions = [
        (b, n, f) for b in bases for n, f in vars(b).items() if inspect.isfunction(f) and not n.startswith("__")
    ]
    methods = {name: f for _, name, f in functions if inspect.getattr_static(cls, name) is f}
    rewriter = _Rewriter(cls, dict(kinds), methods)
    rewritten = {name: rewriter.rewrite(f) for name, f in methods.items() if rewriter.may_hold_product(f)}
    for base, name, f in functions:
        if methods.get(name) is f or not rewriter.may_hold_product(f):
            continue
        called = [names_in(caller) for caller in methods.values()]
        if any({name, "super"} <= names or {name, base.__name__} <= names for names in called):
            rewritten[f"{base.__name__}.{name}"] = rewriter.rewrite(f).left(CALLED_BY_SUBCLASS)
    for name in rewriter.deferred_methods:
        rewritten[name] = rewriter.add_deferring(name, rewritten.get(name))
    return {name: r for name, r in rewritten.items() if r.sites or r.function}


class _Rewriter:
    """Rewrites the methods of one class."""

    def __init__(self, cls: Any, kinds: dict[str, Kind], methods: dict[str, Any]) -> None:
        self.cls, self.kinds, self.methods = cls, kinds, methods
        # Most methods hold no product, and none of these names: they need not be read.
        self.names = NAMES | {name for name, kind in kinds.items() if kind not in (NUMBER, WORKS_IN_PLACE, RETURNS_NEW)}
        self.activation_methods = {
            name: activation
            for name, f in methods.items()
            if self.may_hold_product(f) and (activation := self._returned_activation(f))
        }
        self.names |= self.activation_methods.keys()
        self.deferred_methods: set[str] = set()  # the activation methods whose results products take

    def may_hold_product(self, function: Any) -> bool:
        """Tells whether a function names what may be a sigmoid or silu."""
        return bool(names_in(function) & self.names)

    def rewrite(self, method: Any) -> Rewritten:
        """Rewrites a method, if that changes something."""
        function = inspect.unwrap(method)
        line = f"{file_name(function)}:{function.__code__.co_firstlineno}"
        unread = Rewritten(method, None, (Site(line),) if source.has_product(function.__code__) else ())
        try:
            read = source.read(function)
        except source.SourceDiffersError:
            return unread.left(SOURCE_DIFFERS)
        if read is None:
            return unread.left(NO_SOURCE)
        looks_at_itself = looks_at_variables(read.definition)
        writer = Writer(self.cls, function, read.definition, self.kinds, self.activation_methods)
        writer.visit(read.definition)
        result = Rewritten(method, None, (*writer.sites, *writer.refused_sites()))
        if looks_at_itself:
            return result.left(LOOKS_AT_VARIABLES)
        if all(site.reason for site in result.sites):
            return result
        compiled = source.compile_changed(read, function, HELPERS)
        result = result._replace(function=source.decorate_again(method, function, compiled))
        if result.function is None:
            return result.left(HIDDEN)
        self.deferred_methods |= writer.deferred_methods
        return result

    def _returned_activation(self, function: Any) -> Activation | None:
        """Returns which activation's result a method ends in, if that is the only value that it returns."""
        if hasattr(function, "__wrapped__") or str(function.__module__).split(".")[0] == "torch":
            return None
        read = source.read_if_current(function)
        if read is None or read.definition.decorator_list or looks_at_variables(read.definition):
            return None
        returns = [n for n in ast.walk(read.definition) if isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom))]
        last = read.definition.body[-1]
        if not isinstance(last, ast.Return) or last.value is None or returns != [last]:
            return None
        writer = Writer(self.cls, function, read.definition, self.kinds, {})
        activation = writer.activation(last.value)
        gate = writer.gate(last.value) if activation else None
        return None if gate is None or writer.changes.affect(gate, last) else activation

    def add_deferring(self, name: str, rewritten: Rewritten | None) -> Rewritten:
        """Returns an activation method with a second version, which puts its result off for a product."""
        original = self.methods[name]
        if rewritten is None or rewritten.function is None:
            copy = source.copy_function(original, original.__code__, original.__closure__)
            rewritten = Rewritten(original, copy, () if rewritten is None else rewritten.sites)
        read = source.read_if_current(original)
        if read is not None:
            Writer(self.cls, original, read.definition, self.kinds, {}, defer_return=True).visit(read.definition)
            rewritten.function._sigtorch_deferring = source.compile_changed(read, original, HELPERS)
        return rewritten


def names_in(function: Any) -> set[str]:
    """Returns the names in a function's code, and in that of wrapped and nested functions."""
    names: set[str] = set()
    codes = [f.__code__ for f in (inspect.unwrap(function),) if inspect.isfunction(f)]
    for code in codes:
        names.update((*code.co_names, *code.co_freevars))
        codes += [c for c in code.co_consts if inspect.iscode(c)]
    return names
