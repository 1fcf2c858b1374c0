"""Finds the code that an operator runs for: the model's own, past PyTorch's and sigtorch's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from sigtorch.plugin import activated, products

_TORCH, _SIGTORCH = (f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent))
_FUNCTIONS = f"{Path(_SIGTORCH, 'ops')}{os.sep}"
_MODULES = f"{Path(_TORCH, 'nn', 'modules')}{os.sep}"
# Those that only call other modules, or one function.
_CALLING = {str(Path(_MODULES, name)) for name in ("module.py", "container.py", "activation.py", "loss.py")}

# What the model's own code calls: a rewritten product, a function of sigtorch's, a module of PyTorch's, or the operator.
Through: TypeAlias = Literal["rewritten product", "sigtorch function", "PyTorch module", "operator"]


class Seen(NamedTuple):
    """The code of the model's that runs an operator.

    Attributes:
        file: its file; empty if there is none on the stack, as in an ``nn.Sequential``.
        line: its line there; 0 if there is none.
        code: the function; None if there is none.
        module: without such code, the module of PyTorch's that runs.
        through: what that code calls, which runs the operator.
        is_early: whether it computes a sigmoid before its product, in case something changes the argument in between.
    """

    file: str
    line: int
    code: CodeType | None
    module: torch.nn.Module | None
    through: Through
    is_early: bool


def seen_from(runner: CodeType) -> Seen:
    """Returns the innermost code on the stack that is neither PyTorch's nor sigtorch's, up to the function that runs all."""
    between: list[FrameType] = []
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not runner:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _SIGTORCH)):
            return Seen(file, frame.f_lineno, frame.f_code, None, _through(between), _is_early(between))
        between.append(frame)
        frame = frame.f_back
    return Seen("", 0, None, _module(between), _through(between), _is_early(between))


def _through(frames: list[FrameType]) -> Through:
    files = [frame.f_code.co_filename for frame in frames]
    if products.__file__ in files or activated.__file__ in files:
        return "rewritten product"
    if any(file.startswith(_FUNCTIONS) for file in files):
        return "sigtorch function"
    if any(file.startswith(_MODULES) and file not in _CALLING for file in files):
        return "PyTorch module"
    return "operator"


def _is_early(frames: list[FrameType]) -> bool:
    return any(frame.f_code is activated._put_off.__code__ for frame in frames)


def _module(frames: list[FrameType]) -> torch.nn.Module | None:
    """Returns the innermost module that is called."""
    calls = [frame for frame in frames if frame.f_code is torch.nn.Module._call_impl.__code__]
    return calls[0].f_locals["self"] if calls else None
