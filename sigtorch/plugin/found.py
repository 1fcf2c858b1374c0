"""Results of a search in a function's source: its products, and the nodes that are written anew."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from sigtorch.plugin.clamped import ClampedSwiGLU

CHANGED_REASON = "its gate changes in place"
Helper: TypeAlias = Callable[..., Any]


class Site(NamedTuple):
    """A product in a user's source, and what computes it now or the reason why it is left."""

    where: str
    fused: str = ""
    reason: str = ""


@dataclass
class Found:
    """The nodes of a function that are written anew.

    Attributes:
        sites: the products, for a table.
        products: multiplications with an activation that is put off.
        terms: those of them that a sum takes.
        sums: additions of such a product.
        interpolations: sums ``s * x + (1 - s) * y``, and calls of ``lerp``.
        complements: the ``1 - s`` in these.
        put_off: calls of an activation, and the helper that puts each off.
        deferred: calls of a function that ends in an activation, which it is to put off.
        read: loads of variables that may hold an activation that is put off, outside of products.
        added_to: statements such as ``x += 1`` to such a variable.
        glus: calls of ``F.glu``.
        called: calls of functions that hold products.
        defers_return: whether the function returns an activation that is put off.
        clamped: statements that clamp a gate and an up and multiply them.
    """

    sites: list[Site] = field(default_factory=list)
    products: set[ast.AST] = field(default_factory=set)
    terms: set[ast.AST] = field(default_factory=set)
    sums: set[ast.AST] = field(default_factory=set)
    interpolations: set[ast.AST] = field(default_factory=set)
    complements: set[ast.AST] = field(default_factory=set)
    put_off: dict[ast.AST, Helper] = field(default_factory=dict)
    deferred: set[ast.AST] = field(default_factory=set)
    read: set[ast.AST] = field(default_factory=set)
    added_to: set[ast.AST] = field(default_factory=set)
    glus: set[ast.AST] = field(default_factory=set)
    called: set[ast.AST] = field(default_factory=set)
    defers_return: bool = False
    clamped: list[ClampedSwiGLU] = field(default_factory=list)
