"""``python -m sigtorch report module:factory``: which of a model's products a kernel takes."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch

from sigtorch import _checks
from sigtorch.commands import CommandError
from sigtorch.plugin.patch import patch


def report(options: argparse.Namespace) -> None:
    """Patches the model that a function returns, runs it once, and prints what it computes."""
    made = _called(f"{options.factory}()", _imported(options.factory))
    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) not in (2, 3) or not isinstance(parts[0], torch.nn.Module):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise CommandError(f"{options.factory}() must return (model, args) or (model, args, kwargs), got {kinds}")
    model, args, kwargs = (*made, {}) if len(made) == 2 else made
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
        kinds = f"{type(args).__name__} and {type(kwargs).__name__}"
        raise CommandError(f"{options.factory}(): args must be a tuple and kwargs a dictionary, got {kinds}")
    with patch(model) as patched:
        print(_called("the model", patched.report, *args, **kwargs))


def _imported(name: str) -> Any:
    """Returns the function that ``module:function`` names."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise CommandError(f"expected module:function, got {name!r}")
    value: Any = _called(f"importing {module_name}", importlib.import_module, module_name)
    for part in function_name.split("."):
        if not hasattr(value, part):
            raise CommandError(f"{module_name} has no {function_name!r}")
        value = getattr(value, part)
    if not callable(value):
        raise CommandError(f"{name} is no function, but {type(value).__name__}")
    return value


def _called(what: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls code of the user's, and tells what it raises in one line, with the innermost place."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        place = extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        raise CommandError(f"{what} raised {_checks.in_a_line(error)} ({where})") from error
