"""Swaps the classes of modules in an existing model, and swaps them back."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from types import MethodType
from typing import Any, NamedTuple

import torch

from sigtorch import _checks
from sigtorch._checks import Save
from sigtorch.plugin import classes
from sigtorch.plugin.forwards import REPLACEMENTS
from sigtorch.plugin.recognise import LEADS_TO_PRODUCTS, SIGMOID, SILU, AttributeKinds, obstacle
from sigtorch.plugin.report import Report, make_report
from sigtorch.plugin.rewrite import Attributes, Rewritten, held_by, rewrite_methods
from sigtorch.plugin.table import Row, headline, table


class _Swap(NamedTuple):
    """A module by its name in the model, the class that it is to get, and the note in the table."""

    name: str
    module: torch.nn.Module
    new_class: type
    note: str


class _Done(NamedTuple):
    """A swap that was made, the class that the module had, and the attributes that its instance had."""

    swap: _Swap
    old_class: type
    attributes: set[str]


class Patch:
    """The swaps that :func:`sigtorch.patch` made in a model.

    ``print`` it for a table of them, call :meth:`report` for what one run computes, and :meth:`undo` to take them back. As a
    context manager, it takes them back on leaving the block.

    Attributes:
        swapped: maps the name of each swapped module to what runs in its place.
        left: maps the name of each module that was left, or has products that were left, to the reasons, one a line.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())
        >>> patch = sigtorch.patch(model)
        >>> print(patch)
        sigtorch.patch: 1 swapped, 0 left
          swapped  1 x  1  Sigmoid  sigtorch.nn.Sigmoid
        >>> patch.undo()
    """

    def __init__(self, model: torch.nn.Module, swaps: list[_Swap], left: list[Row]) -> None:
        self._model = model
        self._swapped: list[Row] = []
        self._left = left
        self._done: list[_Done] = []
        try:
            for swap in swaps:
                self._make(swap)
        except BaseException:
            self.undo()
            raise
        self._methods = [m for swap in swaps for m in classes.methods_in(swap.new_class).values()]
        self.swapped = {row.name: row.note for row in self._swapped}
        self.left: dict[str, str] = {}
        for row in left:
            self.left[row.name] = "\n".join(filter(None, (self.left.get(row.name), row.note)))

    def _make(self, swap: _Swap) -> None:
        old_class, attributes = type(swap.module), {*vars(swap.module)}
        try:
            _set_class(swap.module, swap.new_class)
        except (AttributeError, TypeError) as error:  # from a class that restricts setting its attributes or __class__
            note = f"its class cannot be changed: {_checks.in_a_line(error)}"
            self._left.append(Row(swap.name, old_class.__name__, note))
            return
        self._swapped.append(Row(swap.name, old_class.__name__, swap.note))
        self._done.append(_Done(swap, old_class, attributes))

    def undo(self) -> None:
        """Gives every swapped module its former class; a second call does nothing.

        Raises:
            RuntimeError: something else has changed a module's class or forward since the patch. All other modules are
                restored. Take that change back, and call ``undo`` again for the rest.
        """
        done, self._done, cause = self._done, [], None
        for each in done:
            module, new_class = each.swap.module, each.swap.new_class
            if type(module) is each.old_class:
                continue
            # A method set on the instance since the patch may hold a rewritten method, bound, and would outlive it.
            added = {"forward", *classes.methods_in(new_class)} & vars(module).keys() - each.attributes
            if type(module) is not new_class or added:
                self._done.append(each)
                continue
            try:
                _set_class(module, each.old_class)
            except Exception as error:
                self._done.append(each)
                cause = error
        if self._done:
            raise _checks.error_class_changed([each.swap.name for each in self._done]) from cause

    def report(self, *args: Any, **kwargs: Any) -> Report:
        """Runs the model once, and tells of every product with a sigmoid or silu that it computes.

        The model runs in the mode that it is in, training or evaluation, without gradients. Its parameters, buffers and
        gradients, the arguments and the random state of PyTorch, Python and NumPy are as before afterwards, also if the
        model raises. On a CPU, the report tells what would run on a CUDA device. It asks the functions that decide.

        Args:
            args: the arguments of the model.
            kwargs: its keyword arguments.

        Returns:
            A :class:`Report`. ``print`` it for a table: for each line of code and its shapes, how often a product is computed,
            and whether a kernel takes it or why none does; then the sigmoids, silus and losses that are part of no product.

        Raises:
            ValueError: a parameter or buffer of the model is lazy, and has no shape yet.
            Exception: what the model raises.

        Example:
            >>> patch = sigtorch.patch(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GLU()))
            >>> print(patch.report(torch.zeros(2, 4)))
            sigtorch.report: what would run on a CUDA device
              fused  1 x  glu  1 (GLU)  input (2, 4), float32
            fused 1 of 1 products
        """
        return make_report(self._model, self.left, self._methods, args, kwargs)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        return table(self._swapped, self._left)

    def __repr__(self) -> str:
        return f"<{headline(self._swapped, self._left)}>"


def _set_class(module: torch.nn.Module, cls: type) -> None:
    """Sets a module's class, past any ``__setattr__`` of its own."""
    object.__setattr__(module, "__class__", cls)


def patch(model: torch.nn.Module, *, save: Save = "output") -> Patch:
    """Makes a model use sigtorch, in place: its modules, and the products in its modules' own methods.

    The modules are :class:`torch.nn.Sigmoid`, :class:`torch.nn.GLU` and :class:`torch.nn.BCEWithLogitsLoss`. Subclasses that
    override ``forward`` are left.

    The products are σ(g)·x and silu(g)·u, anywhere in a method: in attention gates, squeeze-and-excitation, feed-forwards. The
    method is compiled again from its source, with a call in place of the product. Each call checks its operands. A kernel runs
    if the activation is a sigmoid or silu without hooks that does not work in place, and if a kernel takes the operands and
    their shapes. Otherwise, as on a CPU, the original expression runs, with the same result to the last bit.

    A swapped module stays the same object, with the same parameters, buffers, hooks, flags and ``state_dict`` keys. Its class
    becomes a subclass of the class it had. Its methods keep their signatures. It can be pickled, deep-copied, compiled and
    exported.

    Args:
        model: any module; it may itself be one of those above.
        save: the tensor that swapped sigmoids keep for backward, ``"output"`` or ``"input"``, as in
            :func:`sigtorch.sigmoid`.

    Returns:
        A :class:`Patch`. ``print`` it for a table of what was swapped, and what was left with the reasons. To restore the
        model, call its ``undo()``, or use it as a context manager.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``save`` is unknown.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())
        >>> with sigtorch.patch(model, save="input") as patch:
        ...     patch.swapped
        {'1': 'sigtorch.nn.Sigmoid'}
    """
    _checks.check_module("patch()", model)
    _checks.check_save("patch()", save)
    survey = _Survey(save)
    for name, module in model.named_modules():
        try:
            survey.visit(name, module)
        except Exception as error:  # an unusual class of the user's may raise anything
            survey.leave(name, module, [f"it cannot be inspected: {_checks.in_a_line(error)}"])
    return Patch(model, survey.swaps, survey.left)


class _Survey:
    """Visits the modules of one model, and collects the swaps to make and the rows of what is left."""

    def __init__(self, save: Save) -> None:
        self.save = save
        self.swaps: list[_Swap] = []
        self.left: list[Row] = []
        self.attributes = Attributes()
        self.rewritten: dict[tuple[type, AttributeKinds], dict[str, Rewritten]] = {}  # each class is read once

    def visit(self, name: str, module: torch.nn.Module) -> None:
        cls: Any = type(module)
        if any("_sigtorch_original" in vars(base) for base in cls.__mro__) or _is_of_sigtorch(cls):
            self.leave(name, module, ["it uses sigtorch already"])
        elif isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
            self.leave(name, module, ["it is traced already: patch the model before tracing"])
        elif not self.replace_forward(name, module):
            self.fuse_products(name, module)

    def leave(self, name: str, module: torch.nn.Module, reasons: list[str]) -> None:
        if reasons:
            self.left.append(Row(name, type(module).__name__, "\n".join(dict.fromkeys(reasons))))

    def replace_forward(self, name: str, module: torch.nn.Module) -> bool:
        """Swaps or leaves one of PyTorch's modules; returns False for any other."""
        cls: Any = type(module)
        for known in REPLACEMENTS:
            if not isinstance(module, known.module_class):
                continue
            overridden = "forward" in vars(module) or cls.forward is not known.forward
            if overridden or cls.forward.__code__ is not known.code:
                self.leave(name, module, ["its forward is not PyTorch's"])
            else:
                new_class = swapped_class(cls, known.saving_input if self.save == "input" else known.saving_output)
                self.swaps.append(_Swap(name, module, new_class, known.name))
            return True
        return False

    def fuse_products(self, name: str, module: torch.nn.Module) -> None:
        """Swaps a module whose methods hold products that can be fused, and gives the reasons for those that cannot."""
        cls, held, kinds = type(module), held_by(module), self.attributes.kinds(module)
        obstacles = {a: why for a, kind in kinds.items() if kind in (SIGMOID, SILU) and (why := obstacle(held[a]))}
        usable = frozenset((a, kind) for a, kind in kinds.items() if a not in obstacles)
        methods = self.rewrite_methods(cls, usable)
        running = {name: m for name, m in methods.items() if name not in vars(module)}
        sites = [s for a, kind in kinds.items() if kind == LEADS_TO_PRODUCTS for s in self.attributes.sites_of(held[a])]
        sites += [s for m in running.values() if m.function for s in m.sites]
        reasons = [f"{s.where}: {s.reason}" for m in methods.values() for s in m.sites if s.reason]
        reasons += _overridden_sites(module, methods)
        without = Counter(s.where for m in methods.values() for s in m.sites)
        for a, why in obstacles.items():
            with_it = self.rewrite_methods(cls, usable | {(a, kinds[a])})
            more = Counter(s.where for m in with_it.values() for s in m.sites) - without
            reasons += [f"{where}: {a} cannot be fused, {why}" for where in more]
        if any(m.function for m in running.values()):
            fused = dict.fromkeys(f"{s.fused} at {s.where}" for s in sites if not s.reason)
            note = f"{'; '.join(fused)}, fuses if shapes allow" if fused else "a sigmoid or silu, for another's product"
            self.swaps.append(_Swap(name, module, _rewritten_class(cls, usable, methods), note))
        self.leave(name, module, reasons)

    def rewrite_methods(self, cls: type, kinds: AttributeKinds) -> dict[str, Rewritten]:
        key = (cls, kinds)
        if key not in self.rewritten:
            self.rewritten[key] = rewrite_methods(*key)
        return self.rewritten[key]


def _overridden_sites(module: torch.nn.Module, methods: dict[str, Rewritten]) -> Iterator[str]:
    """Yields the products that instance attributes bypass: a method set on it, or one of the class' that was bound before."""
    own = vars(module)
    bound = {v.__func__: a for a, v in own.items() if isinstance(v, MethodType) and v.__self__ is module}
    for name, method in methods.items():
        attribute = bound.get(inspect.getattr_static(type(module), name, None))
        for site in method.sites:
            if name in own:
                yield f"{site.where}: {name} was replaced on the instance"
            elif attribute and not site.reason:
                yield f"{site.where}: the attribute {attribute} holds the original {name}"


# Pickles name this function and the next: keep their names and their arguments.
def swapped_class(cls: type, forward: Any) -> type:
    """Returns a subclass of a class of PyTorch's with a forward of sigtorch's."""
    method = classes.Forward("forward", cls.forward, forward)  # type: ignore[attr-defined]
    return classes.make_class(cls, {"forward": method}, classes.Recipe(swapped_class, (cls, forward)))


def rewritten_class(cls: type, kinds: AttributeKinds) -> type:
    """Returns a subclass with rewritten methods, for instances whose attributes are of these kinds."""
    return _rewritten_class(cls, kinds, rewrite_methods(cls, kinds))


def _rewritten_class(cls: type, kinds: AttributeKinds, methods: dict[str, Rewritten]) -> type:
    new = {name: classes.Method(name, m.original, m.function) for name, m in methods.items() if m.function}
    return classes.make_class(cls, new, classes.Recipe(rewritten_class, (cls, kinds)))


def _is_of_sigtorch(cls: type) -> bool:
    return str(cls.__module__).split(".")[0] == "sigtorch"
