"""The table of instructions: for each name the function that does it, and the modifiers it knows.

A modifier that is not in the table makes an instruction one that is not modelled: running it is a Fault.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..fault import Fault

ANY = None  # modifiers that change nothing here


@dataclass(frozen=True)
class Entry:
    function: Callable
    modifiers: frozenset[str] | None


TABLE: dict[str, Entry] = {}


def instruction(names, modifiers=""):
    """Puts a function into the table under names separated by blanks; its modifiers likewise, or ANY."""

    def put(function):
        for name in names.split():
            TABLE[name] = Entry(function, modifiers if modifiers is ANY else frozenset(modifiers.split()))
        return function

    return put


def implementation(ins):
    """The function that does an instruction; for what is not modelled, one that raises a Fault."""
    entry = TABLE.get(ins.name)
    if entry is None or (entry.modifiers is not ANY and not ins.modifiers <= entry.modifiers):
        return unknown
    vectors = [len(operand) for operand in ins.operands if isinstance(operand, tuple)]
    if ins.vector > 1 and vectors != [ins.vector]:
        return unknown
    return entry.function


def unknown(machine, ins, active):
    if ins.name == "call" or "param" in ins.modifiers:
        raise Fault("a call of a device function is not modelled")
    raise Fault(f"instruction not modelled: {ins.text}")
