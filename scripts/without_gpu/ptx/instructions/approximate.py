"""Special functions: computed exactly, then off by what the PTX ISA manual allows; .rn forms are rounded once."""

import numpy as np

from .arithmetic import calculate
from .table import instruction

# What the manual allows: units in the last place, from the nearest number,
ULPS = {("ex2", "f32"): 2, ("rcp", "f32"): 1}
# or the size of the error, rounding included, relative to the result,
RELATIVE = {
    ("ex2", "f16"): 2**-9.9,
    ("ex2", "bf16"): 2**-7,
    ("rsqrt", "f32"): 2**-22.9,
    ("sqrt", "f32"): 2**-23,
    ("lg2", "f32"): 2**-22,
    ("tanh", "f32"): 2**-11,
    ("tanh", "f16"): 2**-10.987,  # absolute in the manual: results are below 1
    ("tanh", "bf16"): 2**-8,
}
DOUBLE = 2.0**-52  # it gives none for doubles, which are computed in software
# or absolute: where a logarithm is below 1, and of angles up to 2 pi, and beyond
LOGARITHM, ANGLE, LARGE_ANGLE = 2**-22, 2**-20.5, 2**-14.7
ROUNDING = {"f16": 2**-11, "bf16": 2**-8, "f32": 2**-24, "f64": 2**-53}  # the error of rounding, relative, at most


def _approximate(machine, ins, active, function, absolute=None):
    """``function`` in doubles; ``absolute`` gives an error that is allowed in any case, of the operand."""
    element, errors = ins.types[0].element, machine.device.approximation

    def compute(a):
        a = a.astype(np.float64)
        exact = function(a)
        if "approx" not in ins.modifiers:
            return exact
        if element == "f64" and "ftz" in ins.modifiers:  # the high half of a double
            return (exact.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        if (ins.name, element) in ULPS:
            return errors.by_ulps(exact, ULPS[ins.name, element])
        relative = DOUBLE if element == "f64" else RELATIVE.get((ins.name, element), 0)
        allowed = np.maximum(relative * np.abs(exact), absolute(a) if absolute else 0)
        return errors.within(exact, np.maximum(allowed - ROUNDING[element] * np.abs(exact), 0))

    calculate(machine, ins, active, compute, operands=1)


@instruction("ex2", "approx ftz")
def exp2(machine, ins, active):
    _approximate(machine, ins, active, np.exp2)


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
    _approximate(machine, ins, active, np.log2, absolute=lambda a: LOGARITHM)


@instruction("sin cos", "approx ftz")
def sine_or_cosine(machine, ins, active):
    function = {"sin": np.sin, "cos": np.cos}[ins.name]
    _approximate(machine, ins, active, function, lambda a: np.where(np.abs(a) > 2 * np.pi, LARGE_ANGLE, ANGLE))
