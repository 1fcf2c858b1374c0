"""Special functions: computed exactly, then off by what the PTX ISA manual allows; .rn forms are rounded once."""

import numpy as np

from .arithmetic import calculate
from .table import instruction

# The manual's relative errors where it gives no units in the last place, before rounding to the type.
RELATIVE = {
    ("ex2", "f16"): 2**-9.9 - 2**-11,
    ("ex2", "bf16"): 2**-8,
    ("tanh", "f32"): 2**-11,
    ("tanh", "f16"): 0,  # one rounding
    ("tanh", "bf16"): 0,
}


def _approximate(machine, ins, active, function, ulps=1):
    element, errors = ins.types[0].element, machine.device.approximation

    def compute(a):
        exact = function(a.astype(np.float64))
        if "approx" not in ins.modifiers:
            return exact
        if element == "f64" and "ftz" in ins.modifiers:  # the high half of a double
            return (exact.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        if element == "f64":
            return errors.relative(exact, 2.0**-52)
        if (ins.name, element) in RELATIVE:
            return errors.relative(exact, RELATIVE[ins.name, element])
        return errors.by_ulps(exact, ulps)

    calculate(machine, ins, active, compute, operands=1)


@instruction("ex2", "approx ftz")
def exp2(machine, ins, active):
    _approximate(machine, ins, active, np.exp2, ulps=2)


@instruction("rcp", "rn approx ftz")
def reciprocal(machine, ins, active):
    _approximate(machine, ins, active, np.reciprocal)


@instruction("rsqrt", "approx ftz")
def reciprocal_square_root(machine, ins, active):
    _approximate(machine, ins, active, lambda a: 1 / np.sqrt(a))


@instruction("sqrt", "rn approx ftz")
def square_root(machine, ins, active):
    _approximate(machine, ins, active, np.sqrt)


@instruction("tanh", "approx")
def tanh(machine, ins, active):
    _approximate(machine, ins, active, np.tanh)


@instruction("lg2", "approx ftz")
def log2(machine, ins, active):
    def compute(a):
        exact = np.log2(a.astype(np.float64))
        return machine.device.approximation.relative(exact, 2.0**-22, least=1.0).astype(np.float32)

    calculate(machine, ins, active, compute, operands=1)


@instruction("sin cos", "approx ftz")
def sine_or_cosine(machine, ins, active):
    def compute(a):
        exact = {"sin": np.sin, "cos": np.cos}[ins.name](a.astype(np.float64))
        return machine.device.approximation.absolute(exact, 2.0**-20.5).astype(np.float32)

    calculate(machine, ins, active, compute, operands=1)
