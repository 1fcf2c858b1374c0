"""Modules of an existing model, swapped in place and taken back."""

from __future__ import annotations

import inspect
from collections import Counter
from types import MethodType
from typing import Any, NamedTuple

import torch

from sigtorch import _checks
from sigtorch._checks import Save
from sigtorch.plugin import classes
from sigtorch.plugin.elsewhere import Elsewhere
from sigtorch.plugin.forwards import SWAPS
from sigtorch.plugin.recognise import (
    ALIKE,
    ANEW,
    IN_PLACE,
    INERT,
    NUMBER,
    computes_anew,
    kind_of,
    looks_alike,
    obstacle,
    works_in_place,
)
from sigtorch.plugin.rewrite import Rewritten, methods_of
from sigtorch.plugin.table import Row, headline, table

_READY = "sigtorch's already"


class _Swap(NamedTuple):
    name: str
    module: torch.nn.Module
    after: type
    note: str


class Patch:
    """The swaps that :func:`sigtorch.patch` made in a model: prints them as a table, and takes them back.

    Also a context manager, which takes them back on leaving.

    Attributes:
        swapped: for the name of each module that was swapped, what now runs it.
        left: for the name of each module that was looked at and left alone, the reason.
    """

    def __init__(self, swaps: list[_Swap], left: list[Row]) -> None:
        self._rows: list[Row] = []
        self._left = left
        self._undo: list[tuple[_Swap, type, set[str]]] = []
        try:
            for swap in swaps:
                self._put(swap)
        except BaseException:
            self.undo()
            raise
        self.swapped = {row.name: row.note for row in self._rows}
        self.left: dict[str, str] = {}
        for row in left:
            self.left[row.name] = "\n".join(filter(None, (self.left.get(row.name), row.note)))

    def _put(self, swap: _Swap) -> None:
        before, held = type(swap.module), {*vars(swap.module)}
        try:
            _give(swap.module, swap.after)
        except (AttributeError, TypeError) as error:  # of a class that says how its attributes, or that one, are set
            note = f"its class cannot be changed: {_checks.in_a_line(error)}"
            self._left.append(Row(swap.name, before.__name__, note))
            return
        self._rows.append(Row(swap.name, before.__name__, swap.note))
        self._undo.append((swap, before, held))

    def undo(self) -> None:
        """Give every swapped module back the class it had; a second call does nothing.

        Raises:
            RuntimeError: something else changed a module's class or forward since; all others are restored. Once that is
                taken back, another call restores the rest.
        """
        undo, self._undo, refused = self._undo, [], None
        for swap, before, had in undo:
            if type(swap.module) is before:
                continue
            # A method put on the instance since holds ours, bound, and would outlive it.
            put = {"forward", *classes.methods_in(swap.after)} & vars(swap.module).keys() - had
            if type(swap.module) is not swap.after or put:
                self._undo.append((swap, before, had))
                continue
            try:
                _give(swap.module, before)
            except Exception as error:
                self._undo.append((swap, before, had))
                refused = error
        if self._undo:
            raise _checks.error_class_changed([swap.name for swap, *_ in self._undo]) from refused

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        return table(self._rows, self._left)

    def __repr__(self) -> str:
        return f"<{headline(self._rows, self._left)}>"


def _give(module: torch.nn.Module, cls: type) -> None:
    """Changes what a module is an instance of, past what its class may say of setting attributes."""
    object.__setattr__(module, "__class__", cls)


def patch(model: torch.nn.Module, *, save: Save = "output") -> Patch:
    """Swaps, in place, what sigtorch fuses in a model: its modules, and the products in its modules' own methods.

    The modules are :class:`torch.nn.Sigmoid`, :class:`torch.nn.GLU` and :class:`torch.nn.BCEWithLogitsLoss`; subclasses with
    a forward of their own are left. The products are σ(g)·x and silu(g)·u, in whatever surroundings: in the gate of an
    attention, a squeeze-and-excitation, a feed-forward. A method that holds one is compiled again from its own source, in
    which the product alone is another call. At each call that looks at what it is given: where the activation is a sigmoid
    or silu, unhooked and not in place, and kernels take the operands and their shapes, they run. In all other cases, as on a
    CPU, what was written runs, and gives what it gave, to the last bit.

    A swapped module is the same object with the same parameters, buffers, hooks, flags and ``state_dict`` keys, of a class
    that is a subclass of the one it had. Its methods keep their signatures. It pickles, deep-copies, compiles and exports.

    Args:
        model: any module; it may be one of those itself.
        save: what the swapped sigmoids keep for backward, as in :func:`sigtorch.sigmoid`.

    Returns:
        A :class:`Patch`. ``print`` it for a table of what was swapped and what was left and why; ``undo()`` it, or use it as
        a context manager, to have the model as it was.

    Raises:
        TypeError: model is not a module.
        ValueError: an unknown ``save``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())
        >>> with sigtorch.patch(model, save="input") as patch:
        ...     patch.swapped
        {'1': 'sigtorch.nn.Sigmoid'}
    """
    _checks.check_module("patch()", model)
    _checks.check_save("patch()", save)
    look = _Look(save)
    for name, module in model.named_modules():
        try:
            look.at(name, module)
        except Exception as error:  # whatever an odd class of the user's raises
            look.leave(name, module, [f"it cannot be looked at: {_checks.in_a_line(error)}"])
    return Patch(look.swaps, look.left)


class _Look:
    """Looks at the modules of one model, at each class of them once."""

    def __init__(self, save: Save) -> None:
        self.save = save
        self.swaps: list[_Swap] = []
        self.left: list[Row] = []
        self.elsewhere = Elsewhere()
        self.read: dict[tuple[type, frozenset[tuple[str, str]]], dict[str, Rewritten]] = {}

    def at(self, name: str, module: torch.nn.Module) -> None:
        cls: Any = type(module)
        if any("_sigtorch_original" in vars(base) for base in cls.__mro__) or _is_ours(cls):
            self.leave(name, module, [_READY])
        elif isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
            self.leave(name, module, ["traced already: patch the model before that"])
        elif not self.swap(name, module):
            self.rewrite(name, module)

    def leave(self, name: str, module: torch.nn.Module, reasons: list[str]) -> None:
        if reasons:
            self.left.append(Row(name, type(module).__name__, "\n".join(dict.fromkeys(reasons))))

    def swap(self, name: str, module: torch.nn.Module) -> bool:
        """Whether it is one of PyTorch's modules, which it then swaps, or leaves."""
        cls: Any = type(module)
        for swap in SWAPS:
            if isinstance(module, swap.module_class):
                if (
                    "forward" in vars(module)
                    or cls.forward is not swap.original
                    or cls.forward.__code__ is not swap.code
                ):
                    self.leave(name, module, ["has a forward of its own"])
                else:
                    after = swapped_class(cls, swap.input if self.save == "input" else swap.output)
                    self.swaps.append(_Swap(name, module, after, swap.name))
                return True
        return False

    def rewrite(self, name: str, module: torch.nn.Module) -> None:
        """Fuses the products in a module's methods."""
        cls: Any = type(module)
        held = {**vars(module), **module._modules, **module._parameters, **module._buffers}
        kinds = {attribute: kind for attribute, value in held.items() if (kind := _kind(value))}
        hindered = {a: why for a, kind in kinds.items() if kind not in INERT
                    and (why := obstacle(held[a]))}  # fmt: skip
        activations = frozenset((attribute, kind) for attribute, kind in kinds.items() if attribute not in hindered)
        methods = self.methods_of(cls, activations)
        replaced = methods.keys() & vars(module).keys()
        fused = [s for method, m in methods.items() if method not in replaced for s in m.sites if not s.reason]
        left = [f"{s.where}: {s.reason}" for m in methods.values() for s in m.sites if s.reason]
        left += [
            f"{s.where}: {method} was replaced on the instance" for method in replaced for s in methods[method].sites
        ]
        bound = {v.__func__: a for a, v in vars(module).items() if isinstance(v, MethodType) and v.__self__ is module}
        for method in methods.keys() - replaced:
            if attribute := bound.get(inspect.getattr_static(cls, method, None)):
                left += [
                    f"{s.where}: {attribute} holds {method} as it was" for s in methods[method].sites if not s.reason
                ]
        known = Counter(s.where for m in methods.values() for s in m.sites)
        for attribute, why in hindered.items():
            more = self.methods_of(cls, activations | {(attribute, kinds[attribute])})
            only_then = Counter(s.where for m in more.values() for s in m.sites) - known
            left += [f"{where}: {attribute} cannot be fused, {why}" for where in only_then]
        left += [f"{s.where}: {s.reason}" for s in self.elsewhere.sites(module)]
        if fused:
            places = "; ".join(dict.fromkeys(f"sigtorch.{s.fused} at {s.where}" for s in fused))
            after = _class_of(cls, activations, methods)
            self.swaps.append(_Swap(name, module, after, f"{places}, fuses if shapes allow"))
        self.leave(name, module, left)

    def methods_of(self, cls: type, activations: frozenset[tuple[str, str]]) -> dict[str, Rewritten]:
        key = (cls, activations)
        if key not in self.read:
            self.read[key] = methods_of(*key)
        return self.read[key]


def swapped_class(cls: type, forward: Any) -> type:
    """A class of PyTorch's, or a subclass, with a forward of ours."""
    method = classes.Forward("forward", cls.forward, forward)  # type: ignore[attr-defined]
    return classes.made(cls, {"forward": method}, (swapped_class, (cls, forward)))


def rewritten_class(cls: type, activations: frozenset[tuple[str, str]]) -> type:
    """A class whose methods that hold products are written anew, for instances with these attributes."""
    return _class_of(cls, activations, methods_of(cls, activations))


def _class_of(cls: type, activations: frozenset[tuple[str, str]], methods: dict[str, Rewritten]) -> type:
    anew = {name: classes.Method(name, m.original, m.function) for name, m in methods.items() if m.function}
    return classes.made(cls, anew, (rewritten_class, (cls, activations)))


def _is_ours(cls: type) -> bool:
    return str(cls.__module__).split(".")[0] == "sigtorch"


def _kind(value: Any) -> str | None:
    if kind := kind_of(value):
        return kind
    # What is no operand for a kernel: a tensor of no dimensions neither.
    if value.dim() == 0 if isinstance(value, torch.Tensor) else type(value) in (int, float):
        return NUMBER
    if looks_alike(value):
        return ALIKE
    if not isinstance(value, torch.nn.Module):
        return None
    return IN_PLACE if works_in_place(value) else ANEW if computes_anew(value) else None
