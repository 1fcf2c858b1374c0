"""Methods written anew: each product of a sigmoid or silu with a tensor becomes a call that fuses it, all else stays.

The method's own source is compiled again, with the globals, closure, defaults and lines it had.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

from sigtorch.plugin import overlooked, source
from sigtorch.plugin.recognise import ANEW, IN_PLACE, NUMBER
from sigtorch.plugin.writer import HELPERS, Site, Writer, file_of, looks_at_names

OTHER_SOURCE = "its source is not what runs"


class Rewritten(NamedTuple):
    """A method, what it was made from, which stays where the other is None, and the products in it."""

    original: Any
    function: Any
    sites: tuple[Site, ...]


def methods_of(cls: Any, activations: frozenset[tuple[str, str]]) -> dict[str, Rewritten]:
    """The methods of a class that hold products, where these attributes of its instance are a sigmoid, a silu, a number."""
    bases = [
        b for b in reversed(cls.__mro__) if str(b.__module__).split(".")[0] not in ("torch", "sigtorch", "builtins")
    ]
    # As they are now: a method may have been replaced.
    functions = [
        (b, n, f) for b in bases for n, f in vars(b).items() if inspect.isfunction(f) and not n.startswith("__")
    ]
    methods = {name: f for _, name, f in functions if inspect.getattr_static(cls, name) is f}
    class_ = _Class(cls, dict(activations), methods)
    made = {name: class_.rewritten(f) for name, f in methods.items() if class_.tells(f)}
    for base, name, f in functions:
        by_super = (
            g for g in methods.values() if {name, "super"} <= names_in(g) or {name, base.__name__} <= names_in(g)
        )
        if methods.get(name) is not f and class_.tells(f) and any(by_super):
            why = "a method of a subclass calls it"
            sites = class_.rewritten(f).sites
            made[f"{base.__name__}.{name}"] = Rewritten(
                f, None, tuple(s._replace(reason=s.reason or why) for s in sites)
            )
    for name in class_.used:
        made[name] = class_.putting_off(name, made.get(name))
    return {name: r for name, r in made.items() if r.sites or r.function}


class _Class:
    """A class whose methods are read."""

    def __init__(self, cls: Any, kinds: dict[str, str], methods: dict[str, Any]) -> None:
        self.cls, self.kinds, self.methods = cls, kinds, methods
        # At a glance: most methods hold no product, and need not be read.
        self.telling = overlooked.NAMES | {name for name, kind in kinds.items() if kind not in (NUMBER, IN_PLACE, ANEW)}
        self.returning: dict[str, str] = {}
        self.returning |= {n: k for n, f in methods.items() if self.tells(f) and (k := self._returns(f))}
        self.telling |= self.returning.keys()
        self.used: set[str] = set()  # methods that return a sigmoid to a product

    def tells(self, function: Any) -> bool:
        """Whether a function names what may be a sigmoid or silu."""
        names, known = names_in(function), getattr(inspect.unwrap(function), "__globals__", {})
        return bool(names & self.telling) or any(overlooked.holds_activations(known.get(name)) for name in names)

    def rewritten(self, attribute: Any) -> Rewritten:
        """A method, written anew where that changes something."""
        function = inspect.unwrap(attribute)
        place = f"{file_of(function)}:{function.__code__.co_firstlineno}"
        unread = [place] if source.multiplies(function.__code__) else []
        try:
            read = source.read(function)
        except source.NotWhatRuns:
            return Rewritten(attribute, None, tuple(Site(p, "", OTHER_SOURCE) for p in unread))
        if read is None:
            return Rewritten(attribute, None, tuple(Site(p, "", "its source cannot be read") for p in unread))
        writer = Writer(self.cls, function, read.definition, self.kinds, self.returning)
        blind = looks_at_names(read.definition)
        alike = writer.alike()
        writer.visit(read.definition)
        sites = (*writer.sites, *writer.left(alike))
        made, why = None, "it looks at what its variables are" if blind else ""
        if not why and not all(site.reason for site in sites):
            made = source.wrapped_again(attribute, function, source.compiled(read, function, HELPERS))
            why = "" if made is not None else "a decorator hides the method"
        if made is None:
            return Rewritten(attribute, None, tuple(s._replace(reason=s.reason or why) for s in sites))
        self.used |= writer.used
        return Rewritten(attribute, made, sites)

    def _returns(self, function: Any) -> str | None:
        """Which of them a method ends in, a sigmoid or silu, if its end is all that it returns."""
        if hasattr(function, "__wrapped__") or str(function.__module__).split(".")[0] == "torch":
            return None
        read = source.known(function)
        if read is None or read.definition.decorator_list or looks_at_names(read.definition):
            return None
        body = read.definition.body
        returns = [n for n in ast.walk(read.definition) if isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom))]
        if len(returns) != 1 or body[-1] is not returns[0] or returns[0].value is None:
            return None
        writer = Writer(self.cls, function, read.definition, self.kinds, {})
        kind = writer.kind(returns[0].value)
        gate = writer.gate(returns[0].value) if kind else None
        return None if gate is None or writer.changes.concern(gate, returns[0]) else kind

    def putting_off(self, name: str, rewritten: Rewritten | None) -> Rewritten:
        """A method that returns a sigmoid, with another that leaves that to a product."""
        original = self.methods[name]
        if rewritten is None or rewritten.function is None:
            same = source.like(original, original.__code__, original.__closure__)
            rewritten = Rewritten(original, same, () if rewritten is None else rewritten.sites)
        read = source.known(original)
        if read is not None:
            Writer(self.cls, original, read.definition, self.kinds, {}, returned=True).visit(read.definition)
            rewritten.function._sigtorch_putting_off = source.compiled(read, original, HELPERS)
        return rewritten


def names_in(function: Any) -> set[str]:
    """The names in a function's code, and in that of wrapped and nested functions."""
    names: set[str] = set()
    codes = [f.__code__ for f in (inspect.unwrap(function),) if inspect.isfunction(f)]
    for code in codes:
        names.update((*code.co_names, *code.co_freevars))
        codes += [c for c in code.co_consts if inspect.iscode(c)]
    return names
