"""The table that a patch prints."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple


class Row(NamedTuple):
    """A module's name in the model, the name of its class, and what was swapped or why it was left."""

    name: str
    class_name: str
    note: str


def table(swapped: list[Row], left: list[Row]) -> str:
    """Returns the table of the modules that were swapped, and of those that were left with the reasons."""
    # Layers that differ in their numbers alone share a line, with a star for the number.
    layers: dict[tuple[str, Row], list[str]] = {}
    for status, rows in (("swapped", swapped), ("left", left)):
        for row in rows:
            pattern = row._replace(name=re.sub(r"\b\d+\b", "*", row.name))
            layers.setdefault((status, pattern), []).append(row.name or "(model)")
    heads = [
        (status, f"{len(names)} x", pattern.name if len(names) > 1 else names[0], pattern.class_name)
        for (status, pattern), names in layers.items()
    ]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    lines = [headline(swapped, left)]
    for head, (_, pattern) in zip(heads, layers, strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True))
        first, *more = pattern.note.splitlines()
        lines += [f"  {cells}  {first}", *(f"    {line}" for line in more)]
    return printable("\n".join(lines))


def printable(text: str) -> str:
    """Returns a text with escapes for what stdout cannot print: a user's names and files may hold any character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def headline(swapped: list[Row], left: list[Row]) -> str:
    """Returns the table's first line, which counts both kinds of rows."""
    return f"sigtorch.patch: {len(swapped)} swapped, {len(left)} left"
