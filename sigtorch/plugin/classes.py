"""Subclasses made at run time, in which some methods are replaced: a patched module is an instance of one."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.compiler import is_compiling


class Recipe(NamedTuple):
    """A function and the arguments with which it makes a class again, where an instance is unpickled."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


class Method:
    """A rewritten method: it runs while the original class still has the method that it was made from."""

    def __init__(self, name: str, original: Any, function: Any) -> None:
        self.name, self.original, self.function = name, original, function
        self.made_class: Any = None  # set by make_class, as is the next one
        self.original_class: Any = None
        chain = [original]
        while hasattr(chain[-1], "__wrapped__"):
            chain.append(chain[-1].__wrapped__)
        self.made_from = [(f, f.__code__, f.__defaults__, f.__kwdefaults__) for f in chain if inspect.isfunction(f)]

    def has_same_origin(self, other: Method) -> bool:
        """Tells whether two were made from the same functions, codes and defaults."""
        mine, others = ([part for f in m.made_from for part in f] for m in (self, other))
        # By identity: defaults may be tensors, which compare by elements.
        return len(mine) == len(others) and all(a is b for a, b in zip(mine, others, strict=True))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if not self.should_run():
            return getattr(super(self.made_class, owner if instance is None else instance), self.name)
        return self.function if instance is None else self.function.__get__(instance, owner)

    def should_run(self) -> bool:
        """Tells whether this method runs: the original class still has the original one, with its code and defaults."""
        if is_compiling():
            return self.should_run_compiled()
        for f, code, defaults, keywords in self.made_from:
            if f.__code__ is not code or f.__defaults__ is not defaults or f.__kwdefaults__ is not keywords:
                return False
        return getattr(self.original_class, self.name) is self.original

    def should_run_compiled(self) -> bool:
        """Tells whether this method runs in compiled code: a compiler fuses on its own, and gets the original."""
        return False


class Forward(Method):
    """A forward of sigtorch's that replaces PyTorch's."""

    def should_run_compiled(self) -> bool:
        """Tells whether this forward runs in compiled code, where a changed code of the original is not noticed."""
        return getattr(self.original_class, self.name) is self.original


class Forwarding(type):
    """The metaclass of made classes: attributes are set on the original class, and calls make instances of that class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        original = vars(cls).get("_sigtorch_original")
        return super().__call__(*args, **kwargs) if original is None else original(*args, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        original = vars(cls).get("_sigtorch_original")
        super().__setattr__(name, value) if original is None else setattr(original, name, value)

    def __delattr__(cls, name: str) -> None:
        original = vars(cls).get("_sigtorch_original")
        super().__delattr__(name) if original is None else delattr(original, name)


class _NoInitSubclass:
    """Keeps a user's ``__init_subclass__`` from running: it may need arguments, or keep a list of subclasses."""

    def __init_subclass__(cls) -> None:
        pass


def original_of(cls: Any) -> Any:
    """Returns the original of a made class, and any other class itself."""
    return vars(cls).get("_sigtorch_original", cls)


def make_class(original: Any, methods: Mapping[str, Method], recipe: Recipe) -> type:
    """Returns a subclass of ``original`` with these methods, by name; the same class while an instance of it lives."""
    for cls in type.__subclasses__(original):  # which Python keeps by weak references
        if vars(cls).get("_sigtorch_recipe") == recipe and _are_same(methods_in(cls), methods):
            return cls
    body = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"_sigtorch_recipe": recipe, "__reduce_ex__": _reduce_ex, **methods}
    # A user's metaclass does not run, either.
    new: Any = abc.ABCMeta.__new__ if issubclass(type(original), abc.ABCMeta) else type.__new__
    cls = new(_metaclass(type(original)), original.__name__, (_NoInitSubclass, original), body)
    type.__setattr__(cls, "__bases__", (original,))
    for method in methods.values():
        method.made_class, method.original_class = cls, original
    type.__setattr__(cls, "_sigtorch_original", original)
    return cls  # type: ignore[no-any-return]


def methods_in(cls: type) -> dict[str, Method]:
    """Returns the methods of a made class that replace the original's."""
    return {name: m for name, m in vars(cls).items() if isinstance(m, Method)}


def _are_same(methods: Mapping[str, Method], others: Mapping[str, Method]) -> bool:
    return methods.keys() == others.keys() and all(m.has_same_origin(others[name]) for name, m in methods.items())


def _metaclass(meta: type) -> type:
    return Forwarding if meta is type else type.__new__(type(meta), meta.__name__, (Forwarding, meta), {})


def _reduce_ex(self: Any, protocol: Any) -> Any:
    """Pickles an instance as one of the original class, which on loading gets the made class."""
    made_class: Any = next(cls for cls in type(self).__mro__ if "_sigtorch_original" in vars(cls))
    # Older protocols name the class among what they copy.
    reduced = super(made_class, self).__reduce_ex__(max(int(protocol), 2))
    if type(self) is not made_class or isinstance(reduced, str):  # a user's subclass, or a name
        return reduced
    (function, args, *rest), original = reduced, made_class._sigtorch_original
    function, *args = (original if part is made_class else part for part in (function, *args))
    recipe = made_class._sigtorch_recipe
    return (_instance, (recipe.function, recipe.args, function, tuple(args)), *rest)


# Pickles name this function: keep its name and its arguments.
def _instance(make: Callable[..., Any], make_args: tuple[Any, ...], function: Callable[..., Any], args: Any) -> Any:
    """Makes an instance of the original class, and gives it the made class."""
    module = function(*args)
    object.__setattr__(module, "__class__", make(*make_args))
    return module
