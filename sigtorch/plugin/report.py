"""Reports the products that a model computes in one run, and what becomes of each."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import CodeType
from typing import Any, NamedTuple

import torch

from sigtorch import _checks
from sigtorch.plugin import classes
from sigtorch.plugin.keeping import kept
from sigtorch.plugin.recognise import SIGMOID, SILU
from sigtorch.plugin.table import printable
from sigtorch.plugin.watching import Event, Operand, Watch

FORM_REASON = "it is written in a form that is not rewritten"
FUNCTION_REASON = "it is in a function that no rewritten code calls"
AUTOGRAD_REASON = "an autograd Function computes it"
PYTORCH_REASON = "PyTorch's own code computes it"
IN_PLACE_REASON = "it changes a tensor in place"
NOT_RUNNING_REASON = "the original method runs: the patch was undone, or something replaced the rewritten one"
SHARED_REASON = "other code takes its sigmoid or silu, too"
OTHER_CODE_REASON = "its sigmoid or silu is not one that a kernel can compute here, for example because of a hook"
ALONE_REASONS = {
    SIGMOID: "patch() swaps nn.Sigmoid, patched_functions() diverts torch.sigmoid",
    SILU: "sigtorch has no kernel for it alone",
    "binary_cross_entropy_with_logits": "patch() swaps nn.BCEWithLogitsLoss, patched_functions() diverts the function",
}


@dataclass(frozen=True)
class Row:
    """Describes the results of one line of code for these shapes.

    Attributes:
        kind: the name of sigtorch's function for it, or ``"silu"``.
        place: the file, without its folder, and the line; if no code of the model's own computes it, the module's name.
        file: the file with its folder, or empty.
        operands: the tensors, each with its name in sigtorch's function, ``shape``, ``dtype`` and ``device``.
        count: how often.
        fused: whether a kernel computes it, or would on a CUDA device.
        shared: whether it is a product whose sigmoid or silu other code takes, too, so that it is computed in any case.
        why: why none does; empty if one does.
    """

    kind: str
    place: str
    file: str
    operands: tuple[Operand, ...]
    count: int
    fused: bool
    shared: bool
    why: str


@dataclass(frozen=True)
class Report:
    """The products, sigmoids, silus and losses that one run of a model computed: ``print`` it for a table.

    Attributes:
        products: a row for each product σ(g)·x, silu(g)·u, GLU or interpolation s·x + (1 - s)·y, by line and shapes.
        alone: a row for each sigmoid, silu or loss that is part of no product.
        on_cuda: whether the run was on a CUDA device. If not, the rows tell what would happen on one.
    """

    products: tuple[Row, ...]
    alone: tuple[Row, ...]
    on_cuda: bool

    @property
    def fused(self) -> int:
        """How many products a kernel computes."""
        return sum(row.count for row in self.products if row.fused)

    @property
    def total(self) -> int:
        """How many products were computed, without those that share their sigmoid or silu with other code."""
        return sum(row.count for row in self.products if not row.shared)

    def __str__(self) -> str:
        where = "what ran" if self.on_cuda else "what would run on a CUDA device"
        statuses = [("fused" if row.fused else "shared" if row.shared else "left", row) for row in self.products]
        statuses += [("alone, fused" if row.fused else "alone", row) for row in self.alone]
        heads = [(status, f"{row.count} x", row.kind, row.place) for status, row in statuses]
        widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
        lines = [f"sigtorch.report: {where}"]
        for head, (_, row) in zip(heads, statuses, strict=True):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True))
            lines.append(f"  {cells}  {_shown(row.operands)}")
            lines += [f"    {row.why}"] if row.why else []
        shared = sum(row.count for row in self.products if row.shared)
        more = f", and {shared} share their sigmoid or silu with other code" if shared else ""
        return printable("\n".join([*lines, f"fused {self.fused} of {self.total} products{more}"]))


def _shown(operands: Sequence[Operand]) -> str:
    dtypes = dict.fromkeys(str(o.dtype).removeprefix("torch.") for o in operands)
    return f"{', '.join(f'{o.name} {o.shape}' for o in operands)}, {' and '.join(dtypes)}"


def make_report(
    model: torch.nn.Module, left: dict[str, str], rewritten: Sequence[classes.Method], args: Any, kwargs: Any
) -> Report:
    """Runs a model once, and returns the report.

    Args:
        model: the model.
        left: maps the names of modules to the reasons, one a line, why they or their products were left.
        rewritten: the rewritten methods.
        args: the arguments of the run.
        kwargs: its keyword arguments.
    """
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(parameter):
            raise _checks.error_lazy(name)
    with kept(model, (args, kwargs)) as state, torch.no_grad():
        watch = Watch(state.before)
        watch.run(model, args, kwargs)
    reasons = _Reasons(model, left, rewritten)
    # A sigmoid that was computed early, in case its argument changes, is none that stands alone.
    alone = [e for e in watch.others if not e.is_taken and (e.uses or not e.seen.is_early)]
    on_cuda = any(o.device.type == "cuda" for e in (*watch.products, *watch.others) for o in e.operands)
    return Report(
        _rows([(e, reasons.of_product(e)) for e in watch.products], reasons),
        _rows([(e, reasons.of_alone(e)) for e in alone], reasons),
        on_cuda,
    )


def _rows(events: list[tuple[Event, str]], reasons: _Reasons) -> tuple[Row, ...]:
    counts: Counter[Row] = Counter()
    for event, why in events:
        place, is_shared = reasons.place(event), event.is_shared()
        counts[Row(event.kind, place, event.seen.file, event.operands, 0, event.fused, is_shared, why)] += 1
    return tuple(replace(row, count=count) for row, count in counts.items())


class _Method(NamedTuple):
    """A method in its file."""

    file: str
    line: int
    name: str


class _Reasons:
    """Knows what a patch did, and says why a product was left: in its words, if it has any."""

    def __init__(self, model: torch.nn.Module, left: dict[str, str], rewritten: Sequence[classes.Method]) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.by_place: dict[str, str] = {}
        self.by_method: dict[_Method, str] = {}  # of all methods; a reason if the module was left as a whole
        for name, module in model.named_modules():
            whole = ""
            for line in left.get(name, "").splitlines():
                if found := re.match(r"(.+?:\d+): (.*)", line):
                    place, why = found.groups()
                    known = self.by_place.get(place)
                    self.by_place[place] = why if known in (None, why) else f"{known}; {why}"
                else:
                    whole = line
            for method in _methods(type(module)):
                self.by_method[method] = self.by_method.get(method) or whole
        self.rewritten = {inspect.unwrap(m.function).__code__ for m in rewritten}
        self.rewritten_methods = {_method(code) for code in self.rewritten}

    def place(self, event: Event) -> str:
        seen = event.seen
        if seen.code is not None:
            return _place(seen.file, seen.line)
        return f"{self.names.get(id(seen.module), '')} ({type(seen.module).__name__})".strip()

    def of_product(self, event: Event) -> str:
        """Returns why a product is not fused; an empty string if it is."""
        seen = event.seen
        if event.fused:
            return ""
        if seen.through == "rewritten product":
            return event.obstacle or OTHER_CODE_REASON
        if seen.through == "sigtorch function":
            return event.obstacle or PYTORCH_REASON
        return self.of_patch(event) or event.obstacle or self.of_form(event)

    def of_patch(self, event: Event) -> str:
        """Returns the reason that the patch gave, if it gave one."""
        code = event.seen.code
        if code is None:
            return ""
        method = _method(code)
        beginning = _place(method.file, method.line)  # stands for a method that the patch could not read
        if why := self.by_place.get(self.place(event)) or self.by_place.get(beginning) or self.by_method.get(method):
            return why
        return NOT_RUNNING_REASON if method in self.rewritten_methods and code not in self.rewritten else ""

    def of_form(self, event: Event) -> str:
        """Returns the reason that the code itself gives."""
        seen = event.seen
        if seen.through == "PyTorch module":
            return PYTORCH_REASON
        if seen.code is not None and _method(seen.code) in _autograd_functions():
            return AUTOGRAD_REASON
        if event.is_shared():
            return SHARED_REASON
        if event.in_place:
            return IN_PLACE_REASON
        return FUNCTION_REASON if seen.code is not None and _method(seen.code) not in self.by_method else FORM_REASON

    def of_alone(self, event: Event) -> str:
        if event.fused:
            return ""
        return PYTORCH_REASON if event.seen.through == "PyTorch module" else ALONE_REASONS[event.kind]


def _place(file: str, line: int) -> str:
    """Returns a line of code as a patch prints it."""
    return f"{PurePath(file.replace(chr(92), '/')).name}:{line}"


def _method(code: CodeType) -> _Method:
    return _Method(code.co_filename, code.co_firstlineno, code.co_name)


def _autograd_functions() -> set[_Method]:
    """Returns the forwards of all autograd Functions."""
    found, functions = set(), [torch.autograd.Function]
    for cls in functions:  # which grows meanwhile
        functions += type.__subclasses__(cls)
        forward = getattr(vars(cls).get("forward"), "__func__", None)
        if inspect.isfunction(forward):
            found.add(_method(inspect.unwrap(forward).__code__))
    return found


def _methods(cls: type) -> list[_Method]:
    functions = [inspect.unwrap(f) for base in cls.__mro__ for f in vars(base).values() if inspect.isfunction(f)]
    return [_method(f.__code__) for f in functions]
