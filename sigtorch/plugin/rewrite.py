"""Rewrites functions: each product of a sigmoid or silu with a tensor becomes a call that fuses it, and all else stays.

A function's own source is compiled again, with the globals, closure, defaults and lines that it had.
"""

from __future__ import annotations

import ast
import functools
import inspect
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from sigtorch.plugin import source
from sigtorch.plugin.classes import original_of
from sigtorch.plugin.find import Finder
from sigtorch.plugin.found import Site
from sigtorch.plugin.reading import Rewriting
from sigtorch.plugin.recognise import (
    LEADS_TO_PRODUCTS,
    MAY_BE_ACTIVATION,
    NUMBER,
    RETURNS_NEW,
    WORKS_IN_PLACE,
    AttributeKinds,
    Kind,
    is_activation_table,
    is_known,
    obstacle,
    own_forward,
    value_kind,
)
from sigtorch.plugin.syntax import file_name
from sigtorch.plugin.writer import HELPERS, Writer

SOURCE_DIFFERS = "its source differs from the code that runs"
NO_SOURCE = "its source cannot be read"
LOOKS_AT_VARIABLES = "it looks at its own variables"
HIDDEN = "a decorator hides the method"
# Names of which one is in every function that computes a sigmoid, silu or GLU itself.
NAMES = {"sigmoid", "sigmoid_", "silu", "silu_", "expit", "Sigmoid", "SiLU", "glu"}
_SKIPPED_PACKAGES = {
    "torch", "sigtorch", "builtins", "functools", "operator", "math", "typing", "numpy", "einops", "collections", "warnings",
    "os", "abc", "contextlib", "dataclasses", "logging", "inspect", "copy", "itertools", "re", "packaging", "huggingface_hub",
}  # fmt: skip


class Rewritten(NamedTuple):
    """A function, what replaces it or None if it stays, and the products in it."""

    original: Any
    function: Any
    sites: tuple[Site, ...]

    def left(self, reason: str) -> Rewritten:
        """Returns it unrewritten: products without a reason of their own get this one."""
        return Rewritten(self.original, None, tuple(s._replace(reason=s.reason or reason) for s in self.sites))


def rewrite_methods(cls: Any, kinds: AttributeKinds) -> dict[str, Rewritten]:
    """Rewrites the methods of a class that hold products, for instances whose attributes are of these kinds, by name."""
    bases = [b for b in reversed(cls.__mro__) if is_searched(b)]
    # As they are now: a method may have been replaced.
    functions = {n: f for b in bases for n, f in vars(b).items() if inspect.isfunction(f) and not n.startswith("__")}
    methods = {name: f for name, f in functions.items() if inspect.getattr_static(cls, name) is f}
    rewriter = _Rewriter(cls, dict(kinds))
    rewritten = {name: rewriter.rewrite(f) for name, f in methods.items() if rewriter.may_hold_product(f)}
    for r in rewritten.values():
        if r.function is not None:
            r.function._sigtorch_rewritten = r
    return {name: r for name, r in rewritten.items() if r.sites or r.function}


class _Rewriter(Rewriting):
    """Rewrites the methods of a class, or a function; ``kinds`` is None if the attributes of the instance are not known."""

    def __init__(self, cls: Any, kinds: dict[str, Kind] | None) -> None:
        self.cls, self.kinds = cls, kinds
        # Most methods hold no product, and none of these names: they need not be read.
        skipped = (NUMBER, WORKS_IN_PLACE, RETURNS_NEW)
        self.names = NAMES | {name for name, kind in (kinds or {}).items() if kind not in skipped}
        self.deferrable: dict[FunctionType, bool] = {}

    def may_hold_product(self, function: Any) -> bool:
        """Tells whether a function names what may be a sigmoid or silu, or calls a function that does."""
        names, known = names_in(function), getattr(inspect.unwrap(function), "__globals__", {})
        if names & self.names or any(is_activation_table(known.get(name)) for name in names) or _may_lead(function):
            return True
        return bool(names & self.naming_methods)

    @functools.cached_property
    def naming_methods(self) -> set[str]:
        """The methods of the class that name what may be a sigmoid or silu."""
        held = [(name, f) for base in self.cls.__mro__ if is_searched(base) for name, f in vars(base).items()]
        functions = [(name, getattr(f, "__func__", f)) for name, f in held]  # of a static method
        return {name for name, f in functions if isinstance(f, FunctionType) and names_in(f) & self.names}

    def rewrite(self, method: Any, *, defers_returns: bool = False) -> Rewritten:
        """Rewrites a function, if that changes something."""
        function = inspect.unwrap(method)
        unread = Rewritten(method, None, ())
        if names_in(function) & self.names and source.has_product(function.__code__):
            unread = unread._replace(sites=(Site(f"{file_name(function)}:{function.__code__.co_firstlineno}"),))
        try:
            read = source.read(function)
        except source.SourceDiffersError:
            return unread.left(SOURCE_DIFFERS)
        if read is None:
            return unread.left(NO_SOURCE)
        found = Finder(self.cls, function, read.definition, self.kinds, self).find(defers_returns=defers_returns)
        result = Rewritten(method, None, tuple(s for s in found.sites if s.where))
        if not (found.put_off or found.deferred or found.called or found.glus or found.clamped):
            return result
        if looks_at_variables(read.definition):
            return result.left(LOOKS_AT_VARIABLES)
        Writer(found).write(read.definition)
        made = _decorated_again(method, function, source.compile_changed(read, function, HELPERS))
        return result.left(HIDDEN) if made is None else result._replace(function=made)

    def sites_in(self, function: Any, cls: Any) -> list[Site]:
        if not isinstance(function, FunctionType):
            return []
        if not _may_lead(function) and (cls is object or not names_in(function) & self.names):
            return []
        made = rewritten_function(function, cls)
        return [] if made is None else [*made.sites]

    def is_deferrable(self, function: Any) -> bool:
        if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__") or not is_searched(function):
            return False
        if function not in self.deferrable:
            self.deferrable[function] = False  # while it is read, for it may call itself
            read = source.read_if_current(function) if names_in(function) & self.names else None
            if read is not None and not read.definition.decorator_list and not looks_at_variables(read.definition):
                finder = Finder(self.cls, function, read.definition, self.kinds, self)
                self.deferrable[function] = finder.find(defers_returns=True).defers_return
        return self.deferrable[function]


class _Made(NamedTuple):
    """Holds a code, the code that replaces it in any function, or None if they stay, and the products in it.

    It holds no function, for that would hold the original alive by the variables and globals that the two share.
    """

    code: CodeType
    changed: CodeType | None
    sites: tuple[Site, ...]


_rewritten: WeakKeyDictionary[FunctionType, _Made] = WeakKeyDictionary()
_deferring: WeakKeyDictionary[FunctionType, _Made] = WeakKeyDictionary()


def rewritten_function(function: FunctionType, cls: Any = object) -> Rewritten | None:
    """Returns what a function is rewritten to wherever it is called, or None if it stays.

    ``cls`` is the class of the object whose method it is. Nothing is known of the object's attributes: each call looks.
    """
    return _made(_rewritten, function, cls, defers_returns=False)


def deferring_function(function: FunctionType, cls: Any = object) -> Rewritten | None:
    """Returns what a function that ends in a sigmoid or silu is rewritten to where a product takes its result."""
    is_decorated = hasattr(function, "__wrapped__")  # and its decorator may do more with the result
    return None if is_decorated else _made(_deferring, function, cls, defers_returns=True)


def _made(
    known: WeakKeyDictionary[FunctionType, _Made], function: FunctionType, cls: Any, *, defers_returns: bool
) -> Rewritten | None:
    own = inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
    code, made = own.__code__, known.get(function)
    if made is None or made.code is not code:
        known[function] = _Made(code, None, ())  # while it is rewritten, for it may call itself
        new = _Rewriter(cls, None).rewrite(function, defers_returns=defers_returns)
        changed = None if new.function is None else inspect.unwrap(new.function).__code__
        made = known[function] = _Made(code, changed, new.sites)
    if made.changed is None:
        return None
    # Made anew each time: its defaults may have changed.
    if own is function:
        return Rewritten(None, source.with_code(function, made.changed, HELPERS), made.sites)
    return Rewritten(None, _decorated_again(function, own, made.changed), made.sites)


def _decorated_again(decorated: Any, function: Any, code: CodeType) -> Any:
    """Returns a copy of a function with a changed code, in the same decorators; None if one of them hides it."""
    closure = source.closure_for(function, code, HELPERS)
    return source.decorate_again(decorated, function, source.copy_function(function, code, closure))


class Attributes:
    """Knows what modules hold. While a model is surveyed, each module and each class is looked at once."""

    def __init__(self) -> None:
        self.by_value: dict[int, dict[str, Kind]] = {}
        self.deferrable: dict[tuple[type, AttributeKinds], bool] = {}
        self.sites_by_class: dict[type, list[Site]] = {}

    def kinds(self, module: torch.nn.Module) -> dict[str, Kind]:
        """Returns the kinds of what a module holds, by name."""
        kinds = dict(self._kinds_by_value(module))
        for name, value in held_by(module).items():
            if kinds.get(name, RETURNS_NEW) == RETURNS_NEW and (kind := self._code_kind(value)):
                kinds[name] = kind
        return kinds

    def _kinds_by_value(self, module: torch.nn.Module) -> dict[str, Kind]:
        if id(module) not in self.by_value:
            kinds = {name: kind for name, value in held_by(module).items() if (kind := value_kind(value))}
            self.by_value[id(module)] = kinds
        return self.by_value[id(module)]

    def _code_kind(self, value: Any) -> Kind | None:
        """Returns the kind of a function, module or other object by its code."""
        if not isinstance(value, torch.nn.Module):
            return LEADS_TO_PRODUCTS if self.sites_of(value) else None
        cls = original_of(type(value))
        if not is_searched(cls) or not isinstance(own_forward(value), FunctionType):
            return None
        try:
            kinds = self._kinds_by_value(value)
        except Exception:  # which is told in that module's own row
            return None
        key = cls, frozenset(kinds.items())
        if key not in self.deferrable:
            self.deferrable[key] = _Rewriter(cls, kinds).is_deferrable(own_forward(value))
        return MAY_BE_ACTIVATION if self.deferrable[key] and obstacle(value) is None else None

    def sites_of(self, value: Any) -> list[Site]:
        """Returns the products in a function, or in the methods of an object that is no module, that are rewritten."""
        if isinstance(value, FunctionType):
            made = rewritten_function(value) if _may_lead(value) else None
            return [] if made is None else [*made.sites]
        cls = type(value)
        if cls not in self.sites_by_class:
            is_object = is_searched(cls) and not isinstance(value, (torch.nn.Module, torch.Tensor))
            self.sites_by_class[cls] = _sites_in_methods(cls) if is_object else []
        return self.sites_by_class[cls]


_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))


def held_by(module: torch.nn.Module) -> dict[str, Any]:
    """Returns what a module holds as attributes of its own, by name."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    return {**own, **module._modules, **module._parameters, **module._buffers}


def _sites_in_methods(cls: type) -> list[Site]:
    functions = [f for b in cls.__mro__ if is_searched(b) for f in vars(b).values() if isinstance(f, FunctionType)]
    made = [rewritten_function(f, cls) for f in functions if _may_lead(f)]
    return [site for m in made if m is not None for site in m.sites]


_leading: WeakKeyDictionary[FunctionType, bool] = WeakKeyDictionary()


def _may_lead(function: Any) -> bool:
    """Tells whether a function, or one that it calls, names a sigmoid, silu or GLU: in its own package, or next to it."""
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or not is_searched(function):
        return False
    if function not in _leading:
        _leading[function] = False  # while it is looked at, for it may call itself
        callees = [f for f in _callees(function) if is_searched(f)]
        near = [f for f in callees if _package(f) == _package(function)]
        _leading[function] = any(map(_names_activation, (function, *callees))) or any(map(_may_lead, near))
    return _leading[function]


def _names_activation(function: FunctionType) -> bool:
    names = names_in(function)
    return bool(names & NAMES) or any(is_known(source.resolve_name(name, function)) for name in names)


def _callees(function: FunctionType) -> list[FunctionType]:
    """Returns the functions that a function names, by themselves or as attributes of modules."""
    names = names_in(function)
    values = [source.resolve_name(name, function) for name in names]
    modules = [v for v in values if isinstance(v, ModuleType) and v.__name__.split(".")[0] not in _SKIPPED_PACKAGES]
    values += [vars(module).get(name) for module in modules for name in names]
    return [v for v in values if isinstance(v, FunctionType)]


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", None)).split(".")[0]


def is_searched(value: Any) -> bool:
    """Tells whether a function or class may be a model's own."""
    return _package(value) not in _SKIPPED_PACKAGES


def looks_at_variables(definition: ast.FunctionDef) -> bool:
    """Tells whether a function asks Python for its variables."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and node.attr in ("currentframe", "_getframe", "f_locals"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in ("eval", "exec") or (name in ("locals", "vars", "dir") and not node.args):
                return True
    return False


def names_in(function: Any) -> set[str]:
    """Returns the names in a function's code, and in that of wrapped and nested functions."""
    names: set[str] = set()
    codes = [f.__code__ for f in (inspect.unwrap(function),) if inspect.isfunction(f)]
    for code in codes:
        names.update((*code.co_names, *code.co_freevars))
        codes += [c for c in code.co_consts if inspect.iscode(c)]
    return names
