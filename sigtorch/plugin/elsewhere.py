"""Finds products outside of a module's methods: in functions that they call, and in objects that modules hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch

from sigtorch.plugin import overlooked, source
from sigtorch.plugin.rewrite import names_in
from sigtorch.plugin.writer import Site, Writer

FUNCTION_REASON = "it is in a function that is not a method"
OBJECT_REASON = "it is in an object that is not a module"
_SKIPPED_PACKAGES = {"torch", "sigtorch", "builtins", "functools", "operator", "math", "typing", "numpy"}


class Elsewhere:
    """Reads each function once, for the first class of modules that leads to it."""

    def __init__(self) -> None:
        self.visited: set[FunctionType] = set()
        self.known: dict[tuple[Any, ...], list[Site]] = {}

    def sites(self, module: torch.nn.Module) -> list[Site]:
        """Returns the products in functions that the module's methods call, and in objects that its attributes hold."""
        held = [*vars(module).values()]
        objects = [type(v) for v in held if not isinstance(v, (torch.nn.Module, torch.Tensor))]
        functions = [v for v in held if isinstance(v, FunctionType)]
        key = (type(module), *objects, *functions)
        if key not in self.known:
            self.known[key] = self._find_sites(type(module), objects, functions)
        return self.known[key]

    def _find_sites(self, cls: type, objects: list[type], functions: list[FunctionType]) -> list[Site]:
        sites = []
        for method in self._unvisited(_methods(*objects)):
            sites += _products(method, OBJECT_REASON)
            functions += _callees(method)
        for method in self._unvisited(_methods(cls)):
            functions += _callees(method)
        for function in self._unvisited(functions):  # which grows meanwhile
            sites += _products(function, FUNCTION_REASON)
            functions += _callees(function)
        return sites

    def _unvisited(self, functions: Iterable[FunctionType]) -> Iterator[FunctionType]:
        for function in functions:
            plain = inspect.unwrap(function)
            if plain not in self.visited and isinstance(plain, FunctionType) and _is_searched(plain):
                self.visited.add(plain)
                yield plain


def _is_searched(value: Any) -> bool:
    return str(getattr(value, "__module__", None)).split(".")[0] not in _SKIPPED_PACKAGES


def _methods(*classes: type) -> Iterator[FunctionType]:
    for cls in classes:
        for base in cls.__mro__ if _is_searched(cls) else ():
            yield from (f for f in vars(base).values() if isinstance(f, FunctionType))


def _callees(function: FunctionType) -> list[FunctionType]:
    """Returns the functions that a function names, by themselves or as attributes of modules."""
    names = names_in(function)
    values = [source.resolve_name(name, function) for name in names]
    for module in [
        v for v in values if isinstance(v, ModuleType) and v.__name__.split(".")[0] not in _SKIPPED_PACKAGES
    ]:
        values += [vars(module).get(name) for name in names]
    return [v for v in values if isinstance(v, FunctionType)]


def _products(function: FunctionType, reason: str) -> list[Site]:
    """Returns the products in a function, each left for this reason."""
    if not (names_in(function) & overlooked.NAMES and source.has_product(function.__code__)):
        return []
    read = source.read_if_current(function)
    if read is None:
        return []
    return [site._replace(reason=reason) for site in Writer(object, function, read.definition, {}, {}).candidates()]
