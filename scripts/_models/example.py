"""A model of another library and what it is called with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Example(NamedTuple):
    """A function that makes a model, and the keyword arguments of one call."""

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], dict[str, Any]]


def noise(given: dict[str, Any] | None = None, **shapes: tuple[int, ...]) -> Callable[[], dict[str, Any]]:
    """Makes the inputs of an example: normal numbers of each shape, and what is given."""
    return lambda: {**{name: torch.randn(shape) for name, shape in shapes.items()}, **(given or {})}


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """Draws all weights of a model that leaves some as memory had them, or begins with many at 0."""
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model
