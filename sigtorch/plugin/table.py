"""How a patch prints."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple


class Row(NamedTuple):
    """A module by its name in the model, its class' name, and what became of it."""

    name: str
    kind: str
    note: str


def table(swapped: list[Row], left: list[Row]) -> str:
    """Lists the modules that were swapped and those that were left, and why: layers that are alike share a line."""
    lines = [headline(swapped, left)]
    rows = [("swapped", r) for r in swapped] + [("left", r) for r in left]
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
    # Names and lines of a user's model may hold what stdout cannot print: it becomes escapes.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)


def headline(swapped: list[Row], left: list[Row]) -> str:
    """How many there are of both."""
    return f"sigtorch.patch: {len(swapped)} swapped, {len(left)} left"
