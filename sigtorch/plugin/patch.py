"""Modules of an existing model, swapped in place and taken back."""

from __future__ import annotations

import copyreg
import functools
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import torch

from sigtorch import _checks, nn
from sigtorch.ops import gates
from sigtorch.ops.losses.checks import pytorch_takes
from sigtorch.plugin.recognise import GatedMLP, gated_mlp, inline_gates


class _Swapped:
    """A subclass made at run time: it pickles as the recipe to make it again."""

    _sigtorch_recipe: tuple[Any, ...]

    def __init_subclass__(cls) -> None:
        """Asks no class of theirs, which may want arguments, or keep a list of its subclasses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(int(protocol), 2))  # older protocols name the class, which has no place
        if isinstance(reduced, str) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        return (_new, (*self._sigtorch_recipe, *reduced[1][1:]), *reduced[2:])


class _FusedMLP(torch.nn.Module):
    """The forward of a gated MLP, over the children that its graph named."""

    _sigtorch_recipe: tuple[type, type, GatedMLP]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        gate, up, down, name = self._sigtorch_recipe[2]
        if not args and list(kwargs) == [name]:
            args, kwargs = (kwargs[name],), {}
        if kwargs or len(args) != 1:
            return super().forward(*args, **kwargs)  # which says what is wrong with the call
        hidden = gates.swiglu(getattr(self, gate)(*args), getattr(self, up)(*args))
        return getattr(self, down)(hidden)


@functools.cache
def _subclass(ours: Any, theirs: Any, parts: GatedMLP | None) -> type:
    """Their class with our forward: still what isinstance and its own methods take it for."""
    body = {name: getattr(theirs, name) for name in ("__module__", "__qualname__", "__doc__")}
    body["_sigtorch_recipe"] = (ours, theirs, parts)
    made: type = type(theirs)(theirs.__name__, (_Swapped, ours, theirs), body)
    return made


def _new(ours: type, theirs: type, parts: GatedMLP | None, *args: Any) -> Any:
    cls = _subclass(ours, theirs, parts)
    return cls.__new__(cls, *args)


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
        self._undo: list[tuple[_Swap, type]] = []
        self.swapped = {row.name: row.note for row in self._rows}
        self.left = {row.name: row.note for row in left}
        try:
            for swap in swaps:
                before = type(swap.module)
                swap.module.__class__ = swap.after
                self._undo.append((swap, before))
                vars(swap.module).update(swap.extra)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Give every swapped module back the class it had; a second call does nothing.

        Raises:
            RuntimeError: something else changed a module's class or forward since; all others are restored.
        """
        undo, self._undo = self._undo, []
        changed = []
        for swap, before in undo:
            # A forward put on the instance holds ours, bound, and would outlive it.
            if type(swap.module) is not swap.after or "forward" in vars(swap.module):
                changed.append(swap.name)
                continue
            swap.module.__class__ = before
            for name in swap.extra:
                vars(swap.module).pop(name, None)
        if changed:
            raise _checks.class_changed(changed)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"sigtorch.patch: {len(self._rows)} swapped, {len(self._left)} left"]
        rows = [("swapped", r) for r in self._rows] + [("left", r) for r in self._left]
        # Layers of one kind are one line: their numbers become a star.
        counts = Counter((how, re.sub(r"\b\d+\b", "*", r.name) or "(model)", r.kind, r.note) for how, r in rows)
        cells = [(how, f"{n} x", name, kind, note) for (how, name, kind, note), n in counts.items()]
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
    """Swaps, in place, the modules of a model that sigtorch fuses.

    These are :class:`torch.nn.Sigmoid`, :class:`torch.nn.GLU`, :class:`torch.nn.BCEWithLogitsLoss`, and every MLP that
    is exactly ``down(silu(gate(x)) * up(x))``. Names don't tell: an MLP is one where :mod:`torch.fx` traces exactly
    these steps and finds nothing left in the module, in training and in evaluation, with and without gradients and
    autocast, as the module stands now; hooks on its activation keep it as it is. A
    swapped module is the same object with the same parameters, buffers, hooks, flags and ``state_dict`` keys, of a
    class that is a subclass of the one it had. It pickles, deep-copies and compiles. Subclasses with a forward of their
    own are left.

    Args:
        model: any module; it may be one of those itself.
        save: what the swapped sigmoids keep for backward, as in :func:`sigtorch.sigmoid`.

    Returns:
        A :class:`Patch`. ``print`` it for a table of what was swapped and what was left and why, with the line that
        would fuse a gate written inline; ``undo()`` it, or use it as a context manager, to have the model as it was.

    Raises:
        TypeError: model is not a module.
        ValueError: an unknown ``save``.
    """
    _checks.module(model, "patch()")
    _checks.save(save, "patch()")
    swaps, left = [], []
    for name, module in model.named_modules():
        found = _look_at(name, module, save)
        if isinstance(found, _Swap):
            swaps.append(found)
        elif found is not None:
            left.append(_Row(name, type(module).__name__, found))
    return Patch(swaps, left)


def _look_at(name: str, module: torch.nn.Module, save: str) -> _Swap | str | None:
    """How to swap it, why not, or None where there is nothing to say."""
    cls: Any = type(module)
    if isinstance(module, _Swapped) or cls.__module__.startswith("sigtorch."):
        return "sigtorch's already"
    for base, ours in _OURS.items():
        if isinstance(module, base):
            if "forward" in vars(module) or cls.forward is not base.forward:
                return "has a forward of its own"
            after = ours if cls is base else _subclass(ours, cls, None)
            # The arguments that ours takes and PyTorch's does not.
            options, theirs = {"save": save} if ours is nn.Sigmoid else {}, vars(base())
            extra = {k: v for k, v in vars(ours(**options)).items() if k not in theirs}
            if taken := extra.keys() & vars(module).keys():
                return f"has a {min(taken)!r} of its own"
            return _Swap(name, module, after, extra, f"sigtorch.nn.{ours.__name__}")
    if cls.__module__.startswith("torch.") or cls.forward is torch.nn.Module.forward:
        return None
    parts = gated_mlp(module)
    if isinstance(parts, GatedMLP):
        note = f"sigtorch.swiglu({parts.gate}, {parts.up}) -> {parts.down}"
        return _Swap(name, module, _subclass(_FusedMLP, cls, parts), {}, note)
    return _left(module, parts)


def _left(module: torch.nn.Module, reason: str | None) -> str | None:
    """What a table says of a module that is no layer of ours but may hold gates."""
    hints = [f"inline at {where}, by hand: {line}" for where, line in inline_gates(module)]
    if hints and any(p.ndim == 3 for p in module.parameters(recurse=False)):
        reason = "packed experts"
    return "\n".join(filter(None, [reason, *hints])) or None
