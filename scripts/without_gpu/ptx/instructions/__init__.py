"""The instructions, a family a file: each is a function ``(machine, instruction, active)`` in one table."""

import functools

from . import approximate, arithmetic, atomic, bits, compare, control, convert, matrix, memory, move, warp  # noqa: F401, table
from .table import TABLE, implementation

__all__ = ["TABLE", "implementations"]


@functools.cache
def implementations(program):
    """The function for every instruction of a program."""
    return [implementation(instruction) for instruction in program.code]
