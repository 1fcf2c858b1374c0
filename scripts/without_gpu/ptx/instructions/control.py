"""Branches, barriers, and what orders memory."""

from ..fault import Fault
from .table import ANY, instruction


@instruction("bra", "uni")
def branch(machine, ins, active):
    machine.jump(active, ins.operands[0])


@instruction("ret", "uni")
@instruction("exit")
def leave(machine, ins, active):
    machine.exit(active)


@instruction("bar", "sync warp cta")
@instruction("barrier", "sync cta aligned")
def barrier(machine, ins, active):
    if "warp" in ins.modifiers:
        return  # a warp's threads run together here
    if ins.operands not in (("0",), ("0", str(machine.program.threads))):
        raise Fault("named barrier not modelled")
    machine.wait(active)


@instruction("membar fence griddepcontrol", ANY)
def nothing(machine, ins, active):
    """Memory is in order here, and grids run one after the other."""
