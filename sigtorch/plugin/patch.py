"""Modules of an existing model, swapped in place and taken back."""

from __future__ import annotations

import abc
import copyreg
import functools
import inspect
import re
import sys
from collections import Counter
from types import MethodType
from typing import Any, NamedTuple

import torch

from sigtorch import _checks, nn
from sigtorch.ops.losses.checks import pytorch_takes
from sigtorch.plugin.recognise import NUMBER, kind_of, obstacle
from sigtorch.plugin.rewrite import methods_of


class _Swapped:
    """A subclass made at run time: it pickles as the recipe to make it again."""

    _sigtorch_recipe: tuple[Any, ...]

    def __init_subclass__(cls) -> None:
        """Asks no class of theirs, which may want arguments, or keep a list of its subclasses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(int(protocol), 2))  # older protocols name the class, which has no place
        if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (*self._sigtorch_recipe, *reduced[1][1:]), *reduced[2:])
        if reduced[0] is type(self):  # by a method of theirs
            return (_called, (*self._sigtorch_recipe, *reduced[1]), *reduced[2:])
        return reduced


def _subclass(theirs: Any, ours: Any, activations: frozenset[tuple[str, str]]) -> type:
    """Their class with our forward, or their own methods rewritten: still what isinstance takes it for."""
    methods = methods_of(theirs, activations) if ours is None else {}
    rewritten = ((name, m.function) for name, m in methods.items() if m.function)
    return _made(theirs, ours, activations, tuple(rewritten))


@functools.cache
def _made(
    theirs: Any, ours: Any, activations: frozenset[tuple[str, str]], methods: tuple[tuple[str, Any], ...]
) -> type:
    body = {name: getattr(theirs, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"_sigtorch_recipe": (theirs, ours, activations), **dict(methods)}
    bases = (_Swapped, theirs) if ours is None else (_Swapped, ours, theirs)
    # No metaclass of theirs is asked, either: it may want arguments, or keep a list.
    new: Any = abc.ABCMeta.__new__ if issubclass(type(theirs), abc.ABCMeta) else type.__new__
    return new(type(theirs), theirs.__name__, bases, body)  # type: ignore[no-any-return]


def _new(theirs: type, ours: type | None, activations: frozenset[tuple[str, str]], *args: Any) -> Any:
    cls = _subclass(theirs, ours, activations)
    return cls.__new__(cls, *args)


def _called(theirs: type, ours: type | None, activations: frozenset[tuple[str, str]], *args: Any) -> Any:
    module = theirs(*args)
    module.__class__ = _subclass(theirs, ours, activations)
    return module


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """What a loss of PyTorch's becomes: it takes what that takes, and so no class indices."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss, or PyTorch's own error."""
        if pytorch_takes(input, target, self.weight, self.reduction, self.pos_weight):
            return super().forward(input, target)
        return torch.nn.BCEWithLogitsLoss.forward(self, input, target)


_OURS: dict[type[torch.nn.Module], Any] = {
    torch.nn.Sigmoid: nn.Sigmoid,
    torch.nn.GLU: nn.GLU,
    torch.nn.BCEWithLogitsLoss: BCEWithLogitsLoss,
}


class _Row(NamedTuple):
    name: str
    kind: str
    note: str


class _Swap(NamedTuple):
    name: str
    module: torch.nn.Module
    after: type
    extra: dict[str, Any]
    note: str


class Patch:
    """What :func:`sigtorch.patch` swapped in a model: prints as a table, and takes it back.

    Also a context manager, which takes it back on leaving.

    Attributes:
        swapped: for the name of each module that was swapped, what now runs it.
        left: for the name of each module that was looked at and left alone, the reason.
    """

    def __init__(self, swaps: list[_Swap], left: list[_Row]) -> None:
        self._rows = [_Row(s.name, type(s.module).__name__, s.note) for s in swaps]
        self._left = left
        self._undo: list[tuple[_Swap, type, set[str]]] = []
        self.swapped = {row.name: row.note for row in self._rows}
        self.left = {row.name: row.note for row in left}
        try:
            for swap in swaps:
                before = type(swap.module)
                swap.module.__class__ = swap.after
                self._undo.append((swap, before, vars(swap.module).keys() | set()))
                vars(swap.module).update(swap.extra)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Give every swapped module back the class it had; a second call does nothing.

        Raises:
            RuntimeError: something else changed a module's class or forward since; all others are restored. Once that is
                taken back, another call restores the rest.
        """
        undo, self._undo, refused = self._undo, [], None
        for swap, before, had in undo:
            # A method put on the instance since holds ours, bound, and would outlive it.
            put = {"forward", *vars(swap.after)} & vars(swap.module).keys() - had
            if type(swap.module) is not swap.after or put:
                self._undo.append((swap, before, had))
                continue
            try:
                swap.module.__class__ = before
            except Exception as error:  # as a class of theirs may, of any kind
                self._undo.append((swap, before, had))
                refused = error
                continue
            for name in swap.extra:
                vars(swap.module).pop(name, None)
        if self._undo:
            raise _checks.class_changed([swap.name for swap, *_ in self._undo]) from refused

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"sigtorch.patch: {len(self._rows)} swapped, {len(self._left)} left"]
        rows = [("swapped", r) for r in self._rows] + [("left", r) for r in self._left]
        # Layers of one kind are one line: their numbers become a star.
        alike: dict[tuple[str, ...], list[str]] = {}
        for how, r in rows:
            alike.setdefault((how, re.sub(r"\b\d+\b", "*", r.name), r.kind, r.note), []).append(r.name or "(model)")
        cells = [
            (how, f"{len(names)} x", name if len(names) > 1 else names[0], kind, note)
            for (how, name, kind, note), names in alike.items()
        ]
        widths = [max(len(cell[i]) for cell in cells) for i in range(4)] if cells else []
        for cell in cells:
            head = "  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=False))
            first, *more = cell[4].splitlines()
            lines += [f"  {head}  {first}", *(f"    {line}" for line in more)]
        # Names and lines of somebody's model may hold what stdout cannot print: escapes, then.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        return "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)

    def __repr__(self) -> str:
        return f"<sigtorch.patch: {len(self._rows)} swapped, {len(self._left)} left>"


def patch(model: torch.nn.Module, *, save: str = "output") -> Patch:
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
    """
    _checks.module(model, "patch()")
    _checks.save(save, "patch()")
    swaps: list[_Swap] = []
    left: list[_Row] = []
    for name, module in model.named_modules():
        swap, reason = _look_at(name, module, save)
        swaps += [swap] if swap else []
        left += [_Row(name, type(module).__name__, reason)] if reason else []
    return Patch(swaps, left)


def _look_at(name: str, module: torch.nn.Module, save: str) -> tuple[_Swap | None, str | None]:
    """How to swap it, and what of it is left and why."""
    cls: Any = type(module)
    if isinstance(module, _Swapped) or cls.__module__.startswith("sigtorch."):
        return None, "sigtorch's already"
    if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return None, "traced already: patch the model before that"
    for base, ours in _OURS.items():
        if isinstance(module, base):
            if "forward" in vars(module) or cls.forward is not base.forward:
                return None, "has a forward of its own"
            after = ours if cls is base else _subclass(cls, ours, frozenset())
            # The arguments that ours takes and PyTorch's does not.
            options, theirs = {"save": save} if ours is nn.Sigmoid else {}, vars(base())
            extra = {k: v for k, v in vars(ours(**options)).items() if k not in theirs}
            if taken := extra.keys() & vars(module).keys():
                return None, f"has a {min(taken)!r} of its own"
            return _Swap(name, module, after, extra, f"sigtorch.nn.{ours.__name__}"), None
    return _products_of(name, module)


def _products_of(name: str, module: torch.nn.Module) -> tuple[_Swap | None, str | None]:
    """How to fuse the products in a module's methods."""
    cls: Any = type(module)
    held = {**vars(module), **module._modules, **module._parameters, **module._buffers}
    kinds = {attribute: kind for attribute, value in held.items() if (kind := kind_of(value) or _number(value))}
    hindered = {attribute: why for attribute in kinds if (why := obstacle(held[attribute]))}
    activations = frozenset((attribute, kind) for attribute, kind in kinds.items() if attribute not in hindered)
    methods = methods_of(cls, activations)
    replaced = methods.keys() & vars(module).keys()
    fused = [s for method, m in methods.items() if method not in replaced for s in m.sites if not s.reason]
    left = [f"{s.where}: {s.reason}" for m in methods.values() for s in m.sites if s.reason]
    left += [f"{s.where}: {method} was replaced on the instance" for method in replaced for s in methods[method].sites]
    bound = {v.__func__: a for a, v in vars(module).items() if isinstance(v, MethodType) and v.__self__ is module}
    for method in methods.keys() - replaced:
        if attribute := bound.get(inspect.getattr_static(cls, method, None)):
            left += [f"{s.where}: {attribute} holds {method} as it was" for s in methods[method].sites if not s.reason]
    known = Counter(s.where for m in methods.values() for s in m.sites)
    for attribute, why in hindered.items():
        more = methods_of(cls, activations | {(attribute, kinds[attribute])})
        places = Counter(s.where for m in more.values() for s in m.sites) - known
        left += [f"{where}: {attribute} cannot be fused, {why}" for where in places]
    note = "; ".join(dict.fromkeys(f"sigtorch.{s.fused} at {s.where}" for s in fused))
    swap = _Swap(name, module, _subclass(cls, None, activations), {}, note) if fused else None
    return swap, "\n".join(dict.fromkeys(left)) or None


def _number(value: Any) -> str | None:
    """What is no operand for a kernel: a tensor of no dimensions neither."""
    alone = value.dim() == 0 if isinstance(value, torch.Tensor) else type(value) in (int, float)
    return NUMBER if alone else None
