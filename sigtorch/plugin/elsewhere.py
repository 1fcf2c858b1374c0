"""Products that no rewritten method reaches: in functions that methods call, and in objects that modules hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch

from sigtorch.plugin import overlooked, source
from sigtorch.plugin.rewrite import names_in
from sigtorch.plugin.writer import Site, Writer

FUNCTION = "in a function that is no method"
OBJECT = "in an object that is no module"
_NOT_READ = {"torch", "sigtorch", "builtins", "functools", "operator", "math", "typing", "numpy"}


class Elsewhere:
    """Looks at each function once, for the first class of modules that leads there."""

    def __init__(self) -> None:
        self.seen: set[FunctionType] = set()
        self.known: dict[tuple[Any, ...], list[Site]] = {}

    def sites(self, module: torch.nn.Module) -> list[Site]:
        """The products in what the methods of a module's class call, and in what such a module's attributes hold."""
        held = [*vars(module).values()]
        objects = [type(v) for v in held if not isinstance(v, (torch.nn.Module, torch.Tensor))]
        functions = [v for v in held if isinstance(v, FunctionType)]
        key = (type(module), *objects, *functions)
        if key not in self.known:
            self.known[key] = self._sites(type(module), objects, functions)
        return self.known[key]

    def _sites(self, cls: type, objects: list[type], called: list[FunctionType]) -> list[Site]:
        sites = []
        for function in self._new(_methods(*objects)):
            sites += _products(function, OBJECT)
            called += _calls(function)
        for function in self._new(_methods(cls)):
            called += _calls(function)
        for function in called:
            for new in self._new(iter([function])):
                sites += _products(new, FUNCTION)
                called += _calls(new)
        return sites

    def _new(self, functions: Iterator[FunctionType]) -> Iterator[FunctionType]:
        for function in functions:
            plain = inspect.unwrap(function)
            if plain not in self.seen and isinstance(plain, FunctionType) and _read(plain):
                self.seen.add(plain)
                yield plain


def _read(of: Any) -> bool:
    return str(getattr(of, "__module__", None)).split(".")[0] not in _NOT_READ


def _methods(*classes: type) -> Iterator[FunctionType]:
    for cls in classes:
        for base in cls.__mro__ if _read(cls) else ():
            yield from (f for f in vars(base).values() if isinstance(f, FunctionType))


def _calls(function: FunctionType) -> list[FunctionType]:
    """The functions that a function names, by themselves or as attributes of modules."""
    names = names_in(function)
    values = [source.named(name, function) for name in names]
    for module in [v for v in values if isinstance(v, ModuleType) and v.__name__.split(".")[0] not in _NOT_READ]:
        values += [vars(module).get(name) for name in names]
    return [v for v in values if isinstance(v, FunctionType)]


def _products(function: FunctionType, why: str) -> list[Site]:
    if not (names_in(function) & overlooked.NAMES and source.multiplies(function.__code__)):
        return []
    read = source.known(function)
    if read is None:
        return []
    return [site._replace(reason=why) for site in Writer(object, function, read.definition, {}, {}).alike()]
