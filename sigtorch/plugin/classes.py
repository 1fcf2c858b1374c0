"""Subclasses made at run time, in which some methods are others: what stands for a module's own class while it is patched."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch


class Method:
    """A rewritten method: runs while the class that it stands in for has the method that it was made from."""

    def __init__(self, name: str, original: Any, function: Any) -> None:
        self.name, self.original, self.function = name, original, function
        self.owner: Any = None  # the made class, and the class that it stands for
        self.stands_for: Any = None
        chain = [original]
        while hasattr(chain[-1], "__wrapped__"):
            chain.append(chain[-1].__wrapped__)
        self.made_from = [(f, f.__code__, f.__defaults__, f.__kwdefaults__) for f in chain if inspect.isfunction(f)]

    def is_made_from_the_same(self, other: Method) -> bool:
        """Whether two were made from the same functions, codes and defaults."""
        mine, others = ([part for f in m.made_from for part in f] for m in (self, other))
        # By identity: defaults may be tensors, which compare by elements.
        return len(mine) == len(others) and all(a is b for a, b in zip(mine, others, strict=True))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if not self.runs():
            return getattr(super(self.owner, owner if instance is None else instance), self.name)
        return self.function if instance is None else self.function.__get__(instance, owner)

    def runs(self) -> bool:
        """Whether this one is to run; a compiler fuses on its own, and gets the method as it was written."""
        return not torch.compiler.is_compiling() and self.is_there() and self.is_unchanged()

    def is_there(self) -> bool:
        """Whether the class has the method that this one was made from."""
        return getattr(self.stands_for, self.name) is self.original

    def is_unchanged(self) -> bool:
        """Whether nothing has replaced that method's code or defaults."""
        for f, code, defaults, keywords in self.made_from:
            if f.__code__ is not code or f.__defaults__ is not defaults or f.__kwdefaults__ is not keywords:
                return False
        return True


class Forward(Method):
    """A forward of ours in place of PyTorch's."""

    def runs(self) -> bool:
        """Whether this one is to run: for a compiler too, which does not see a changed code."""
        return self.is_there() and (torch.compiler.is_compiling() or self.is_unchanged())


class Forwarding(type):
    """The metaclass of made classes: what is written to one goes to its original class, and calling one calls that."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        original = vars(cls).get("_sigtorch_original")
        return super().__call__(*args, **kwargs) if original is None else original(*args, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        original = vars(cls).get("_sigtorch_original")
        super().__setattr__(name, value) if original is None else setattr(original, name, value)

    def __delattr__(cls, name: str) -> None:
        original = vars(cls).get("_sigtorch_original")
        super().__delattr__(name) if original is None else delattr(original, name)


class _Quiet:
    """Keeps a user's ``__init_subclass__`` from running: it may want arguments, or keep a list of subclasses."""

    def __init_subclass__(cls) -> None:
        pass


def original_of(cls: Any) -> Any:
    """The class that a made one stands for; any other is its own."""
    return vars(cls).get("_sigtorch_original", cls)


def made(original: Any, methods: Mapping[str, Method], again: tuple[Callable[..., Any], tuple[Any, ...]]) -> type:
    """A subclass of a class with these methods; the same one as long as an instance of it lives.

    Args:
        original: its only base.
        methods: by their names.
        again: a function and its arguments, which give the class once more, where an instance is unpickled.
    """
    for cls in type.__subclasses__(original):  # which Python keeps by weak references
        if vars(cls).get("_sigtorch_again") == again and _same(methods_in(cls), methods):
            return cls
    body = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"_sigtorch_again": again, "__reduce_ex__": _reduce_ex, **methods}
    # A user's metaclass does not run, either.
    new: Any = abc.ABCMeta.__new__ if issubclass(type(original), abc.ABCMeta) else type.__new__
    cls = new(_metaclass(type(original)), original.__name__, (_Quiet, original), body)
    type.__setattr__(cls, "__bases__", (original,))
    for method in methods.values():
        method.owner, method.stands_for = cls, original
    type.__setattr__(cls, "_sigtorch_original", original)
    return cls  # type: ignore[no-any-return]


def methods_in(cls: type) -> dict[str, Method]:
    """The methods of a made class that are not the original's."""
    return {name: m for name, m in vars(cls).items() if isinstance(m, Method)}


def _same(methods: Mapping[str, Method], others: Mapping[str, Method]) -> bool:
    return methods.keys() == others.keys() and all(m.is_made_from_the_same(others[name]) for name, m in methods.items())


def _metaclass(meta: type) -> type:
    return Forwarding if meta is type else type.__new__(type(meta), meta.__name__, (Forwarding, meta), {})


def _reduce_ex(self: Any, protocol: Any) -> Any:
    """The recipe of an instance of the original class, which is then given the made one."""
    made_class: Any = next(cls for cls in type(self).__mro__ if "_sigtorch_original" in vars(cls))
    # Older protocols name the class among what they copy.
    reduced = super(made_class, self).__reduce_ex__(max(int(protocol), 2))
    if type(self) is not made_class or isinstance(reduced, str):  # a user's subclass, or a name
        return reduced
    (function, args, *rest), original = reduced, made_class._sigtorch_original
    function, *args = (original if part is made_class else part for part in (function, *args))
    return (_instance, (*made_class._sigtorch_again, function, tuple(args)), *rest)


def _instance(again: Callable[..., Any], recipe: tuple[Any, ...], function: Callable[..., Any], args: Any) -> Any:
    module = function(*args)
    object.__setattr__(module, "__class__", again(*recipe))
    return module
